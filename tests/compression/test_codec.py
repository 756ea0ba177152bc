"""Whole files: bit-exact round trips, what is in them, refusals."""

import struct
import tracemalloc
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import known
import numpy as np
import pytest

from vdm_jax import compression
from vdm_jax.compression import VdmzError, file, network
from vdm_jax.compression.network import Network

DATA = Path(__file__).parents[1] / "data" / "vdmz"
LEARNED = {"network": known.learned, "reverse_var": "learned"}


def round_trip(images, model, **given):
    content, summary = model.compress(images, **given)
    found, meta = model.decompress(content)
    np.testing.assert_array_equal(found, images)
    assert found.dtype == np.uint8 and meta == given.get("meta", b"")
    assert summary.gross == 8 * len(content) / images.size
    return content, summary


# ---- what is in a file ----


@pytest.mark.parametrize(
    ("name", "wide", "rates"),
    [
        ("posterior", False, (6.101307892762, 6.182330736683098, 6.099873940817056)),
        ("learned", True, (4.844409118518771, 5.2714840253653525, 4.841484789943303)),
    ],
)
@pytest.mark.parametrize("cores", [1, 2])
def test_files_are_those_that_were_written_before_to_the_byte(
    name, wide, rates, cores, monkeypatch
):
    """Whether JAX is set to 64 bits or not, on any number of cores. (The files are of 664caba.)"""
    monkeypatch.setattr(network, "_cores", lambda: cores)
    model = known.model(**(LEARNED if name == "learned" else {}))
    before = (DATA / f"{name}.vdmz").read_bytes()
    with jax.enable_x64(wide):
        content, summary = round_trip(known.images(14), model, num_steps=12, blocks=2, meta=b"meta")
    assert content == before
    assert summary.images == 14 and summary.coded == 10 and summary.seeds == 4
    np.testing.assert_allclose((summary.net, summary.bound, summary.path), rates, rtol=1e-9)


@pytest.mark.parametrize("cores", [1, 3])
def test_the_batches_of_a_file_depend_on_its_number_of_blocks_alone(cores, monkeypatch):
    monkeypatch.setattr(network, "_cores", lambda: cores)
    model = known.model()
    with jax.enable_x64(True):
        of = [Network(model.bind, model.params, np.zeros(3), lanes) for lanes in (1, 2, 11, 12, 64)]
    assert [each._parts for each in of] == [1, 2, 1, 6, 8]
    at_once = {1: [1, 1, 11, 2, 8], 3: [1, 2, 11, 6, 24]}[cores]
    assert [network.at_once(lanes) for lanes in (1, 2, 11, 12, 64)] == at_once


def test_the_layout_is_as_documented():
    """docs/vdmz.md, read with nothing but struct and zlib."""
    images, content = known.images(14), (DATA / "posterior.vdmz").read_bytes()
    magic, version, digest, _, _, payload_crc = struct.unpack_from("<4sB16s4sII", content)
    model = known.model()
    assert (magic, version) == (b"VDMZ", 1)
    assert digest == compression.digest(model.vdm, *model[1:])[:16]
    numbers, at = list(content[33:49]), 49  # none here is above 127
    assert numbers[:7] == [12, 2, 16 - 1, 4, 4, 1, 2]  # T, grid, levels - 1, shape, blocks
    blocks, meta_size = np.reshape(numbers[7:15], (2, 4)), numbers[15]
    assert blocks[:, :3].tolist() == [[2, 7, 2], [2, 7, 2]]  # by the VDM, images, seeds
    crcs = struct.unpack_from("<2I", content, at)
    assert crcs == (zlib.crc32(images[:7].tobytes()), zlib.crc32(images[7:].tobytes()))
    at += 8 + meta_size
    assert content[at - meta_size : at] == b"meta"
    assert struct.unpack_from("<I", content, at)[0] == zlib.crc32(content[:at])
    assert payload_crc == zlib.crc32(content[at + 4 :])
    assert len(content) - at - 4 == blocks[:, 3].sum()


# ---- conditions ----


def told_of_its_class():
    """The known images, mirrored in their levels where the last number told is above 0."""

    def bind(logits, told=None):
        def denoise(z_t, gamma_t):
            given = jnp.zeros((len(z_t), 1)) if told is None else told[:, -1:]
            each = jnp.where(given > 0, logits[::-1], logits)
            one = lambda logits, z, gamma: known.denoise(logits, z[None], gamma[None])[0]  # noqa: E731
            return jax.vmap(one)(each, z_t, gamma_t)

        return known.model().vdm._replace(denoise=denoise)

    return known.model()._replace(bind=bind)


