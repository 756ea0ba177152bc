"""Headers of arrays that are damaged, or lie: one line, whoever reads them."""

import os
import struct
import zipfile

import numpy as np
import pytest

from vdm_jax.data import decoded_cache, load, pictures_io

PLAIN = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }\n"
IMAGES = np.arange(96, dtype=np.uint8).reshape(6, 4, 4)


def file(header: str | bytes, version: int = 1, body: bytes = IMAGES.tobytes()) -> bytes:
    """An .npy of this header."""
    header = header.encode("latin1") if isinstance(header, str) else header
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + body


DAMAGED = {
    "does not tokenise": file("{'descr': '|u1', 'fortran_order': False, 'shape': (6, 4, 4, (((\n"),
    "indented": file("  {\n x"),
    "no text": file(bytes(range(128, 200)), version=3),
    "brackets without end": file("(" * 9000),
    "larger than any memory": file(PLAIN % ("|u1", (1 << 40, 4, 4))),
    "no size at all": file(PLAIN % ("|u1", (2**80, -4, 4))),
    "objects": file(PLAIN % ("|O", (6, 4, 4))),
    "an unknown type": file(PLAIN % ("hello", (6, 4, 4))),
    "an unknown version": file(PLAIN % ("|u1", (6, 4, 4)), version=9),
    "cut in its header": file(PLAIN % ("|u1", (6, 4, 4)))[:30],
    "cut before it": b"\x93NUMPY\1\0",
}
WHOLE = {
    "by columns": file(
        (PLAIN % ("|u1", (6, 4, 4))).replace("False", "True"), body=IMAGES.tobytes("F")
    ),
    "version 3": file(PLAIN % ("|u1", (6, 4, 4)), version=3),
}


def zipped(path, content: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        for part in ("train", "test"):
            archive.writestr(f"{part}.npy", content)
    return path


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_headers_are_one_line_for_every_reader(tmp_path, one_clear_line, name):
    path = tmp_path / "a.npy"
    path.write_bytes(DAMAGED[name])
    with one_clear_line("a.npy can't be read .*; wanted an .npy"):
        pictures_io.read(path)
    with one_clear_line("a.npz: array 'train' can't be read .*; wanted an .npz"):
        load("arrays", path=zipped(tmp_path / "a.npz", path.read_bytes()), data_dir=tmp_path / "d")


@pytest.mark.parametrize("name", WHOLE)
def test_rarer_headers_are_read(tmp_path, name):
    path = tmp_path / "a.npy"
    path.write_bytes(WHOLE[name])
    np.testing.assert_array_equal(pictures_io.read(path).images[..., 0], IMAGES)
    data = load("arrays", path=zipped(tmp_path / "a.npz", WHOLE[name]), data_dir=tmp_path / "d")
    np.testing.assert_array_equal(data.train[..., 0], IMAGES)


def test_a_member_that_is_no_array_and_a_decoded_copy_of_the_same_size_and_time(
    tmp_path, one_clear_line
):
    with one_clear_line("array 'train' can't be read .*magic string"):
        load("arrays", path=zipped(tmp_path / "a.npz", b"a text"), data_dir=tmp_path / "d")
    copy = tmp_path / "copy"
    extra = {"train_label": np.arange(6), "test_label": np.arange(6)}
    decoded_cache.write(copy, IMAGES[..., None], IMAGES[..., None], 256, extra, "abcdef")
    for name in ("train.npy", "train_label.npy"):
        whole, stat = (copy / name).read_bytes(), (copy / name).stat()
        (copy / name).write_bytes(whole.replace(b", }", b"(((", 1))
        os.utime(copy / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        with one_clear_line("the decoded copy of mine in .* is damaged .*; delete that folder"):
            decoded_cache.read(copy, "mine")
        (copy / name).write_bytes(whole)
        os.utime(copy / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
