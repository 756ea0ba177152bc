"""Files that lie about themselves: one clear line, in little time and memory."""

import contextlib
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vdm_jax.data import DataError, bounded, load, published
from vdm_jax.data import folder as folders
from vdm_jax.data.imagenet_files import npz_blocks, png_blocks

ROOT = Path(__file__).parents[2]
TRAIN = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)
EVENT = (4, 4, 3)


def quick(examples: int):
    """The same examples in every run, and as many as take some seconds."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def header(shape, descr: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def tar(mode: str = "w", **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def picture(format: str = "PNG", size=(4, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (1, 2, 3)).save(buffer, format)
    return buffer.getvalue()


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """A valid file with bytes changed, cut out, doubled or put in; now and then bytes alone."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        much = draw(st.integers(1, 40))
        match draw(st.sampled_from(["change", "cut", "double", "insert", "end", "ones"])):
            case "change":
                content[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "cut":
                del content[at : at + much]
            case "double":
                content[at:at] = content[at : at + much]
            case "insert":
                content[at:at] = draw(st.binary(max_size=much))
            case "end":
                del content[at:]
            case "ones":  # sizes and counts become huge
                content[at : at + 4] = b"\xff" * len(content[at : at + 4])
    return bytes(content)


@contextlib.contextmanager
def right_or_refused(name: object = ""):
    """What is done inside works, or is refused in one line that has the name."""
    said = ""
    try:
        yield
    except DataError as error:
        said = str(error)
    assert not said or ("\n" not in said and str(name) in said and len(said) > 20), said


def loaded(name: str, **arguments) -> None:
    with right_or_refused():
        data = load(name, **arguments)
        assert data.train.dtype == np.uint8 and data.train.ndim == 4 and data.train.size
        assert data.train.max() < data.levels


def blocks(read, path) -> None:
    with right_or_refused(path):
        for images, _ in read(path, EVENT, path.parent):
            assert images.dtype == np.uint8 and images.shape[1:] == EVENT


LABELS = {"train_label": np.arange(6), "test_label": np.arange(2), "test_source": np.arange(2)}
NPZ = npz(train=TRAIN, test=TRAIN[:2], **LABELS)
ROWS = npz(data=np.zeros((3, 48), np.uint8), labels=np.array([1, 2, 3]))


@quick(300)
@given(content=damaged(NPZ))
def test_any_bytes_as_npz(tmp_path, content):
    path = tmp_path / "any.npz"
    path.write_bytes(content)
    loaded("arrays", path=path, data_dir=tmp_path / "cache")


@quick(150)
@given(content=st.one_of(damaged(zipped(**{"a_1.npz": ROWS})), damaged(ROWS)))
def test_any_bytes_as_the_zip_of_imagenet(tmp_path, content):
    path = tmp_path / "any.zip"
    path.write_bytes(content)
    blocks(npz_blocks, path)
    path.write_bytes(zipped(**{"a_1.npz": content}))
    blocks(npz_blocks, path)


@quick(200)
@given(content=damaged(tar(**{"a.png": picture(), "b.png": picture()})))
def test_any_bytes_as_the_tar_of_imagenet(tmp_path, content):
    path = tmp_path / "any.tar"
    path.write_bytes(content)
    blocks(png_blocks, path)


CIFAR = {name: bytes(3073) for names in published._CIFAR10_FILES.values() for name in names}
PLAIN = tar(**CIFAR)


@quick(100)
@given(content=st.one_of(damaged(gzip.compress(PLAIN)), damaged(PLAIN).map(gzip.compress)))
def test_any_bytes_as_cifar10(tmp_path, content):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(content)
    with right_or_refused(path):
        records = list(published.PUBLISHED["cifar10"].records("train", {path.name: path}))
        assert all(record["image"].startswith(b"\x89PNG") for _, record in records)


IDX = np.array([2051, 2, 3, 3], ">u4").tobytes() + bytes(18)


@quick(100)
@given(content=st.one_of(damaged(gzip.compress(IDX)), damaged(IDX).map(gzip.compress)))
def test_any_bytes_as_mnist(tmp_path, content):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with right_or_refused(path):
        images = published._read_idx(path, 2051)
        assert images.ndim == 3


@quick(250)
@given(
    content=st.sampled_from(["PNG", "JPEG", "WEBP"]).flatmap(
        lambda format: damaged(picture(format))
    ),
    suffix=st.sampled_from(["png", "jpg", "webp"]),
    fit=st.sampled_from(["none", "crop", "resize"]),
)
def test_any_bytes_as_a_picture(tmp_path, content, suffix, fit):
    """Either what is there is decoded, or the message names the file."""
    folder = tmp_path / "pictures"
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "good.png").write_bytes(picture())
    for old in folder.glob("train/any.*"):
        old.unlink()
    bad = folder / "train" / f"any.{suffix}"
    bad.write_bytes(content)
    size = None if fit == "none" else 4
    with right_or_refused(bad):
        data = load("folder", path=folder, size=size, fit=fit, data_dir=tmp_path / "cache")
        assert data.train.shape == (2, 4, 4, 3)


