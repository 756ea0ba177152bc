"""A reader of VDMZ files written from docs/vdmz.md: struct, zlib, whole numbers, the network.

Then random images and models, and every flip of every byte of a file.
"""

import hashlib
import json
import math
import struct
import zlib

import golden
import jax
import known
import numpy as np
import pytest
import vdmz
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, ndtr

from vdm_jax.compression import VdmzError, file
from vdm_jax.parameterization import to_eps

PART, WORD = 1 << 26, 1 << 32


# ---- stacks ----


class Stack:
    def __init__(self, payload):
        self.words = list(struct.unpack_from(f"<{max(len(payload) - 5, 0) // 4}I", payload))
        self.state = int.from_bytes(payload[4 * len(self.words) :], "little")

    def push(self, start, count):
        if self.state >= count << 38:
            self.words.append(self.state % WORD)
            self.state //= WORD
        self.state = self.state // count * PART + self.state % count + start

    def pop(self, starts):
        """Of an alphabet that begins at these, with 2^26 behind the last."""
        slot = self.state % PART
        symbol = int(np.searchsorted(starts, slot, side="right")) - 1
        start, end = int(starts[symbol]), int(starts[symbol + 1])
        self.state = (end - start) * (self.state // PART) + slot - start
        if self.state < WORD and self.words:
            self.state = self.state * WORD + self.words.pop()
        return symbol

    halves = 0

    def pop_half(self):
        Stack.halves += 1
        return self.pop(range(0, PART + 1, 1 << 10))

    def scramble(self, dims, level):
        def mix(a):
            a = (a ^ a >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            a = (a ^ a >> 27) * 0x94D049BB133111EB % 2**64
            return a ^ a >> 31

        if not self.words:
            return
        first = mix(len(self.words) * WORD + level * 2**16)
        r = [mix((first + j * 0x9E3779B97F4A7C15) % 2**64) >> 32 for j in range(dims // 2 + 4)]
        for depth in range(min(dims // 2 + 1, len(self.words))):
            self.words[-1 - depth] ^= r[3 + depth]
        self.state ^= (r[1] * WORD + r[2]) % 2 ** (self.state.bit_length() - 8)


# ---- tables ----


def single(values):
    return np.asarray(values, np.float32).astype(np.float64)


def counted(sums):
    symbols = sums.shape[-1] - 1
    counts = np.floor(sums * (PART - symbols) + 0.5).astype(np.int64) + np.arange(symbols + 1)
    return counts.astype(np.uint32)


def normal(std, escape):
    span = math.ceil((10 if escape else 7) * std) + 1
    span = 8 * math.ceil(span / 8) if span <= 64 else 2 ** math.ceil(math.log2(span))
    k = np.arange(2 * span + 2)
    f = np.arange(128)[:, None] / 128
    sums = ndtr((k - span - 0.5 - f) / math.sqrt(std**2 - 1 / 12))
    if escape:
        sums = np.concatenate([sums - sums[:, :1], np.ones((128, 1))], axis=1)
    else:
        sums[:, 0], sums[:, -1] = 0, 1
    return counted(sums), span, escape


class Tables:
    """Of a model with the decoder's variance that of the posterior."""

    def __init__(self, gammas, g, levels):
        alpha, sigma = np.sqrt(expit(-gammas)), np.sqrt(expit(gammas))
        step, c = alpha[1:] / alpha[:-1], -np.expm1(gammas[:-1] - gammas[1:])
        there = np.append(sigma[0], np.sqrt(c) * sigma[1:])
        back = np.append(sigma[:-1] * np.sqrt(c), 1.0)
        self.gammas = gammas
        self.grid = single(np.minimum(there, back) / g)
        ratio = self.grid[1:] / self.grid[:-1]
        self.value = single(2 * (np.arange(levels) + 0.5) / levels - 1)
        self.forward = single(np.append(alpha[0] / self.grid[0], step / ratio))
        self.of_z = single(ratio / step)
        self.of_eps = single(-c * sigma[1:] / step * 2.0**-8 / self.grid[:-1])
        self.encoders = [normal(std, False) for std in single(there / self.grid)]
        self.decoders = [normal(std, True) for std in single(back / self.grid)]  # last the prior
        r, width = math.exp(single(gammas[0]) / 2), single(self.grid[0] / alpha[0])
        self.first = -math.ceil((1 + 9 * r) / width)
        v = np.arange(self.first, 1 - self.first)[:, None] * width
        symbols = min(levels, math.ceil(9 * r * levels) + 2)
        middle = np.floor((v + 1) * levels / 2).astype(np.int64)
        self.lowest = np.clip(middle - symbols // 2, 0, levels - symbols)
        every = 2 * (np.arange(levels) + 0.5) / levels - 1
        p = np.exp(log_softmax(-((v - every) ** 2) / (2 * r**2), axis=1))
        sums = np.cumsum(np.take_along_axis(p, self.lowest + np.arange(symbols), 1), axis=1)
        zero = np.zeros((len(v), 1))
        self.pixels = counted(np.concatenate([zero, np.minimum(sums, 1), zero + 1], axis=1))

    def digest(self):
        parts = [self.grid, self.forward, self.of_z, self.of_eps, np.ones(len(self.of_z), "<i8")]
        tables = [table[0] for table in self.encoders + self.decoders]
        parts += [self.value, *tables, self.pixels, self.lowest]
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()


def split(mean):
    rounded = math.floor(128 * mean + 0.5)
    return rounded // 128, rounded % 128


def pop_numbers(stack, table, means):
    counts, span, escape = table
    places = [split(mean) for mean in means]
    symbols = [stack.pop(counts[row]) for _, row in places]
    numbers = [whole - span + k for (whole, _), k in zip(places, symbols, strict=True)]
    for at, symbol in enumerate(symbols):
        if escape and symbol == 2 * span + 1:
            number = stack.pop_half() * 2**16
            number += stack.pop_half()
            numbers[at] = number - WORD * (number >= WORD // 2)
    return np.array(numbers)


def put_back(stack, level, tables, z, before):
    counts, span, _ = tables.encoders[level]
    for number, u in zip(z, before, strict=True):  # reversed, and pushed last first
        whole, row = split(tables.forward[level] * u)
        symbol = number - whole + span
        start = int(counts[row][symbol])
        stack.push(start, int(counts[row][symbol + 1]) - start)
    stack.scramble(len(z), level)


def pop_pixels(stack, tables, z_0):
    rows = np.clip(z_0 - tables.first, 0, len(tables.pixels) - 1)
    symbols = [stack.pop(tables.pixels[row]) for row in rows]
    x = [int(tables.lowest[row, 0]) + k for row, k in zip(rows, symbols, strict=True)]
    other = tables.pixels.shape[1] - 2
    return np.array(
        [stack.pop_half() if k == other else v for v, k in zip(x, symbols, strict=True)]
    )


def pop_image(stack, tables, dims, noise):
    t = len(tables.gammas) - 1
    z = pop_numbers(stack, tables.decoders[t], np.zeros(dims))
    for i in range(t, 0, -1):
        n = np.clip(np.rint(noise(z * tables.grid[i], i) * 256), -(2**20), 2**20)
        means = tables.of_z[i - 1] * z + tables.of_eps[i - 1] * n
        before = pop_numbers(stack, tables.decoders[i - 1], means)
        put_back(stack, i, tables, z, before)
        z = before
    x = pop_pixels(stack, tables, z)
    put_back(stack, 0, tables, z, tables.value[x])
    return x


def pop_simple(stack, count, shape, levels):
    """Images by the simple model."""
    found = np.zeros((count, *shape), np.uint8)
    seen = np.ones((3, levels), int)
    q = (PART - levels) * min(13, 224 // levels) // 16
    for image in found:
        v, e, edges = image.astype(int), np.zeros(shape, int), np.zeros(shape, int)
        for y, x, c in np.ndindex(shape):
            left = v[y, x - 1, c] if x else v[y - 1, 0, c] if y else levels // 2
            above = v[y - 1, x, c] if y else left
            corner = v[y - 1, x - 1, c] if x and y else above
            low, high = min(left, above), max(left, above)
            edge = low if corner >= high else high if corner <= low else left + above - corner
            edges[y, x, c] = edge
            guess = edge + (v[y, x, c - 1] - edges[y, x, c - 1] if c else 0)
            guess = min(max(guess, 0), levels - 1)
            off_left = abs(e[y, x - 1, c] if x else e[y - 1, 0, c]) if x or y else levels // 8
            off = off_left + (abs(e[y - 1, x, c]) if y else off_left)
            off = 8 * (off + abs(e[y, x, c - 1])) // 4 if c else 8 * off // 3
            w = [2**20]
            for _ in range(levels):
                w.append(max(w[-1] * (off + 4) // (off + 12), 1))
            a = np.cumsum([0] + [w[abs(k - guess)] for k in range(levels)])
            context = 0 if guess == 0 else 1 if 2 * guess < levels else 2
            b = np.cumsum([0, *seen[context]])
            starts = np.arange(levels + 1) + a * (PART - levels - q) // a[-1] + b * q // b[-1]
            starts[-1] = PART
            value = stack.pop(starts)
            v[y, x, c] = image[y, x, c] = value
            e[y, x, c] = value - guess
            seen[context, value] += 2
    return found


# ---- the file ----


def number(content, at):
    found = shift = 0
    while True:
        found |= (content[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if content[at - 1] < 0x80:
            return found, at


def read(content, known_model):
    vdm = known_model.vdm
    magic, version, model, tables_digest, probe, payload_crc = struct.unpack_from(
        "<4sB16s4sII", content
    )
    assert (magic, version) == (b"VDMZ", 1) and model == digest_of(known_model)[:16]
    numbers, at = [], 33
    while len(numbers) < 7 or len(numbers) < 8 + 4 * numbers[6]:
        value, at = number(content, at)
        numbers.append(value)
    (t, g, below, height, width, channels, count), meta_size = numbers[:7], numbers[-1]
    shape, levels = (height, width, channels), below + 1
    crcs = struct.unpack_from(f"<{count}I", content, at)
    at += 4 * count + meta_size
    assert zlib.crc32(content[:at]) == struct.unpack_from("<I", content, at)[0]
    at += 4
    assert zlib.crc32(content[at:]) == payload_crc
    with jax.enable_x64(True):
        tables = Tables(np.asarray(vdm.gamma(np.arange(t + 1) / t)), g, levels)
        assert tables.digest()[:4] == tables_digest

        def network(z, i):
            gamma = np.full(len(z), tables.gammas[i])
            return np.asarray(to_eps(vdm.denoise(z, gamma), z, gamma, vdm.kind))

        found = 0
        for i in np.linspace(1, t, 4).astype(int):
            j = np.arange(count * math.prod(shape)).reshape(count, *shape)
            said = np.rint(network((7919 * j % 401 - 200) / 128, i) * 256)
            found = zlib.crc32(said.astype("<i8").tobytes(), found)
        assert found == probe
        images = []
        for block in range(count):
            mode, block_images, seeds, size = numbers[7 + 4 * block : 11 + 4 * block]
            stack, at = Stack(content[at : at + size]), at + size
            assert mode == 2

            def noise(z, i):
                return network(z.reshape(1, *shape), i).reshape(-1)

            later = [
                pop_image(stack, tables, math.prod(shape), noise).reshape(shape)
                for _ in range(block_images - seeds)
            ]
            pixels = np.array([*pop_simple(stack, seeds, shape, levels), *later[::-1]], np.uint8)
            assert zlib.crc32(pixels.tobytes()) == crcs[block]
            assert (stack.state, stack.words) == (PART, [])
            images.append(pixels)
    return np.concatenate(images)


def digest_of(model):
    vdm = model.vdm
    said = {
        "event_shape": list(vdm.event_shape), "kind": vdm.kind, "levels": vdm.levels,
        "reverse_var": vdm.reverse_var, "settings": model.settings,
    }  # fmt: skip
    params = np.asarray(model.params)  # one array, which has no name
    text = json.dumps(said) + f" {params.dtype} {params.shape}\n"
    return hashlib.sha256(text.encode() + params.tobytes()).digest()


def test_a_reader_written_from_the_document_reads_a_file():
    images, model = known.images(14), known.model()
    content, summary = model.compress(images, 12, blocks=2, meta=b"meta")
    assert summary.coded >= 8
    np.testing.assert_array_equal(read(content, model), images)


def test_it_reads_what_lies_far_off():
    """Of a network that is wrong of some pixels: latents that have no symbol, but an escape."""

    def denoise(logits, z_t, gamma_t):
        wrong = (z_t > 0.3) * (gamma_t < -6.5)[:, None, None, None]
        return known.denoise(logits, z_t, gamma_t) - 0.6 * wrong

    model, images = known.model(network=denoise), known.images(24)
    content, summary = model.compress(images, 12)
    assert summary.coded > 8
    before = Stack.halves
    np.testing.assert_array_equal(read(content, model), images)
    assert Stack.halves >= before + 4


# ---- any images, any flip ----


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
)
def test_any_images(shape, levels, count, num_steps, grid, gamma_min, seed, reverse_var):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, levels, (count, *shape), dtype=np.int64)
    network = known.learned if reverse_var == "learned" else known.denoise
    model = known.model(gamma_min, shape, levels, network, reverse_var=reverse_var)
    blocks = int(rng.integers(1, count + 1))
    content, _ = model.compress(images, num_steps, grid, blocks)
    np.testing.assert_array_equal(model.decompress(content)[0], images)


def test_ten_thousand_images():
    images, model = known.images(10_000), known.model()
    content, summary = model.compress(images, 8, blocks=500)
    np.testing.assert_array_equal(model.decompress(content)[0], images)
    assert summary.coded > 8000


def test_everything_counted_it_is_within_two_per_cent_of_the_net_rate():
    """Seeds and header, of 300 images of 64 pixels."""
    model = known.model(shape=(8, 8, 1))
    content, summary = model.compress(known.images(300, shape=(8, 8, 1)), 30)
    assert summary.coded >= 296
    assert 1.0 < summary.gross / summary.net < 1.02
    _, payload = file.unpack(content)
    assert len(content) - len(payload) < 65


def test_every_flip_of_every_byte_is_told():
    model = known.model()
    content, _ = model.compress(known.images(60), 12, blocks=2, meta=b"meta")
    for at in range(len(content)):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            damaged = bytearray(content)
            damaged[at] ^= flip
            with pytest.raises(VdmzError):
                model.decompress(bytes(damaged))


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
