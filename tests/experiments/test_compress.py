"""compress and decompress as a user runs them: what comes back, and what is said of it."""

import re

import golden
import jax
import numpy as np
import pytest
import vdmz
from commands import refused, run
from PIL import Image

from vdm_jax import compression
from vdm_jax.compression import ans, codec, encoder, fallback, file
from vdm_jax.run import coding
from vdm_jax.run import restore as trained

pytestmark = pytest.mark.usefixtures("compiled_once")


def grey(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def test_an_npy_comes_back_to_the_byte(digits_run, digits_file, tmp_path):
    out = vdmz.decompress(digits_run, digits_file.path, tmp_path / "out.npy")
    assert out.read_bytes() == digits_file.given.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


def test_the_summary_says_what_the_file_came_to(digits_file):
    said, summary = digits_file.said, digits_file.summary
    size = digits_file.path.stat().st_size
    _, payload = file.unpack(digits_file.path.read_bytes())
    assert "8 images 8x8x1 of digits.npy (int16); " in said and "step 60, T = 20\n" in said
    assert "raw      512 bytes\n" in said
    assert f"written  {size:,} bytes, {8 * size / 512:.4f} bits per dim with all in it" in said
    assert f"{512 / size:.2f} times less: {digits_file.path}\n" in said
    assert summary.images == 8 and summary.raw == 0 and summary.coded + summary.seeds == 8
    assert f"net      {summary.net:.4f} bits per dim, of {summary.coded} images by the VDM" in said
    assert f"bound    {summary.bound:.4f} bits per dim on the same images; net is " in said
    assert f"net is {100 * (summary.net / summary.bound - 1):+.2f} % ± " in said
    assert f"besides  {summary.seeds} images by the simple model, whose bits others borrow" in said
    assert re.search(r"speed    [0-9.]+ images/s encoding, network's share [0-9]+ %; [0-9.]+", said)
    assert "encoded 5/5" in said and "decoded 5/5" in said
    # What the stack holds: the simple model's images and the VDM's, beside what an empty one has.
    seeded = ans.PRECISION + compression_of_seeds(vdmz.digits(8)[: summary.seeds])
    assert 8 * len(payload) == pytest.approx(seeded + 64 * summary.coded * summary.net, abs=8)


def compression_of_seeds(images) -> float:
    with jax.enable_x64(True):
        stack = ans.Stacks(1)
        fallback.push(stack, 0, images[..., None], 17)
        return float(stack.bits()[0])


def test_other_codecs_are_told_beside_it(digits_file):
    table = digits_file.said.split("\n\n")[-1]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.strip().splitlines()]
    told = {name: float(value) for name, value in (row for row in rows[2:])}
    assert rows[0] == ["codec", "bits per dim"] and told["raw"] == 8
    assert told["this file"] == pytest.approx(digits_file.path.stat().st_size / 64, abs=1e-4)
    assert {"PNG, each image", "PNG, one mosaic", "WebP, each image", "xz"} <= set(told)
    assert told["PNG, each image"] > told["raw"] > told["this file"]  # 8x8 is little for a PNG


def test_an_npz_keeps_its_labels(digits_run, tmp_path):
    images = vdmz.digits(7)
    given = {"train": images[:4, ..., None], "label": np.arange(7.0), "test": images[4:, ..., None]}
    np.savez(tmp_path / "in.npz", **given)
    made = vdmz.compress(digits_run, tmp_path / "in.npz", "--nocompare", "-o", tmp_path / "a.vdmz")
    assert "7 images 8x8x1 of in.npz (train uint8, test uint8; 1 other arrays kept)" in made.said
    assert "codec" not in made.said
    with np.load(vdmz.decompress(digits_run, made.path, tmp_path / "out.npz")) as found:
        assert list(found) == list(given)
        for name, array in given.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_a_folder_comes_back_as_png_pictures(digits_run, tmp_path):
    images = vdmz.digits(6)
    flat = np.full((8, 8), 9, np.uint8)
    for number, image in enumerate(images):
        grey(tmp_path / "in" / f"of {number % 2}" / f"{number}.png", image)
    grey(tmp_path / "in" / "flat.jpg", flat, quality=95)
    (tmp_path / "in" / "notes.txt").write_text("not a picture")
    made = vdmz.compress(digits_run, tmp_path / "in", "--nocompare", "-o", tmp_path / "a.vdmz")
    assert "7 pictures 8x8x1 of the folder in (pixels of 1 JPEG or WebP pictures are kept" in (
        made.said
    )
    out = vdmz.decompress(digits_run, made.path, tmp_path / "out")
    names = [f"of {number % 2}/{number}.png" for number in range(6)]
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == sorted([*names, "flat.jpg.png"])
    for name, image in zip([*names, "flat.jpg.png"], [*images, flat], strict=True):
        with Image.open(out / name) as picture:
            assert picture.mode == "L"
            np.testing.assert_array_equal(np.asarray(picture), image)


def test_the_run_s_own_images_in_blocks(digits_run, digits_vdm, tmp_path):
    out = tmp_path / "test.vdmz"
    made = vdmz.compress(digits_run, "--split=test", "--blocks=90", "--nocompare", "-o", out)
    _, data = trained.images_of(digits_run, {})
    images, _ = compression.decompress(out.read_bytes(), digits_vdm)
    np.testing.assert_array_equal(images, data.test)
    header, _ = file.unpack(out.read_bytes())
    assert len(header.blocks) == 90 and {block.images for block in header.blocks} == {4}
    assert f"{len(images)} test images of digits; {digits_run}, step 60, T = 20\n" in made.said
    # Bits-back coding comes to the bound, whatever the model.
    assert abs(made.summary.net - made.summary.bound) < max(
        5 * made.summary.excess_error, 0.03 * made.summary.bound
    )