META = json.dumps(
    {
        "format": 2,
        "levels": 256,
        "fingerprint": "0",
        "label_names": [],
        "files": {"train.npy": {"bytes": 1, "mtime_ns": 2, "sha256": "3"}},
    }
).encode()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*json.loads(META), "train.npy"]), inner, max_size=4)
    ),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())


@quick(150)
@given(content=damaged(META) | JSON)
@example(content=b"[" * 100_000)
@example(content=b'{"format": 2, "files": []}')
def test_any_bytes_as_the_description_of_a_decoded_copy(tmp_path, content):
    path = tmp_path / "mine.npz"
    path.write_bytes(npz(train=TRAIN, test=TRAIN[:2]))
    load("arrays", path=path, data_dir=tmp_path / "cache")
    (meta,) = (tmp_path / "cache").glob("decoded/*/meta.json")
    whole = meta.read_bytes()
    meta.write_bytes(content)
    loaded("arrays", path=path, data_dir=tmp_path / "cache")
    meta.write_bytes(whole)
    load("arrays", path=path, data_dir=tmp_path / "cache")


# ---- announced and true size ----

HUGE = 10**15


@pytest.mark.parametrize(
    ("members", "match"),
    [
        (
            {"train.npy": header((HUGE, 1, 1)) + bytes(9), "test.npy": npy(TRAIN)},
            r"'train' in .* \(its header promises uint8 \(1000000000000000, 1, 1\), which is "
            "1,000,000,000,000,000 bytes, but the archive has 9",
        ),
        (
            {"train.npy": header((2, 2, 2)) + bytes(10**7), "test.npy": npy(TRAIN)},
            r"promises uint8 \(2, 2, 2\), which is 8 bytes, but the archive has 10,000,000",
        ),
        (
            {"train.npy": header((-2, -4, 1)) + bytes(8), "test.npy": npy(TRAIN)},
            "its header promises uint8",
        ),
        ({"train.npy": header((8,), "|O") + bytes(64), "test.npy": b""}, "no object is unpickled"),
        (
            {"train.npy": header((1, 1, 8), "|V8") + bytes(64), "test.npy": npy(TRAIN)},
            r"'train' holds \|V8 values",
        ),
        ({"train.npy": b"\x93NUMPY\x01\x00" + b"\xff" * 90, "test.npy": b""}, "can't be read"),
        ({"train.npy": b"\x93NUMPY\x09\x00" + b"\xff" * 90, "test.npy": b""}, r"version \(9, 0\)"),
        (
            {"train.npy": npz(train=TRAIN), "test.npy": npy(TRAIN)},  # a zip in the zip
            "'train' in .* can't be read",
        ),
        (
            {
                "train.npy": npy(TRAIN),
                "test.npy": npy(TRAIN),
                "train_label.npy": header((6,), "<U9"),
            },
            r"'train_label' in .* \(its header promises <U9",
        ),
    ],
)
def test_an_npz_that_promises_what_it_does_not_hold(tmp_path, one_clear_line, members, match):
    path = tmp_path / "mine.npz"
    path.write_bytes(zipped(**members))
    with one_clear_line(match):
        load("arrays", path=path, data_dir=tmp_path / "cache")
    assert not list(tmp_path.glob("cache/decoded/arrays-*"))


def test_an_npz_whose_directory_tells_another_size_than_unpacks(tmp_path, one_clear_line):
    """No more comes out of a member than the archive's directory says, whatever is packed in it."""
    whole = zipped(**{"train.npy": header((2, 2, 2)) + bytes(10**7), "test.npy": npy(TRAIN)})
    size = len(header((2, 2, 2))) + 10**7
    lying = whole.replace(size.to_bytes(4, "little"), (size - 10**7 + 8).to_bytes(4, "little"))
    assert lying != whole
    path = tmp_path / "mine.npz"
    path.write_bytes(lying)
    with one_clear_line("'train' in .* can't be read .*CRC"):
        load("arrays", path=path, data_dir=tmp_path / "cache")


