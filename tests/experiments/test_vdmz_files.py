"""VDMZ files that are damaged, lie or come from elsewhere: each is told by what it is."""

import io
import re
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
import vdmz
from PIL import Image

from vdm_jax import compression
from vdm_jax.compression import VdmzError, file
from vdm_jax.run import coding
from vdm_jax.run.cli import UserError

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture
def refused(digits_run, tmp_path):
    """The one line of decompress for a file of these bytes; it must leave nothing behind."""
    path, out = tmp_path / "a.vdmz", tmp_path / "out"
    out.mkdir()

    def ask(content: bytes, *arguments: object) -> str:
        path.write_bytes(content)
        given = [f"--workdir={digits_run}", path, "-o", out / "images", *arguments]
        with pytest.raises(UserError) as caught:
            vdmz.plain_decompress(*given)
        assert list(out.iterdir()) == [] and path.read_bytes() == content
        said = str(caught.value)
        assert said.startswith(f"{path}: ") and "\n" not in said
        return said.removeprefix(f"{path}: ")

    return ask


@pytest.fixture
def content(digits_file) -> bytes:
    return digits_file.path.read_bytes()


def test_every_flipped_byte_is_told_by_its_kind(content, digits_vdm):
    _, payload = file.unpack(content)
    kinds = [("it is no VDMZ file", 4), (r"it is of VDMZ version \d+; this program reads 1", 5)]
    kinds.append(("header.* get it anew", len(content) - len(payload)))
    kinds.append((r"its payload is damaged \(checksum\); get it anew", len(content)))
    for at in range(len(content)):
        kind = next(kind for kind, end in kinds if at < end)
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            damaged = content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :]
            with pytest.raises(VdmzError, match=kind):
                compression.decompress(damaged, digits_vdm)


def test_every_truncated_file_is_told(content, digits_vdm):
    header_ends = len(content) - len(file.unpack(content)[1])
    for size in range(len(content)):
        kind = "within its header" if size < header_ends else f"{len(content) - size} of "
        with pytest.raises(VdmzError, match=f"cut short.*{kind}" if size else "no VDMZ file"):
            compression.decompress(content[:size], digits_vdm)


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(vdmz.digits(1)[0]).save(buffer, "PNG")
    return buffer.getvalue()


def test_what_the_command_says_of_damaged_files(refused, content):
    for given, said in (
        (b"", "it is no VDMZ file"),
        (picture(), "it is no VDMZ file"),
        (content[:40], "within its header"),
        (content[:-1], "it is cut short: 1 of "),
        (content + b"\0", "1 bytes follow its end"),
        (content[:4] + b"\2" + content[5:], "VDMZ version 2; this program reads 1"),
        (content[:9] + b"\0" + content[10:], "its header is damaged"),
        (content[:-1] + bytes([content[-1] ^ 1]), "its payload is damaged (checksum)"),
    ):
        assert said in refused(given)


def test_another_model_and_another_machine_are_told_apart(refused, content):
    header, _ = file.unpack(content)
    said = refused(content, "--checkpoint=20")
    found = re.search("another model .SHA-256 ([0-9a-f]+)…, this one is ([0-9a-f]+)…", said)
    assert found[1] == header.model.hex() != found[2]
    said = refused(vdmz.changed(content, probe=header.probe ^ 1))
    assert "this machine computes the network otherwise" in said and "probe" in said
    said = refused(vdmz.changed(content, tables=bytes(4)))
    assert "this machine computes other coding tables" in said
    said = refused(vdmz.changed(content, levels=16))
    assert "promises other images than its model's" in said


def test_a_header_that_promises_much_is_refused_at_once(refused, content, monkeypatch):
    header, _ = file.unpack(content)
    (block,) = header.blocks

    def loads(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(coding, "load", loads)
    lies = [
        {"blocks": (block._replace(images=1 << 50),)},
        {"blocks": (block._replace(images=1 << 62, size=1 << 62),)},
        {"event_shape": (1 << 40, 8, 1)},
        {"blocks": tuple([block._replace(images=1 << 50)] * 4096)},
    ]
    tracemalloc.start()
    began = time.process_time()
    for lie in lies:
        assert "get it anew" in refused(vdmz.changed(content, **lie))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert time.process_time() - began < 2


def test_what_came_in_is_checked_before_anything_is_decoded(refused, content, monkeypatch):
    def decodes(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(compression, "decompress", decodes)
    assert "of no known kind" in refused(vdmz.changed(content, meta=b"\x09"))
    assert "of no known kind" in refused(vdmz.changed(content, meta=b""))
    assert "pictures" in refused(vdmz.changed(content, meta=b"\3\1" + zlib.compress(b"a.png\0")))


def test_a_payload_that_lies_is_told(refused, content):
    """With right checksums: what it decodes to isn't what was encoded."""
    header, payload = file.unpack(content)
    for at in np.linspace(0, len(payload) - 1, 6).astype(int):
        damaged = bytearray(payload)
        damaged[at] ^= 0x10
        said = refused(file.pack(header, bytes(damaged)))
        assert "damaged" in said


def number(content: bytes, at: int) -> tuple[int, int]:
    """LEB128: the number, and where the next one begins."""
    found = shift = 0
    while True:
        found |= (content[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if content[at - 1] < 0x80:
            return found, at


def test_a_file_is_as_documented(digits_run, digits_file, digits_vdm, tmp_path):
    """docs/vdmz.md, read with nothing but struct and zlib."""
    np.save(tmp_path / "in.npy", vdmz.digits(9)[..., None])
    vdmz.compress(digits_run, tmp_path / "in.npy", "--blocks=2", "-o", tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    magic, version, model, tables, probe, payload_crc = struct.unpack_from("<4sB16s4sII", content)
    assert (magic, version) == (b"VDMZ", 1) and model == compression.digest(digits_vdm)[:16]
    at = 33
    numbers = []
    for _ in range(7):
        value, at = number(content, at)
        numbers.append(value)
    assert numbers == [vdmz.STEPS, 2, 17 - 1, 8, 8, 1, 2]  # T, grid, levels - 1, shape, blocks
    blocks = []
    for _ in range(2):
        block = []
        for _ in range(4):
            value, at = number(content, at)
            block.append(value)
        blocks.append(block)
    meta_size, at = number(content, at)
    crcs = struct.unpack_from("<2I", content, at)
    meta = content[at + 8 : at + 8 + meta_size]
    assert meta == bytes([1, 32])
    at += 8 + meta_size
    (header_crc,) = struct.unpack_from("<I", content, at)
    assert header_crc == zlib.crc32(content[:at])
    payload = content[at + 4 :]
    assert payload_crc == zlib.crc32(payload) and len(payload) == blocks[0][3] + blocks[1][3]
    assert [block[:2] for block in blocks] == [[2, 5], [2, 4]]  # by the VDM, so many images
    assert all(0 < seeds < images for _, images, seeds, _ in blocks)
    pixels = vdmz.digits(9)
    assert crcs == (zlib.crc32(pixels[:5].tobytes()), zlib.crc32(pixels[5:].tobytes()))
    header, _ = file.unpack(content)
    assert (header.tables, header.probe) == (tables, probe)