def test_one_image_takes_what_the_simple_model_takes(digits_run, tmp_path):
    np.save(tmp_path / "in.npy", vdmz.digits(1))
    made = vdmz.compress(digits_run, tmp_path / "in.npy", "-o", tmp_path / "a.vdmz")
    size = made.path.stat().st_size
    assert f"written  {size} bytes, {8 * size / 64:.4f} bits per dim with all in it" in made.said
    assert "besides  1 image by the simple model, none by the VDM, which has too few" in made.said
    assert not re.search(r"^(net|bound|speed)|nan", made.said, re.MULTILINE)
    out = vdmz.decompress(digits_run, made.path, tmp_path / "out.npy")
    assert out.read_bytes() == made.given.read_bytes()


def test_what_one_image_by_the_vdm_tells_has_no_error(digits_run, tmp_path):
    np.save(tmp_path / "in.npy", vdmz.digits(4))
    made = vdmz.compress(digits_run, tmp_path / "in.npy", "-o", tmp_path / "a.vdmz")
    assert made.summary.coded == 1 and "nan" not in made.said
    assert f"net is {100 * made.summary.overhead:+.2f} % off; " in made.said
    out = vdmz.decompress(digits_run, made.path, tmp_path / "out.npy")
    assert out.read_bytes() == made.given.read_bytes()


def test_what_would_grow_is_left_to_the_simple_model(digits_run, tmp_path):
    """Noise, which the VDM makes longer in two steps."""
    noise = np.random.default_rng(0).integers(0, 17, (6, 8, 8), np.uint8)
    np.save(tmp_path / "in.npy", noise)
    out = tmp_path / "a.vdmz"
    made = vdmz.compress(digits_run, tmp_path / "in.npy", "--num_steps=2", "-o", out)
    assert "besides  6 images by the simple model, none by the VDM, which has too few" in made.said
    assert made.summary.coded == 0 and made.summary.seeds == 6
    header, payload = file.unpack(out.read_bytes())
    assert [block.mode for block in header.blocks] == [file.FALLBACK]
    assert 8 * len(payload) < 1.15 * np.log2(17) * noise.size
    found = vdmz.decompress(digits_run, out, tmp_path / "out.npy")
    assert found.read_bytes() == made.given.read_bytes()


def test_what_any_model_makes_longer_is_kept_as_it_is(tmp_path, capsys):
    model = f"--official={golden.DATA / 'no_fourier_odd_batch' / 'checkpoints-0'}"
    noise = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    np.save(tmp_path / "in.npy", noise)
    out = tmp_path / "a.vdmz"
    vdmz.plain_compress(model, tmp_path / "in.npy", "--num_steps=1", "--nocompare", "-o", out)
    said = capsys.readouterr().out
    assert "besides  2 images kept as raw pixels: coded they would take more" in said
    header, payload = file.unpack(out.read_bytes())
    assert [block.mode for block in header.blocks] == [file.RAW] and payload == noise.tobytes()
    assert f"written  {out.stat().st_size} bytes" in said and "net " not in said
    vdmz.plain_decompress(model, out, "-o", tmp_path / "out.npy")
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "in.npy").read_bytes()


class NeverRaw(encoder.Encoder):
    """Golden models are untrained: with them nothing gets smaller."""

    def block(self, lane):
        block, _ = super().block(lane)
        coded, seeds = self._stacks.dump(lane), int(self._seeds[lane])
        return block._replace(mode=file.CHAIN, seeds=seeds, size=len(coded)), coded


def test_a_published_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(codec, "Encoder", NeverRaw)
    monkeypatch.setattr(file, "_check_plausible", lambda header: None)  # larger than its pixels
    of_model = golden.load("no_fourier_odd_batch")
    model = f"--official={of_model.folder / 'checkpoints-0'}"
    given = np.concatenate([of_model.expected["images"]] * 2)
    np.savez(tmp_path / "in.npz", images=given)
    arguments = ["--num_steps=10", tmp_path / "in.npz", "--nocompare", "-o", tmp_path / "a.vdmz"]
    summary = vdmz.plain_compress(model, *arguments)
    header, _ = file.unpack((tmp_path / "a.vdmz").read_bytes())
    assert header.event_shape == given.shape[1:] and header.levels == 256
    assert summary.bound == pytest.approx(of_model.expected["T10/bpd"], rel=0.1)
    assert summary.net == pytest.approx(summary.bound, rel=0.15)  # an untrained model's tails
    arguments = [tmp_path / "a.vdmz", "-o", tmp_path / "out.npz"]
    vdmz.plain_decompress(model, *arguments)
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_array_equal(found["images"], given)


def test_the_commands_by_themselves(digits_run, digits_file, tmp_path):
    """As processes: exit codes, and a decoder that shares nothing with the encoder."""
    model, out = f"--workdir={digits_run}", tmp_path / "out.npy"
    done = run("decompress", model, digits_file.path, "-o", out)
    assert done.returncode == 0, done.stderr
    assert f"written to {out}" in done.stdout
    assert out.read_bytes() == digits_file.given.read_bytes()
    said = refused("compress", model, digits_file.given, "-o", digits_file.path)
    assert f"{digits_file.path} is there already; name another, or remove it" in said


def test_the_bar_begins_anew_where_the_codec_does(capsys):
    """A stack ran empty behind its first image: one image of the three is a seed now."""
    with coding.progress("encoded") as tell:
        for done, of in ((1, 3), (1, 2), (2, 2)):
            tell(done, of)
    said = re.findall(r"encoded (\d/\d)", capsys.readouterr().out)
    assert said == ["1/3", "1/2", "2/2"]