def test_members_that_are_packed_otherwise_or_encrypted(tmp_path, one_clear_line):
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for key in ("train", "test"):
            archive.writestr(f"{key}.npy", npy(TRAIN))
    with one_clear_line("train.npy is packed by method 14, not deflate"):
        load("arrays", path=path, data_dir=tmp_path / "cache")
    content = bytearray(zipped(**{"train.npy": npy(TRAIN), "test.npy": npy(TRAIN)}))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with one_clear_line("train.npy is encrypted"):
        load("arrays", path=path, data_dir=tmp_path / "cache")


def test_data_larger_than_the_disk_are_refused_before_it_is_full(
    tmp_path, monkeypatch, one_clear_line
):
    path = tmp_path / "mine.npz"
    path.write_bytes(NPZ)
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr("vdm_jax.data.cache.shutil.disk_usage", lambda _: usage)
    with one_clear_line("it takes 128 bytes of disk, of which 100 are free; free some space"):
        load("arrays", path=path, data_dir=tmp_path / "cache")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, ">u2"])
def test_arrays_of_several_pieces_are_right(tmp_path, monkeypatch, order, dtype):
    monkeypatch.setattr("vdm_jax.data.arrays._PIECE", 100)
    train = np.random.default_rng(0).integers(0, 256, (23, 3, 5, 2)).astype(dtype, order=order)
    path = tmp_path / "mine.npz"
    path.write_bytes(npz(train=train, test=train[:1]))
    data = load("arrays", path=path, data_dir=tmp_path / "cache")
    np.testing.assert_array_equal(data.train, train)
    np.testing.assert_array_equal(data.test, train[:1])


def test_what_is_read_at_once_has_a_limit(tmp_path, monkeypatch, one_clear_line):
    monkeypatch.setattr("vdm_jax.data.arrays.MOST_AT_ONCE", 40)
    path = tmp_path / "mine.npz"
    path.write_bytes(npz(train=np.asfortranarray(TRAIN), test=TRAIN[:2]))
    with one_clear_line(r"'train' in .* \(it has 96 bytes; at most 40 are read at once"):
        load("arrays", path=path, data_dir=tmp_path / "cache")
    path.write_bytes(npz(train=TRAIN, test=TRAIN[:2], train_source=np.zeros(6)))
    with one_clear_line(r"'train_source' in .* \(it has 48 bytes; at most 40"):
        load("arrays", path=path, data_dir=tmp_path / "cache")


def test_a_stream_that_unpacks_to_more_than_it_may():
    assert bounded.Limited(io.BytesIO(bytes(50)), 50).read() == bytes(50)
    with pytest.raises(ValueError, match="it unpacks to more than 50 bytes"):
        bounded.Limited(io.BytesIO(bytes(51)), 50).read()
    with pytest.raises(ValueError, match="more than 3 bytes"):
        bounded.Limited(io.BytesIO(bytes(51)), 3).read(4)


def test_archives_that_unpack_to_more_than_they_may(tmp_path, monkeypatch, one_clear_line):
    monkeypatch.setattr(published, "_MOST", 10_000)
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(gzip.compress(tar(readme=bytes(30_000), **CIFAR)))
    with one_clear_line("can't be read as .tar.gz: it unpacks to more than 10,000 bytes"):
        list(published.PUBLISHED["cifar10"].records("train", {path.name: path}))
    path.write_bytes(gzip.compress(IDX + bytes(10_000)))
    with one_clear_line("no gzipped IDX file: it unpacks to more than 10,000 bytes"):
        published._read_idx(path, 2051)


