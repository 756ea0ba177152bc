"""Whole files: bit-exact round trips, rates against the bound, refusals."""

import dataclasses
import struct
import tracemalloc
import zlib

import jax
import jax.numpy as jnp
import known
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vdm_jax.compression.vdm import Bound, Network

import vdm_jax.compression as compression
from vdm_jax import loss, process
from vdm_jax.compression import VdmzError, bits_back, codec, file, ladder
from vdm_jax.compression.ans import Stacks


def round_trip(images, vdm, **given):
    content, summary = compression.compress(images, vdm, **given)
    found, meta = compression.decompress(content, vdm)
    np.testing.assert_array_equal(found, images)
    assert found.dtype == np.uint8 and meta == given.get("meta", b"")
    assert summary.gross == 8 * len(content) / images.size
    return content, summary


# ---- nothing is lost ----


def test_ten_thousand_images():
    images = known.images(10_000)
    _, summary = round_trip(images, known.vdm(), num_steps=8, blocks=500, meta=b"of mine")
    assert summary.images == 10_000 and summary.coded > 8000


@settings(max_examples=6, derandomize=True, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3)),
    levels=st.integers(2, 256),
    count=st.integers(1, 9),
    num_steps=st.integers(1, 6),
    grid=st.integers(1, 5),
    gamma_min=st.floats(-16.0, 1.0),
    seed=st.integers(0, 99),
    reverse_var=st.sampled_from(["posterior", "transition", "learned"]),
)
def test_any_images(shape, levels, count, num_steps, grid, gamma_min, seed, reverse_var):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, levels, (count, *shape), dtype=np.int64)

    def denoise(logits, z_t, gamma_t):
        found = known.denoise(logits, z_t, gamma_t)
        return (found, jax.nn.sigmoid(3 * z_t)) if reverse_var == "learned" else found

    vdm = known.vdm(gamma_min, shape, levels, reverse_var=reverse_var, denoise=denoise)
    blocks = int(rng.integers(1, count + 1))
    round_trip(images, vdm, num_steps=num_steps, grid=grid, blocks=blocks)


def test_a_network_that_is_all_wrong_loses_nothing():
    """Its means lie hundreds of standard deviations off: numbers that have no symbol."""
    images = known.images(40)
    vdm = known.vdm(denoise=lambda logits, z_t, gamma_t: 40.0 + 0.0 * z_t)
    _, summary = round_trip(images, vdm, num_steps=3)
    # It would grow, so that the simple model takes them, or they stay as they are.
    assert summary.coded == 0 and summary.seeds + summary.raw == 40
    assert summary.gross < 8 * (1 + 70 / images.size)


def test_one_image_costs_what_the_simple_model_takes():
    content, summary = round_trip(known.images(1), known.vdm(), num_steps=3)
    assert (summary.coded, summary.seeds, summary.raw) == (0, 1, 0) or summary.raw == 1
    assert np.isnan(summary.net)
    assert len(content) < 80


def test_noise_is_stored_as_it_is():
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    content, summary = round_trip(images, known.vdm(-10.0, (8, 8, 3), 256), num_steps=3)
    assert summary.raw == 6
    assert len(content) < images.size + 70


def test_images_without_any_bits():
    """Black ones take next to no bits of the simple model, but more than none."""
    vdm = known.vdm(shape=(16, 16, 1), levels=2)
    content, summary = round_trip(np.zeros((70, 16, 16, 1), np.uint8), vdm, num_steps=1)
    assert summary.images == 70 and len(content) < 70 * 16 * 16 / 14


def test_what_is_told_of_the_vdm_s_images_is_of_those_in_the_file_alone():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (24, 4, 4, 1), dtype=np.uint8)
    smooth = rng.integers(80, 90, (24, 4, 4, 1), dtype=np.uint8)
    vdm = known.vdm(levels=256)
    content, mixed = round_trip(np.concatenate([noise, smooth]), vdm, num_steps=20, blocks=2)
    header, _ = file.unpack(content)
    assert [block.mode for block in header.blocks] == [file.RAW, file.CHAIN]
    _, alone = round_trip(smooth, vdm, num_steps=20, blocks=1)
    assert mixed.net == pytest.approx(alone.net, abs=1e-6)
    assert mixed.bound == pytest.approx(alone.bound, abs=1e-6)


