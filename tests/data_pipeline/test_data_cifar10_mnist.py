"""CIFAR-10 and MNIST, from archives in the original layout to memory-mapped pixels."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from vdm_jax.data import load
from vdm_jax.data.cifar10_mnist import PUBLISHED
from vdm_jax.data.image_data import fingerprint


@pytest.mark.parametrize(
    ("name", "shape", "label"), [("cifar10", (32, 32, 3), "label{}"), ("mnist", (28, 28, 1), "{}")]
)
def test_from_the_archives_and_then_from_the_decoded_copy(
    request, tmp_path, capfd, name, shape, label
):
    small = request.getfixturevalue(name)
    data = load(name, data_dir=tmp_path / "d", manual_dir=small.manual_dir, class_labels=True)
    small.check(data)
    assert isinstance(data.train, np.memmap)
    assert (data.name, data.levels, data.event_shape, data.source) == (name, 256, shape, None)
    assert data.label_names == tuple(label.format(i) for i in range(10))
    assert data.fingerprint == fingerprint(np.array(data.train), np.array(data.test), 256)
    assert "tensorflow" not in sys.modules
    assert capfd.readouterr() == ("", f"vdm_jax: preparing {name} in {tmp_path / 'd'} (once)\n")
    shutil.rmtree(small.manual_dir)
    again = load(name, data_dir=tmp_path / "d")
    small.check(again)
    assert again.fingerprint == data.fingerprint
    assert capfd.readouterr() == ("", "")


def test_manual_dir_defaults_to_data_dir_manual(mnist, tmp_path):
    mnist.check(load("mnist", data_dir=tmp_path))


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_wrong_checksum_in_manual_dir(cifar10, tmp_path, one_clear_line, damage):
    archive = cifar10.archives[0]
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content if damage == "flip" else content[:-1000])
    size = archive.stat().st_size
    with one_clear_line(f"{archive} has a wrong checksum: it has {size} bytes .* from http://"):
        load("cifar10", data_dir=tmp_path / "d", manual_dir=cifar10.manual_dir)


def test_the_table_agrees_with_tensorflow_datasets():
    import tensorflow_datasets as tfds

    for name, spec in PUBLISHED.items():
        known = tfds.builder_cls(name).url_infos
        for archive in spec.archives:
            (info,) = [i for url, i in known.items() if Path(url).name == archive.filename]
            assert (info.size, info.checksum) == (archive.size, archive.sha256)
