"""compress and decompress refuse in one line what they can't do, and leave nothing behind."""

import json
from unittest.mock import Mock

import golden
import numpy as np
import pytest
import vdmz
from PIL import Image

from vdm_jax import compression
from vdm_jax.compression import file
from vdm_jax.errors import UserError
from vdm_jax.run import restore
from vdm_jax.run import vdmz as commands

pytestmark = pytest.mark.usefixtures("compiled_once")
GOLDEN = f"--official={golden.DATA / 'scalar_gamma' / 'checkpoints-0'}"


@pytest.fixture
def refused(tmp_path):
    """Returns the one line of a command that ends with -o and a path; nothing may be left there."""
    out = tmp_path / "out"
    out.mkdir()

    def ask(command, *arguments: object, name: str = "a") -> str:
        with pytest.raises(UserError) as caught:
            command(*arguments, "-o", out / name)
        assert list(out.iterdir()) == []
        said = str(caught.value)
        assert said and "\n" not in said
        return said

    return ask


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Files, of which `good.npy` alone is what the run takes."""
    folder, good = tmp_path_factory.mktemp("in"), vdmz.digits(3)
    for name, array in {"good": good, "small": good[:, :7], "bright": good + 1}.items():
        np.save(folder / f"{name}.npy", array)
    np.savez(folder / "several.npz", train=good)
    return folder


@pytest.fixture
def of_file(refused, digits_run, tmp_path):
    """Returns what decompress says of a file of these bytes."""

    def ask(content: bytes, *arguments: object) -> str:
        path = tmp_path / "a.vdmz"
        path.write_bytes(content)
        said = refused(vdmz.plain_decompress, f"--workdir={digits_run}", path, *arguments)
        assert said.startswith(f"{path}: ")
        return said

    return ask


def test_what_compress_refuses(digits_run, images, refused):
    run, good = f"--workdir={digits_run}", images / "good.npy"
    for arguments, words in (
        ([run, images / "small.npy"], "must be [n, 8, 8, 1], as the model's, got [3, 7, 8, 1]"),
        ([run, images / "bright.npy"], "in [0, 17), the model's levels, got uint8 from 1 to 17"),
        ([run], "wanted either INPUT, a folder of pictures or an .npy, or --split=test"),
        ([run, good, "--split=test"], "wanted either INPUT, a folder of pictures or an .npy, or"),
        ([run, "--split=test", "--tile=8"], "--tile cuts the pictures of INPUT, a folder"),
        ([run, good, "--tile=8"], "--tile cuts the pictures of a folder; "),
        ([run, good, "--blocks=4"], "blocks must be at most 3, one for each image, got 4"),
        ([run, good, "--grid=65"], "--grid=65"),
        ([run, good, "--checkpoint=7"], "no checkpoint of step 7"),
        ([run, good, GOLDEN], "one of --workdir=RUN"),
        ([good], "name the model by one of --workdir=RUN"),
        (["--pretrained=digits", images / "small.npy"], "of 8x8, but what is given has 7x8"),
        ([GOLDEN, good], "is for images of 3 channel(s), but"),
        ([GOLDEN, "--split=test"], "--split is of a run's images"),
    ):
        assert words in refused(vdmz.plain_compress, *arguments)


def test_sizes_and_values_that_no_model_takes(images, refused, tmp_path):
    """In the words of the command: it has no configuration, and no setting `levels`."""
    Image.new("RGB", (70, 70)).save(tmp_path / "a.png")
    np.save(tmp_path / "float.npy", np.zeros((2, 8, 8, 3)))
    pixels = "quantise or rescale them ((x * 255).round().astype('uint8') of x in [0, 1])"
    for given, words in (
        ([tmp_path, "--tile=63"], "multiples of 4, not 63x63; --tile=64 cuts a folder's"),
        ([tmp_path], "multiples of 4, not 70x70; --tile=64 cuts a folder's"),
        ([tmp_path / "float.npy"], f"holds float64 values; wanted integers in [0, 256): {pixels}"),
        ([images / "several.npz"], "several.npz is an .npz; wanted an .npy of integers"),
    ):
        said = refused(vdmz.plain_compress, "--pretrained=photos", *given)
        assert words in said and "config" not in said and "levels" not in said


def test_what_decompress_refuses(digits_run, digits_file, images, refused):
    run = f"--workdir={digits_run}"
    for arguments, name, words in (
        ([run], "a", "wanted FILE.vdmz, which experiments.compress wrote"),
        ([run, images / "none.vdmz"], "a", "none.vdmz is no file; wanted FILE.vdmz"),
        ([run, digits_file.path], "a.png", "a.png would be an .npy, as what was compressed"),
    ):
        assert words in refused(vdmz.plain_decompress, *arguments, name=name)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"data": {"levels": 1000}}, "60 doesn't say of which images it is"),
        ({"model": {"channels": 32}}, "the parameter "),
        ({"model": {"decoder": "density"}}, "is no VDM of pixel levels ("),
    ],
)
def test_runs_that_do_not_compress(digits_run, images, monkeypatch, refused, parts, said):
    """As if their checkpoints had been made with other settings."""
    saved = json.loads((digits_run / "config.json").read_text())
    for name, values in parts.items():
        (saved if name == "data" else saved["config"])[name].update(values)
    monkeypatch.setattr(restore, "load_settings", lambda *_: (60, saved))
    assert said in refused(vdmz.plain_compress, f"--workdir={digits_run}", images / "good.npy")


def test_what_may_not_be_written_is_told_before_anything_is_read(tmp_path):
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nothing")
    for command in (vdmz.plain_compress, vdmz.plain_decompress):
        for output, said in (
            (["-o", dangling], "dangling is there already"),
            (["-o", tmp_path / "no" / "a"], "is no folder; make it first"),
            ([], " is missing: what to write"),
        ):
            with pytest.raises(UserError, match=said):
                command("--workdir=NOWHERE", "input", *output)
    assert dangling.is_symlink()


def test_what_does_not_decode_is_not_written(digits_run, images, refused, monkeypatch):
    decode = compression.decompress
    arguments = [f"--workdir={digits_run}", images / "good.npy", "--num_steps=20"]

    for instead, said in (
        (lambda *a, **b: (decode(*a, **b)[0], b"else"), "it did not decode to the same images"),
        (Mock(side_effect=compression.VdmzError("a probe")), "written: on decoding, a probe"),
        (Mock(side_effect=MemoryError), "more memory than there is; with fewer --blocks"),
    ):
        monkeypatch.setattr(compression, "decompress", instead)
        assert said in refused(vdmz.plain_compress, *arguments)


def test_damaged_files_other_models_and_lies(of_file, digits_file, monkeypatch):
    content = digits_file.path.read_bytes()
    header, _ = file.unpack(content)
    for given, said in (
        (b"", "it is no VDMZ file"),
        (content[:40], "within its header"),
        (content[:-1], "it is cut short: 1 of "),
        (content[:-1] + bytes([content[-1] ^ 1]), "its payload is damaged (checksum)"),
        (vdmz.changed(content, levels=16), "promises other images than its model's"),
        (vdmz.changed(content, probe=header.probe ^ 1), "computes the network otherwise"),
    ):
        assert said in of_file(given)
    assert f"another model (SHA-256 {header.model.hex()}…" in of_file(content, "--checkpoint=20")
    # Of what came in, before anything is decoded.
    with monkeypatch.context() as patch:
        patch.setattr(compression, "decompress", lambda *_, **__: pytest.fail("it was decoded"))
        of_file(vdmz.changed(content, meta=b"\3\1"))
    # What no file can hold, before the model is loaded.
    monkeypatch.setattr(commands, "load", lambda *_: pytest.fail("the model was loaded"))
    assert "get it anew" in of_file(vdmz.changed(content, event_shape=(1 << 40, 8, 1)))


def test_a_small_file_of_huge_images_for_a_published_model(tmp_path, refused, monkeypatch):
    """All its digests are right, and it is refused before anything is decoded or compiled."""
    options = {"workdir": None, "official": GOLDEN.partition("=")[2]}
    options |= dict.fromkeys(("checkpoint", "model", "pretrained"))
    shape, path = (1024, 1024, 3), tmp_path / "huge.vdmz"
    model, _ = commands.load(options, shape)
    digest = compression.digest(model.bind(model.params), *model[1:])[:16]
    meta, blocks = b"\1\x20", (file.Block(file.CHAIN, 2, 1, 100, 0),)
    header = file.Header(digest, bytes(4), 0, shape, 256, 10, 8, blocks, meta)
    path.write_bytes(file.pack(header, bytes(99) + b"\1"))
    assert path.stat().st_size < 200
    monkeypatch.setattr(compression, "decompress", lambda *_, **__: pytest.fail("it was decoded"))
    said = refused(vdmz.plain_decompress, GOLDEN, path)
    assert said.startswith(f"{path}: its 1 x 1024x1024x3 pixels at once take 8192.0 GiB or more")