def test_blocks_decode_alike_whatever_the_others_hold():
    """A block's payload depends on its own images alone: the lanes of a batch don't mix."""
    images = known.images(60)
    other = images.copy()
    other[30:] = known.images(30, seed=9)
    vdm = known.vdm()
    first, _ = compression.compress(images, vdm, 4, blocks=2)
    second, _ = compression.compress(other, vdm, 4, blocks=2)
    (one, payload_1), (two, payload_2) = file.unpack(first), file.unpack(second)
    size = one.blocks[0].size
    assert one.blocks[0] == two.blocks[0] and one.blocks[1] != two.blocks[1]
    assert payload_1[:size] == payload_2[:size]


# ---- the rate ----


@pytest.fixture(scope="module")
def rates():
    """Net bits and the bound of 20,480 images, T = 50, with and without scrambling."""
    found = {}
    with jax.enable_x64(True):
        vdm, lanes = known.vdm(), 2048
        steps = ladder.make(vdm.gamma, 50, vdm.levels, ladder.DEFAULT_GRID)
        coder, bound = bits_back.Coder(steps, Network(vdm, steps, lanes)), Bound(vdm, steps)
        images = known.images(10 * lanes).reshape(10, lanes, -1)
        noise = _Noise(steps, bound)
        found[True] = _rates(coder, bound, images, noise.observe)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bits_back, "scramble", lambda *_: None)
            found[False] = _rates(coder, bound, images[:3], bound.observe)
    return found | {"noise": noise}


class _Noise:
    """The noise that was popped: of each level its mean square, and with that of the level before
    its mean product."""

    def __init__(self, steps, bound):
        self.squares, self.products = [], []
        self._steps, self._bound = steps, bound
        self._z = self._eps = None

    def observe(self, level, z, eps_hat, share):
        self._bound.observe(level, z, eps_hat, share)
        if level > 0:
            s, t = self._steps.gammas[level - 1 : level + 1]
            q = process.transition(jnp.asarray(self._z), s, t)
            eps = np.asarray((z - q.mean) / jnp.sqrt(q.var))
            self.squares.append(np.mean(eps**2))
            if level > 1:
                self.products.append(np.mean(eps * self._eps))
            self._eps = eps
        self._z = z


def _rates(coder, bound, images, observe):
    rng = np.random.default_rng(1)
    lanes = images.shape[1]
    stacks = Stacks(lanes)
    stacks.words = rng.integers(0, 2**32, (lanes, 60), dtype=np.uint32)
    stacks.sizes[:] = 60
    stacks.states[:] = rng.integers(2**32, 2**63, lanes, dtype=np.uint64)
    net, bounds = [], []
    for batch in images:
        before = stacks.bits()
        bound.start(batch)
        coder.encode(stacks, batch, np.ones(lanes, bool), observe)
        net.append(stacks.bits() - before)
        bounds.append(bound.bits())
    return (np.concatenate(net), *np.concatenate(bounds, axis=1))


def test_the_net_rate_is_the_bound(rates):
    net, bound, _ = rates[True]
    excess = (net - bound).mean() / bound.mean()
    error = (net - bound).std() / np.sqrt(len(net)) / bound.mean()
    assert error < 0.0018
    assert abs(excess) < 0.005
    assert abs(excess) < 3 * error + 0.002


def test_coding_itself_costs_next_to_nothing(rates):
    """Beside what the same latents cost unrounded: no chance is in that."""
    net, bound, path = rates[True]
    assert abs((net - path).mean()) < 5e-4 * bound.mean()
    assert np.std(net - path) < 0.1 * np.std(net - bound)


def test_what_is_popped_is_standard_normal_and_new_at_each_level(rates):
    """Why the rate is the bound: the bits were somebody else's, and serve as noise."""
    for values, expected in ((rates["noise"].squares, 1.0), (rates["noise"].products, 0.0)):
        error = np.std(values) / np.sqrt(len(values))
        assert error < 5e-4
        assert abs(np.mean(values) - expected) < 4 * error


def test_without_scrambling_it_is_not(rates):
    net, bound, _ = rates[False]
    assert (net - bound).mean() / bound.mean() > 0.007


def test_the_bound_on_the_way_is_that_of_the_loss(rates):
    """Along the chain's latents, every level of them, as against drawn times and noise."""
    _, bound, _ = rates[True]
    with jax.enable_x64(True):
        vdm = known.vdm()
        images = jnp.asarray(known.images(20_480))

        def denoise(z_t, gamma_t):
            return vdm.denoise(vdm.params, z_t, gamma_t)

        def nats(key):
            terms = loss.elbo(key, images, denoise, vdm.gamma, known.LEVELS, 50, vdm.kind)
            return terms.total

        drawn = np.mean([jax.jit(nats)(jax.random.key(i)) for i in range(4)], axis=0) / np.log(2)
    difference = bound - drawn
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(bound))
    assert difference.std() / np.sqrt(len(bound)) < 0.004 * bound.mean()