def conditions(count):
    """Images of two classes, and what is told of each."""
    told = np.stack([np.arange(count) / 7, np.arange(count) % 3 - 1.0], axis=1)
    images = known.images(count)
    mirrored = np.where(told[:, 1:, None, None] > 0, known.LEVELS - 1 - images, images)
    return mirrored.astype(np.uint8), told


@pytest.mark.parametrize(("blocks", "placed"), [(1, False), (3, True)])
def test_conditions_are_kept_and_each_image_is_coded_given_its_own(blocks, placed):
    """Given the class the images cost as much as those of one class without."""
    count, num_steps = 24, 20
    images, told = conditions(count)
    options = compression.Options(num_steps, 2, blocks, placed=placed)
    model, of_one = told_of_its_class(), known.images(count)
    plain, of_one_class = model.compress(of_one, num_steps, blocks=blocks, placed=placed)
    content, summary = compression.compress(images, *model, options._replace(conditioning=told))
    found, _ = model.decompress(content)
    np.testing.assert_array_equal(found, images)
    header, payload = file.unpack(content)
    np.testing.assert_array_equal(
        np.frombuffer(header.conditioning, "<f4"), told.astype(np.float32).ravel()
    )
    assert (plain[4], content[4]) == ((3, 3) if placed else (1, 2))
    np.testing.assert_allclose(summary.net, of_one_class.net, rtol=0.05)
    wrong = options._replace(conditioning=told[::-1])
    assert compression.compress(images, *model, wrong)[1].bound > summary.bound + 0.5
    # Others in the file, and nothing decodes.
    swapped = np.float32(told[::-1]).tobytes()
    with pytest.raises(VdmzError, match=r"ends too early|bits are left over|to other images"):
        model.decompress(file.pack(header._replace(conditioning=swapped), bytes(payload)))


