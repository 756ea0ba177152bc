"""Your own pictures: a folder of PNG, JPEG and WebP files, with all its subfolders.

    python -m experiments.folder --workdir=DIR --config.data.path=FOLDER

If FOLDER has the subfolders `train` and `test`, they are what is trained on and evaluated on. If
not, a tenth of the pictures is held out (--config.data.held_out=0.1), chosen by a hash of their
paths: each picture's part stays when others come or go.

* All pictures must have one size, or are brought to one by --config.data.size=64 (or 48x64, height
  x width) with --config.data.fit=crop (the largest part of that shape about the centre) or
  fit=resize (stretched). Bits per dim are those of the pictures so made, and only comparable at the
  same size and fit. fit=tiles cuts each picture into all the pieces of that size that lie side by
  side in it; error bars are then over pictures.
* --config.data.channels=1 makes them grey.
* --config.data.class_labels=True conditions the network on each picture's class, the name of its
  subfolder: train/CLASS/1.png, or CLASS/1.png where there are no `train` and `test`.

Broken pictures are named, and so is what can't be taken in one right way (transparency, 16 bits,
CMYK, animations). They are decoded once; a changed, new or removed file is noticed at the start.

The network is the paper's U-Net with fewer blocks; start from `configs/cifar10.py` for its full
size. Bits per dim and hardware-hours depend on the pictures: the run prints its rate and the time
left.
"""

from ml_collections import ConfigDict

from experiments.configs import arrays


def get_config() -> ConfigDict:
    """Returns the paper's objective and optimiser, with a smaller network."""
    config = arrays.get_config()
    config.data.name = "folder"
    return config