def test_everything_counted_it_is_within_two_per_cent_of_the_net_rate():
    """Seeds and header, of 300 images of 64 pixels."""
    vdm = known.vdm(shape=(8, 8, 1))
    content, summary = compression.compress(known.images(300, shape=(8, 8, 1)), vdm, 30)
    assert summary.coded >= 296
    assert 1.0 < summary.gross / summary.net < 1.02
    # All bits are accounted for: header, seeds, images.
    _, payload = file.unpack(content)
    assert len(content) - len(payload) < 65


# ---- refusals ----


@pytest.fixture(scope="module")
def small():
    """A file of two blocks, its model and images."""
    images, vdm = known.images(20), known.vdm()
    content, summary = compression.compress(images, vdm, 30, blocks=2, meta=b"meta")
    assert summary.coded > 10
    return content, vdm, images


def test_every_flipped_byte_is_told(small):
    content, vdm, _ = small
    header, payload = file.unpack(content)
    start = len(content) - len(payload)
    kinds = {}
    for at in range(len(content)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[at] ^= flip
            with pytest.raises(VdmzError) as error:
                compression.decompress(bytes(damaged), vdm)
            kinds.setdefault(at, set()).add(str(error.value))
    assert all("no VDMZ file" in said for at in range(4) for said in kinds[at])
    assert all("version" in said for said in kinds[4])
    assert all("header" in said for at in range(5, start) for said in kinds[at])
    assert all(
        "payload is damaged" in said for at in range(start, len(content)) for said in kinds[at]
    )
    assert header.meta == b"meta"


def test_every_truncation_is_told(small):
    content, vdm, _ = small
    for size in range(len(content)):
        said = "no VDMZ file" if size == 0 else "cut short"
        with pytest.raises(VdmzError, match=said):
            compression.decompress(content[:size], vdm)
    with pytest.raises(VdmzError, match="1 bytes follow its end"):
        compression.decompress(content + b"\0", vdm)


def repacked(content, **changes):
    """With other values in the header, and right checksums."""
    header, payload = file.unpack(content)
    return file.pack(dataclasses.replace(header, **changes), bytes(payload))


def test_another_model(small):
    content, vdm, _ = small
    params = np.asarray(vdm.params).copy()
    params[3] += 1e-7
    for other in (
        dataclasses.replace(vdm, params=params),
        dataclasses.replace(vdm, settings={"gamma_min": -8.5}),
    ):
        with pytest.raises(VdmzError, match="made with another model"):
            compression.decompress(content, other)


def test_another_machine(small):
    content, vdm, _ = small
    header, _ = file.unpack(content)
    with pytest.raises(VdmzError, match="coding tables"):
        compression.decompress(repacked(content, tables=b"\0" * 4), vdm)
    with pytest.raises(VdmzError, match="a probe of its outputs"):
        compression.decompress(repacked(content, probe=header.probe ^ 1), vdm)


def test_the_probe_tells_networks_apart_that_differ_by_a_rounding_step(small):
    content, vdm, _ = small

    def other(params, z_t, gamma_t):
        return known.denoise(params, z_t, gamma_t) * (1.0 + 2.0**-8)

    with pytest.raises(VdmzError, match="a probe of its outputs"):
        compression.decompress(content, dataclasses.replace(vdm, denoise=other))


def test_a_network_that_computes_otherwise_behind_the_probe_is_told(small, monkeypatch):
    content, vdm, _ = small
    call = Network.__call__
    probing = []

    def off(self, z, level):
        found, share = call(self, z, level)
        return (found if probing else found + 0.01), share

    def probe(self):
        probing.append(1)
        found = original(self)
        probing.clear()
        return found

    original = Network.probe
    monkeypatch.setattr(Network, "probe", probe)
    monkeypatch.setattr(Network, "__call__", off)
    with pytest.raises(VdmzError):
        compression.decompress(content, vdm)


def test_pixels_that_are_not_what_they_were_are_told(small):
    content, vdm, _ = small
    header, _ = file.unpack(content)
    first, second = header.blocks
    with pytest.raises(VdmzError, match="block 1 decodes to other images"):
        compression.decompress(
            repacked(content, blocks=(first, second._replace(crc=second.crc ^ 1))), vdm
        )


def test_a_header_that_lies_takes_no_memory(small):
    content, vdm, _ = small
    header, _ = file.unpack(content)
    block, rest = header.blocks
    raw = block._replace(mode=file.RAW, images=block.size // 16, seeds=0)
    even = rest._replace(images=1 << 12)
    lies = [
        {"blocks": (block._replace(images=1 << 50), header.blocks[1])},
        {"blocks": (block._replace(images=1 << 62, seeds=1 << 61), header.blocks[1])},
        {"blocks": (block._replace(mode=file.RAW, images=1 << 20, seeds=0), header.blocks[1])},
        {"blocks": (block._replace(mode=7), header.blocks[1])},
        {"blocks": (block._replace(seeds=block.images), header.blocks[1])},
        {"blocks": (block._replace(images=0, seeds=0), header.blocks[1])},
        {"blocks": (block._replace(size=1 << 60), header.blocks[1])},
        {"event_shape": (1 << 20, 1 << 20, 3)},
        {"event_shape": (4, 4, 2)},
        {"event_shape": (0, 4, 1)},
        {"num_steps": 1 << 40},
        {"num_steps": 0},
        {"grid": 1 << 30},
        {"levels": 257},
        {"levels": 1},
        {"num_steps": 4096, "grid": 9},
        {"blocks": (raw._replace(size=block.size - 1), rest)},
        {"blocks": (block._replace(mode=file.FALLBACK, images=1 << 12, seeds=0), even)},
        {"blocks": (block._replace(images=block.images + 3), header.blocks[1])},
        {"blocks": (block._replace(images=1, seeds=0), header.blocks[1]._replace(images=1))},
    ]
    tracemalloc.start()
    for lie in lies:
        with pytest.raises(VdmzError, match="get it anew"):
            compression.decompress(repacked(content, **lie), vdm)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_payloads_that_hold_other_than_they_must(small):
    content, vdm, _ = small
    header, _ = file.unpack(content)
    high = np.full(160, vdm.levels, np.uint8).tobytes()
    raw = [file.Block(file.RAW, 10, 0, 160, zlib.crc32(high))] * 2
    with pytest.raises(VdmzError, match="levels that there are not"):
        compression.decompress(
            file.pack(dataclasses.replace(header, blocks=tuple(raw)), high * 2), vdm
        )
    simple = [file.Block(file.FALLBACK, 10, 0, 4, 0)] * 2
    for stack, said in ((bytes([1, 0, 0, 4]), "ends too early"), (bytes(4), "no stack")):
        lie = file.pack(dataclasses.replace(header, blocks=tuple(simple)), stack * 2)
        with pytest.raises(VdmzError, match=said):
            compression.decompress(lie, vdm)


def test_numbers_without_end_are_told():
    """A varint of ten bytes, and a number of blocks beyond the limit."""
    fixed = struct.pack("<4sB16s4sII", b"VDMZ", 1, bytes(16), bytes(4), 0, 0)
    endless = fixed + b"\xff" * 40
    blocks = fixed + bytes([3, 2, 15, 4, 4, 1, 0xFF, 0xFF, 0xFF, 0x7F]) + bytes(40)
    for content in (endless, blocks):
        content += struct.pack("<I", zlib.crc32(content))
        with pytest.raises(VdmzError, match="header is damaged"):
            file.unpack(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": np.zeros((2, 4, 5, 1), np.uint8)}, r"must be \[n, 4, 4, 1\].*\[2, 4, 5, 1\]"),
        ({"images": np.zeros((0, 4, 4, 1), np.uint8)}, r"must be \[n, 4, 4, 1\]"),
        ({"images": np.zeros((2, 4, 4, 1))}, "integers"),
        ({"images": np.full((2, 4, 4, 1), 16)}, r"lie in \[0, 16\).*got 16 to 16"),
        ({"images": np.full((2, 4, 4, 1), -1)}, "got -1 to -1"),
        ({"num_steps": 0}, "num_steps must be from 1 to 4096, got 0"),
        ({"num_steps": 1.5}, "num_steps must be a whole number, got 1.5"),
        ({"grid": 2.0}, "grid must be a whole number, got 2.0"),
        ({"blocks": 2.0}, "blocks must be a whole number, got 2.0"),
        ({"num_steps": 5000}, "num_steps must be from 1 to 4096, got 5000"),
        ({"grid": 0}, "grid must be from 1 to 64, got 0"),
        ({"blocks": 3}, "blocks must be from 1 to 2, got 3"),
        ({"blocks": -1}, "blocks must be from 1 to 2, got -1"),
        ({"blocks": 0}, "blocks must be from 1 to 2, got 0"),
        ({"meta": bytes((1 << 26) + 1)}, "meta has 67,108,865 bytes; at most 67,108,864"),
        ({"vdm": known.vdm(-40.0)}, "too many for a table: gamma_0 = -40"),
    ],
)
def test_arguments(change, said):
    arguments = {"images": known.images(2), "vdm": known.vdm(), "num_steps": 2} | change
    with pytest.raises(ValueError, match=said):
        compression.compress(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            {"vdm": known.vdm(shape=(4, 4)), "images": np.zeros((2, 4, 4), int)},
            ValueError,
            r"height, width, channels\), got \(4, 4\)",
        ),
        ({"vdm": known.vdm(settings={"a": np.ones(2)})}, TypeError, "JSON"),
        ({"meta": "text"}, TypeError, "bytes"),
    ],
)
def test_what_no_file_can_hold_is_told_before_anything_is_encoded(change, error, said):
    told = []
    arguments = {"images": known.images(40), "vdm": known.vdm(), "num_steps": 2} | change
    with pytest.raises(error, match=said):
        compression.compress(**arguments, progress=lambda *done: told.append(done))
    assert not told


