"""Compression of random images by random models, and every flip of every byte of a file."""

import golden
import known
import numpy as np
import pytest
import tiny
import vdmz
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vdm_jax.compression import file
from vdm_jax.run import training


@settings(max_examples=12, derandomize=True, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3)),
    levels=st.integers(2, 256),
    count=st.integers(1, 9),
    num_steps=st.integers(1, 6),
    grid=st.integers(1, 5),
    gamma_min=st.floats(-16.0, 1.0),
    seed=st.integers(0, 99),
    reverse_var=st.sampled_from(["posterior", "transition", "learned"]),
    placed=st.booleans(),
)
def test_any_images(shape, levels, count, num_steps, grid, gamma_min, seed, reverse_var, placed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, levels, (count, *shape), dtype=np.int64)
    network = known.learned if reverse_var == "learned" else known.denoise
    model = known.model(gamma_min, shape, levels, network, reverse_var=reverse_var)
    blocks = int(rng.integers(1, count + 1))
    content, _ = model.compress(images, num_steps, grid, blocks, placed)
    np.testing.assert_array_equal(model.decompress(content)[0], images)


def test_blocks_of_all_kinds_in_one_file():
    """Noise stays raw, a value that the model hardly knows goes to the simple one alone; what the
    summary says is of the images by the VDM, whatever the others are."""
    rng, count, shape = np.random.default_rng(0), 9, (9, 4, 4, 1)
    usual, noise = rng.integers(80, 90, shape, np.uint8), rng.integers(0, 256, shape, np.uint8)
    plain = np.full(shape, 255, np.uint8)
    plain[:4] = noise[:4]  # as seeds they have bits enough
    images, model = np.concatenate([usual, noise, plain]), known.model(levels=256)
    content, summary = model.compress(images, num_steps=20, blocks=3)
    np.testing.assert_array_equal(model.decompress(content)[0], images)
    header, payload = file.unpack(content)
    assert [block.mode for block in header.blocks] == [file.CHAIN, file.RAW, file.FALLBACK]
    assert (summary.coded, summary.raw) == (count - header.blocks[0].seeds, count)
    assert summary.seeds == count + header.blocks[0].seeds
    other, alone = model.compress(np.concatenate([usual, plain, noise]), 20, blocks=3)
    size = header.blocks[0].size
    assert payload[:size] == file.unpack(other)[1][:size]  # lanes don't mix
    assert (summary.net, summary.bound) == pytest.approx((alone.net, alone.bound), abs=1e-6)


@pytest.mark.usefixtures("compiled_once")
def test_a_published_checkpoint(tmp_path, capsys):
    """It is untrained: with it nothing gets smaller, and images are kept as raw pixels."""
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
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), noise)


@pytest.mark.usefixtures("compiled_once")
@pytest.mark.parametrize("published", [False, True])
def test_grey_pictures_compress_with_a_model_of_three_channels(tmp_path, capsys, published):
    """Also with the run that was trained on them, with the settings as they are."""
    folder = tmp_path / "in"
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
    for number, image in enumerate(images):
        path = folder / f"{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    model = f"--official={golden.DATA / 'no_fourier_odd_batch' / 'checkpoints-0'}"
    if not published:
        config = tiny.config(name="folder", path=str(folder), dir=str(tmp_path / "data"))
        config.model.update(network="mlp", head="levels")
        training.train(config, tmp_path / "run")
        assert "each is taken as three equal channels" in capsys.readouterr().err
        model = f"--workdir={tmp_path / 'run'}"
    file = tmp_path / "a.vdmz"
    vdmz.plain_compress(model, folder, "--num_steps=2", "--nocompare", "-o", file)
    assert (
        "30 pictures 8x8x1 of the folder in (their pixels), grey; for the model"
        in capsys.readouterr().out
    )
    vdmz.plain_decompress(model, file, "-o", tmp_path / "out")
    for number, image in enumerate(images):
        with Image.open(tmp_path / "out" / f"{number % 3}" / f"{number}.png") as found:
            assert found.mode == "L"
            np.testing.assert_array_equal(np.asarray(found), image)
