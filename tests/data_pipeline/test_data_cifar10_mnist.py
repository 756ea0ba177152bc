"""CIFAR-10 and MNIST, from archives in the original layout to memory-mapped pixels."""

import shutil
import sys

import numpy as np
import pytest

from vdm_jax.data import load
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


def test_wrong_checksum_in_manual_dir_which_defaults_to_data_dir_manual(
    cifar10, tmp_path, one_clear_line
):
    archive = cifar10.archives[0]
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    with one_clear_line(
        f"{archive} has a wrong checksum: it has {len(content)} bytes .* from http://"
    ):
        load("cifar10", data_dir=tmp_path)