def test_networks_that_can_not_be_decoded_with():
    def narrow(logits, z_t, gamma_t):
        return known.denoise(logits, z_t, gamma_t).astype(jnp.float32)

    def nan(logits, z_t, gamma_t):
        return z_t * jnp.where(gamma_t[:, None, None, None] > 0, jnp.nan, 1.0)

    images = known.images(3)
    with pytest.raises(ValueError, match="computes in float32"):
        compression.compress(images, known.vdm(denoise=narrow, kind="eps"), 2)
    with pytest.raises(ValueError, match="isn't finite at level"):
        compression.compress(images, known.vdm(denoise=nan), 2)


def test_the_digest_is_of_parameters_and_settings():
    vdm = known.vdm()
    tree = {"a": np.ones(2, np.float32), "b": {"c": np.zeros((2, 3))}}
    base = compression.digest(dataclasses.replace(vdm, params=tree))
    again = {"b": {"c": np.zeros((2, 3))}, "a": jnp.ones(2, jnp.float32)}
    assert compression.digest(dataclasses.replace(vdm, params=again)) == base
    for other in (
        {"a": np.ones(2), "b": {"c": np.zeros((2, 3))}},
        {"a": np.ones(2, np.float32), "b": {"d": np.zeros((2, 3))}},
        {"a": np.ones(2, np.float32), "b": {"c": np.zeros((3, 2))}},
    ):
        assert compression.digest(dataclasses.replace(vdm, params=other)) != base
    assert codec.digest(vdm) != compression.digest(
        dataclasses.replace(vdm, reverse_var="transition")
    )


