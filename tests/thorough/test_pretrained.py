"""The package's model of photographs has the figure of its card, on some of them."""

import numpy as np
from shared_runs import bound_of

from vdm_jax.data import load
from vdm_jax.run import pretrained


def test_the_photographs_model_is_better_than_jpeg_xl_on_photographs(tmp_path):
    """On 16 test crops of each photograph; JPEG-XL needs 3.88 bits per dim of all of them."""
    of, images = pretrained.read("photos"), load("photos32", data_dir=tmp_path)
    chosen = [np.flatnonzero(images.source["test"] == n)[:16] for n in range(5)]
    assert 3.0 < bound_of(of, images.test[np.concatenate(chosen)], draws=2) < 3.75