def test_nothing_is_unpacked_to_disk_by_the_name_of_a_member(tmp_path):
    """Absolute paths, "..", links and devices: passed over, or read as what they hold."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("../../evil.png", str(tmp_path / "evil.png")):
            info = tarfile.TarInfo(name)
            info.size = len(picture())
            archive.addfile(info, io.BytesIO(picture()))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    path = inside / "images.tar"
    path.write_bytes(buffer.getvalue())
    assert len(list(png_blocks(path, EVENT, inside))) == 2
    path.write_bytes(zipped(**{"../../evil_1.npz": ROWS, "/evil_2.npz": ROWS}))
    assert sum(len(images) for images, _ in npz_blocks(path, EVENT, inside)) == 6
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == {path}


def test_a_tar_member_larger_than_any_picture(tmp_path, one_clear_line):
    info = tarfile.TarInfo("a.png")
    info.size = 1 << 40
    path = tmp_path / "images.tar"
    path.write_bytes(info.tobuf() + bytes(1024))
    with one_clear_line("a.png has 1,099,511,627,776 bytes, over 16,777,216"):
        list(png_blocks(path, EVENT, tmp_path))


# ---- pictures ----


def one_picture(folder: Path, content: bytes) -> Path:
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        (folder / part / "good.png").write_bytes(picture())
    (folder / "train" / "bad.png").write_bytes(content)
    return folder


@pytest.mark.parametrize("side", [10_000, 14_000])  # Pillow's warning, and its error
def test_a_picture_that_unpacks_to_very_many_pixels(tmp_path, one_clear_line, side):
    white = Image.new("1", (side, side))
    buffer = io.BytesIO()
    white.save(buffer, "PNG")
    with one_clear_line(rf"bad.png is too large \(Image size \({side**2} pixels\) exceeds limit"):
        load("folder", path=one_picture(tmp_path / "f", buffer.getvalue()), data_dir=tmp_path)


def test_a_picture_file_larger_than_any_picture(tmp_path, monkeypatch, one_clear_line):
    monkeypatch.setattr(folders, "MOST_BYTES", 1000)
    with one_clear_line("bad.png has 2,000 bytes; wanted pictures of at most 1,000"):
        load("folder", path=one_picture(tmp_path / "f", bytes(2000)), data_dir=tmp_path)


def test_a_pipe_among_the_pictures_is_not_waited_for(tmp_path, one_clear_line):
    folder = one_picture(tmp_path / "f", picture())
    os.mkfifo(folder / "train" / "pipe.png")
    with one_clear_line("pipe.png is neither file nor folder"):
        load("folder", path=folder, data_dir=tmp_path)


@pytest.mark.parametrize("size", ["100000x100000", "9" * 5000, "٣x٣x٣", "x", "", "-1", 10**12])
def test_sizes_that_are_none(tmp_path, one_clear_line, size):
    with one_clear_line("size="):
        load("folder", path=tmp_path, size=size, fit="crop", data_dir=tmp_path)


@pytest.mark.parametrize("argument", ["path", "data_dir", "manual_dir"])
@pytest.mark.parametrize("value", ["~nobody-of-this-name/x", "a\0b", "n" * 5000])
def test_paths_that_are_none(tmp_path, one_clear_line, argument, value):
    arguments = {"path": tmp_path / "x.npz", argument: value}
    with one_clear_line(f"{argument}=.* can't be a path"):
        load("arrays", **arguments)


# ---- memory ----

BOMB = """
import resource, sys
from vdm_jax.data import DataError, load
with open("/proc/self/status") as file:
    (now,) = [int(line.split()[1]) << 10 for line in file if line.startswith("VmData")]
resource.setrlimit(resource.RLIMIT_DATA, (now + (100 << 20),) * 2)  # files mapped are not counted
for path in sys.argv[2:]:
    try:
        load("arrays", path=path, data_dir=sys.argv[1])
        print("loaded")
    except DataError as error:
        print(error)
"""


def test_bombs_take_no_memory(tmp_path):
    """In a process that may take 100 MiB more: 200 MiB that are there, and what claims to be."""
    names = ["true", "false", "text"]
    paths = [tmp_path / f"{name}.npz" for name in names]
    zeros, small = bytes(1 << 20), npy(TRAIN[:, :1, :1])
    with zipfile.ZipFile(paths[0], "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("train.npy", "w", force_zip64=True) as file:
            file.write(header((200, 1024, 1024)))
            for _ in range(200):
                file.write(zeros)
        archive.writestr("test.npy", npy(np.zeros((1, 1024, 1024), np.uint8)))
    paths[1].write_bytes(zipped(**{"train.npy": header((HUGE, 1, 1)), "test.npy": small}))
    # A header of 500 MB.
    long = b"\x93NUMPY\x02\x00" + (500 << 20).to_bytes(4, "little") + b" " * (50 << 20)
    paths[2].write_bytes(zipped(**{"train.npy": long, "test.npy": small}))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BOMB), str(tmp_path / "cache"), *map(str, paths)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0] == "loaded" and len(lines) == 3, done.stdout + done.stderr
    assert "its header promises uint8" in lines[1]
    assert "can't be read" in lines[2]