def test_a_conditioning_that_can_not_be():
    images, told = conditions(9)
    model, options = told_of_its_class(), compression.Options(5, 2, 1, placed=False)
    for given in (told[:8], told[:, 0], told[:, :0]):
        with pytest.raises(ValueError, match=r"conditioning must be \[9, k\], of at most"):
            compression.compress(images, *model, options._replace(conditioning=given))
    content, _ = compression.compress(images, *model, options._replace(conditioning=told))
    header, payload = file.unpack(content)
    for bad in (b"123", np.zeros(10, np.float32).tobytes()):
        with pytest.raises(VdmzError, match="its conditioning isn't one of its images"):
            file.unpack(file.pack(header._replace(conditioning=bad), bytes(payload)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file.zlib, "compress", lambda content, level: content)
        broken = file.pack(header, bytes(payload))
    with pytest.raises(VdmzError, match="its conditioning isn't one of its images"):
        file.unpack(broken)
    with pytest.raises(VdmzError, match="of VDMZ version 4; this program reads 1 to 3"):
        file.unpack(content[:4] + b"\4" + content[5:])
    for cut in range(len(content) - 100, len(content), 9):
        with pytest.raises(VdmzError):
            file.unpack(content[:cut])


def test_a_number_of_several_bytes_comes_back():
    header, payload = file.unpack((DATA / "posterior.vdmz").read_bytes())
    for meta in (b"m" * 128, b"m" * 70_000):
        found, _ = file.unpack(file.pack(header._replace(meta=meta), bytes(payload)))
        assert found == header._replace(meta=meta)


def test_the_digest_is_of_parameters_and_settings():
    vdm = known.model().vdm
    tree = {"a": np.ones(2, np.float32), "b": {"c": np.zeros((2, 3))}}
    base = compression.digest(vdm, tree)
    assert base == compression.digest(vdm, {"b": {"c": np.zeros((2, 3))}, "a": jnp.ones(2)}, {})
    others = [
        ({"a": np.ones(2), "b": tree["b"]}, {}),
        ({"a": tree["a"], "b": {"d": tree["b"]["c"]}}, {}),
        ({"a": tree["a"], "b": {"c": tree["b"]["c"].T}}, {}),
        (tree, {"gamma_min": -8.5}),
    ]
    found = {compression.digest(vdm, *other) for other in others}
    found.add(compression.digest(vdm._replace(reverse_var="transition"), tree))
    assert len(found | {base}) == 6


# ---- nothing is lost ----
# Blocks of all kinds in one file: tests/thorough/test_compression.py.


def test_a_network_that_is_all_wrong_loses_nothing():
    """Its means lie hundreds of standard deviations off: numbers that have no symbol."""
    images = known.images(14)
    model = known.model(network=lambda logits, z_t, gamma_t: 40.0 + 0.0 * z_t)
    _, summary = round_trip(images, model, num_steps=12, blocks=2)
    # It would grow, so that the simple model takes them, or they stay as they are.
    assert summary.coded == 0 and summary.seeds + summary.raw == 14
    assert summary.gross < 8 * (1 + 70 / images.size)


def test_one_image_and_black_ones():
    content, summary = round_trip(known.images(1), known.model(), num_steps=3)
    assert (summary.coded, summary.seeds) == (0, 1) and np.isnan(summary.net) and len(content) < 80
    # Black ones take next to no bits of the simple model, but more than none.
    black = np.zeros((20, 16, 16, 1), np.uint8)
    content, summary = round_trip(black, known.model(shape=(16, 16, 1), levels=2), num_steps=1)
    assert summary.images == 20 and len(content) < 20 * 16 * 16 / 14


# ---- refusals of files ----


@pytest.fixture(scope="module")
def content():
    return (DATA / "posterior.vdmz").read_bytes()


def refused(content, model=None):
    with pytest.raises(VdmzError) as error:
        (model or known.model()).decompress(bytes(content))
    return str(error.value)


def test_every_flipped_byte_and_every_truncation_is_told(content):
    _, payload = file.unpack(content)
    start = len(content) - len(payload)
    kinds = [(4, "it is no VDMZ file"), (5, "version"), (start, "header")]
    kinds.append((len(content), "its payload is damaged (checksum)"))
    for at in range(len(content)):
        kind = next(kind for end, kind in kinds if at < end)
        damaged = bytearray(content)
        damaged[at] ^= (1, 0x80, 0xFF)[at % 3]
        assert kind in refused(damaged)
        cut = "within its header" if at < start else f"{len(content) - at} of {len(content)} bytes"
        assert (cut if at else "no VDMZ file") in refused(content[:at])
    assert "1 bytes follow its end" in refused(content + b"\0")


def test_another_model_and_another_machine_are_told_apart(content, monkeypatch):
    model, (header, payload) = known.model(), file.unpack(content)

    def changed(**fields):
        return file.pack(header._replace(**fields), bytes(payload))

    near = model._replace(params=model.params * (1.0 + 1e-12))
    for other in (near, model._replace(settings={"gamma_min": -8.5})):
        assert f"made with another model (SHA-256 {header.model.hex()}…" in refused(content, other)
    assert "other images than its model's" in refused(changed(levels=17))
    assert "coding tables" in refused(changed(tables=bytes(4)))
    assert "a probe of its outputs" in refused(changed(probe=header.probe ^ 1))
    first, second = header.blocks
    lies = first, second._replace(crc=second.crc ^ 1)
    assert "block 1 decodes to other images" in refused(changed(blocks=lies))
    rounding = known.model(network=lambda *args: known.denoise(*args) * (1.0 + 2.0**-8))
    assert "a probe of its outputs" in refused(content, rounding)
    # A machine that computes otherwise behind the probe.
    monkeypatch.setattr(Network, "probe", lambda self: header.probe)
    off = known.model(network=lambda *args: known.denoise(*args) + 0.01)
    assert "damaged" in refused(content, off)


def test_a_header_that_lies_takes_no_memory(content):
    header, payload = file.unpack(content)
    block, rest = header.blocks
    raw = block._replace(mode=file.RAW, images=block.size // 16, seeds=0)
    lies = [{"blocks": blocks} for blocks in (
        (block._replace(images=1 << 62, seeds=1 << 61), rest),
        (block._replace(mode=file.RAW, images=1 << 20, seeds=0), rest),
        (block._replace(mode=7), rest),
        (block._replace(seeds=block.images), rest),
        (block._replace(images=0, seeds=0), rest),
        (block._replace(size=1 << 60), rest),
        (raw._replace(size=block.size - 1), rest),
        (block._replace(mode=file.FALLBACK, images=4096, seeds=0), rest._replace(images=4096)),
        (block._replace(images=block.images + 3), rest),
        (block, rest._replace(images=rest.images + 1)),
    )]  # fmt: skip
    lies += [{"event_shape": shape} for shape in ((1 << 20, 1 << 20, 3), (4, 4, 2), (0, 4, 1))]
    lies += [{"num_steps": 0}, {"num_steps": 4097, "grid": 1}, {"grid": 0}, {"grid": 65}]
    lies += [{"levels": 1}, {"levels": 257}, {"num_steps": 4096, "grid": 9}]
    tracemalloc.start()
    for lie in lies:
        assert "get it anew" in refused(file.pack(header._replace(**lie), bytes(payload))), lie
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    fixed = struct.pack("<4sB16s4sII", b"VDMZ", 1, bytes(16), bytes(4), 0, 0)
    endless = fixed + b"\xff" * 40
    many = fixed + bytes([3, 2, 15, 4, 4, 1, 0xFF, 0xFF, 0xFF, 0x7F]) + bytes(40)
    for damaged in (endless, many):
        damaged += struct.pack("<I", zlib.crc32(damaged))
        assert "header is damaged" in refused(damaged)


def test_payloads_that_hold_other_than_they_must(content):
    header, payload = file.unpack(content)

    def packed(mode, images, part):
        block = file.Block(mode, images, 0, len(part), zlib.crc32(part))
        return file.pack(header._replace(blocks=(block, block)), part * 2)

    high = bytes([known.LEVELS]) * 160
    assert "levels that there are not" in refused(packed(file.RAW, 10, high))
    assert "ends too early" in refused(packed(file.FALLBACK, 10, bytes([1, 0, 0, 4])))
    assert "no stack" in refused(packed(file.FALLBACK, 10, bytes(4)))
    for at in range(0, len(payload), 40):
        damaged = bytearray(payload)
        damaged[at] ^= 0x10
        assert "damaged" in refused(file.pack(header, bytes(damaged)))


# ---- refusals of arguments ----

IMAGES, MODEL = known.images(2), known.model()
BAD = [
    ({"images": np.zeros((2, 4, 5, 1), int)}, r"must be \[n, 4, 4, 1\].*\[2, 4, 5, 1\]"),
    ({"images": np.zeros((0, 4, 4, 1), int)}, r"must be \[n, 4, 4, 1\]"),
    ({"images": np.zeros((2, 4, 4, 1))}, "integers .*got float64"),
    ({"images": np.full((2, 4, 4, 1), 16)}, r"in \[0, 16\), .*from 16 to 16"),
    ({"images": np.full((2, 4, 4, 1), -1)}, "from -1 to -1"),
    ({"num_steps": 5000}, "num_steps must be at most 4096, got 5000"),
    ({"grid": 65}, "grid must be at most 64, got 65"),
    ({"blocks": 3}, "blocks must be at most 2, one for each image, got 3"),
    ({"blocks": 0}, "blocks must be an integer of at least 1"),
    ({"meta": bytes((1 << 26) + 1)}, "meta has 67,108,865 bytes; at most 67,108,864"),
    ({"model": known.model(shape=(4, 4))}, r"channels\] with 2 to 256 levels, got shape \(4, 4\)"),
]


def test_arguments():
    for change, said in BAD:
        given = {"images": IMAGES, "num_steps": 2} | change
        model = given.pop("model", MODEL)
        with pytest.raises(ValueError, match=said):
            model.compress(**given, progress=lambda *_: pytest.fail("it began"))


def test_networks_that_can_not_be_decoded_with():
    def narrow(logits, z_t, gamma_t):
        return z_t.astype(jnp.float32)

    def nan(logits, z_t, gamma_t):
        return z_t * jnp.where(gamma_t[:, None, None, None] > 0, jnp.nan, 1.0)

    for wrong, said in ((narrow, "computes in float32"), (nan, "isn't finite at level")):
        for placed in (False, True):
            model = known.model(network=wrong, kind="eps")
            with pytest.raises(ValueError, match=said):
                model.compress(known.images(14), 12, placed=placed)
    continuous = MODEL._replace(bind=lambda params: MODEL.vdm._replace(levels=None))
    with pytest.raises(ValueError, match="levels None"):
        continuous.compress(known.images(2), 2)