def test_blocks_of_all_kinds_in_one_file():
    """And the summary is of the images by the VDM alone."""
    rng = np.random.default_rng(0)
    shape = (8, 8, 1)
    weights = np.exp(-0.5 * ((np.arange(256) - 85) / 8) ** 2) + 1e-4
    probs = weights / weights.sum()
    vdm = dataclasses.replace(known.vdm(-10.0, shape, 256), params=np.log(probs))
    usual = rng.choice(256, (30, *shape), p=probs).astype(np.uint8)
    noise = rng.integers(0, 256, (30, *shape), dtype=np.uint8)
    plain = np.full((30, *shape), 255, np.uint8)  # hardly ever seen by the model
    images = np.concatenate([usual, noise, plain])
    content, summary = round_trip(images, vdm, num_steps=20, blocks=3)
    header, _ = file.unpack(content)
    assert [block.mode for block in header.blocks] == [file.CHAIN, file.RAW, file.FALLBACK]
    assert summary.coded == 30 - header.blocks[0].seeds
    assert summary.raw == 30 and summary.seeds == 30 + header.blocks[0].seeds
    _, alone = compression.compress(usual, vdm, 20)
    assert summary.net == pytest.approx(alone.net, rel=0.1)
    assert summary.bound == pytest.approx(alone.bound, rel=0.1)
