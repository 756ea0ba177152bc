"""compress and decompress as a user runs them: what comes back, and what is said of it."""

import re

import jax
import numpy as np
import pytest
import vdmz
from PIL import Image

from experiments import compress
from vdm_jax import compression
from vdm_jax.compression import file
from vdm_jax.run import restore
from vdm_jax.run.vdmz import progress

pytestmark = pytest.mark.usefixtures("compiled_once")


def test_an_npy_comes_back(digits_run, digits_file, tmp_path):
    out = vdmz.decompress(digits_run, digits_file.path, tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(out), np.load(digits_file.given), strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


def test_the_file_is_the_same_where_jax_is_set_to_float64(digits_run, digits_file, tmp_path):
    with jax.enable_x64(True):
        made = vdmz.compress(digits_run, digits_file.given, "-o", tmp_path / "wide.vdmz")
        out = vdmz.decompress(digits_run, made.path, tmp_path / "out.npy")
    assert made.path.read_bytes() == digits_file.path.read_bytes()
    np.testing.assert_array_equal(np.load(out), np.load(digits_file.given), strict=True)


def test_the_summary_says_what_the_file_came_to(digits_file):
    said, s = digits_file.said, digits_file.summary
    size = digits_file.path.stat().st_size
    assert "raw      512 bytes\n" in said
    assert f"written  {size:,} bytes, {8 * size / 512:.4f} bits per dim with all in it" in said
    assert f"{512 / size:.2f} times less: {digits_file.path}\n" in said
    assert s.images == 8 and s.raw == 0 and s.coded + s.seeds == 8
    assert f"net      {s.net:.4f} bits per dim, of {s.coded} images by the VDM" in said
    assert f"bound    {s.bound:.4f} bits per dim on the same images; net is " in said
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in said.splitlines()]
    told = {row[0]: float(row[1]) for row in rows if len(row) == 2 and row[1][:1].isdigit()}
    assert told["raw"] == 8 and told["this file"] == pytest.approx(size / 64, abs=1e-4)
    assert told["PNG, each image"] > told["raw"] > told["this file"]  # 8x8 is little for a PNG


def test_a_folder_comes_back_as_png_pictures(digits_run, tmp_path):
    images, folder = vdmz.digits(4), tmp_path / "in"
    names = [f"of {number % 2}/{number}.png" for number in range(4)]
    for name, image in zip(names, images, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    made = vdmz.compress(digits_run, folder, "--nocompare", "-o", tmp_path / "a.vdmz")
    # One image by the VDM has no standard error.
    assert made.summary.coded == 1 and "nan" not in made.said and "codec" not in made.said
    out = vdmz.decompress(digits_run, made.path, tmp_path / "out")
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == sorted(names)
    for name, image in zip(names, images, strict=True):
        with Image.open(out / name) as picture:
            assert picture.mode == "L"
            np.testing.assert_array_equal(np.asarray(picture), image)


def test_pictures_of_any_sizes_come_back_from_tiles(digits_run, tmp_path):
    digits = np.concatenate(np.split(vdmz.digits(6), 3), axis=1).reshape(2, 24, 8)
    pictures = {"a.png": digits[0], "of/b.png": digits[1, :13, :7]}
    for name, pixels in pictures.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    made = vdmz.compress(digits_run, tmp_path / "in", "--tile=8", "-o", tmp_path / "a.vdmz")
    assert "2 pictures in 5 tiles 8x8 of the folder in" in made.said
    assert "raw      283 bytes\n" in made.said  # 24 x 8 and 13 x 7: of the pictures, not the tiles
    assert "PNG, each image" in made.said and "mosaic" not in made.said
    out = vdmz.decompress(digits_run, made.path, tmp_path / "out")
    for name, pixels in pictures.items():
        with Image.open(out / name) as picture:
            np.testing.assert_array_equal(np.asarray(picture), pixels)


def test_the_run_s_own_images_in_blocks(digits_run, digits_vdm, tmp_path):
    out = tmp_path / "test.vdmz"
    made = vdmz.compress(digits_run, "--split=test", "--blocks=36", "--nocompare", "-o", out)
    _, data = restore.images_of(restore.saved(digits_run, None), {})
    images, _ = compression.decompress(out.read_bytes(), *digits_vdm)
    np.testing.assert_array_equal(images, data.test)
    header, _ = file.unpack(out.read_bytes())
    assert len(header.blocks) == 36 and {block.images for block in header.blocks} == {10}
    assert f"{len(images)} test images of digits; {digits_run}, step 60, T = 20\n" in made.said
    # Bits-back coding comes to the bound, whatever the model.
    s = made.summary
    assert abs(s.net - s.bound) < max(5 * s.excess_error, 0.03 * s.bound)


def test_the_bar_goes_back_where_the_codec_begins_anew(capsys):
    """A stack ran empty behind its first image: one image of the four is another seed now."""
    with progress("encoded", 4) as tell:
        for done, of in ((1, 3), (1, 2), (2, 2)):
            tell(done, of)
    assert re.findall(r"encoded (\d/\d)", capsys.readouterr().out) == ["2/4", "3/4", "4/4"]


def test_other_codecs_take_some_images_evenly_or_say_why_not():
    images = np.arange(10)[:, None, None, None]
    assert compress.some(images, 4).reshape(-1).tolist() == [0, 3, 6, 9]
    assert compress.some(images, 10) is images
    told = compress.compared(np.zeros((1, 1, 8200, 1), np.uint8), 100, "this file")
    assert told.startswith("| codec") and "| this file |" in told
    assert "Other codecs were not compared: images must have at most 8192 pixels a side" in told
