"""Anything may stand in a file: it is refused in one line that names it, or loads as it should."""

import subprocess
import sys

import jax
import msgpack
import numpy as np
import pytest
from flax import serialization
from golden import DATA, load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vdm_jax.nn import published

NAME = "no_fourier_odd_batch"
WHOLE = (DATA / NAME / "checkpoints-0" / "ckpt-7.flax").read_bytes()
FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def shapes_once():
    """What the configuration calls for is the same each time; it is the slow part."""
    model, kept = load(NAME), {}
    with pytest.MonkeyPatch.context() as patch:
        expected = published._expected

        def once(params, gamma_module, score_module):
            bias = published.leaves(params).get(("score_model", "conv_out", "bias"))
            key = np.shape(bias) if isinstance(bias, np.ndarray) else None
            if key not in kept:
                kept[key] = expected(params, gamma_module, score_module)
            return kept[key]

        patch.setattr(published, "_expected", once)
        yield model


def outcome(file, content):
    """ "loaded", or the line of the refusal; and whatever is loaded has the right form."""
    golden = load(NAME)
    file.write_bytes(content)
    try:
        model = published.load(file, golden.config)
    except ValueError as error:
        line = str(error)
        assert str(file) in line and "\n" not in line and line.isprintable(), line
        assert len(line) < 1000
        return line
    same = jax.tree.map(
        lambda a, b: a.shape == b.shape and a.dtype == b.dtype and bool(np.isfinite(a).all()),
        model.params, golden.model.params,
    )  # fmt: skip
    assert all(jax.tree.leaves(same)) and isinstance(model.step, int) and model.step >= 0
    return "loaded"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "ckpt-1.flax"


@FUZZ
@given(data=st.data())
def test_a_real_file_with_bytes_changed_cut_out_or_put_in(data, file):
    """In the front, where the names and sizes are, as often as anywhere."""
    end = data.draw(st.sampled_from([400, len(WHOLE)]))
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(end, len(content)) - 1))
        kind = data.draw(st.sampled_from(["flip", "set", "cut", "put", "end"]))
        if kind == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "set":  # markers of MessagePack: sizes of 32 bits, types of all kinds
            content[at] = data.draw(
                st.sampled_from([0xC0, 0xC1, 0xC6, 0xC9, 0xDB, 0xDD, 0xDF, 255])
            )
        elif kind == "cut":
            del content[at : at + data.draw(st.integers(1, 9))]
        elif kind == "put":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        else:
            del content[at + 1 :]
    outcome(file, bytes(content))


KEYS = st.one_of(
    st.sampled_from(["gamma", "b", "score_model", "conv_in", "down.block_x", "a/b", ""]),
    st.text(max_size=3), st.integers(-3, 3), st.none(), st.booleans(), st.binary(max_size=3),
)  # fmt: skip
ARRAYS = st.sampled_from(
    [np.zeros(3, np.float32), np.zeros((), np.float64), np.zeros((0, 2), np.int8), np.float32(1),
     np.full(1, np.inf, np.float32), np.zeros(1, np.complex64), np.array(["text"]).view(np.uint8)]
)  # fmt: skip
LEAVES = st.one_of(
    ARRAYS, st.none(), st.booleans(), st.floats(), st.integers(-(2**63), 2**64 - 1),
    st.text(max_size=4), st.binary(max_size=4),
    st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=9)),
)  # fmt: skip
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
)


def packed(tree):
    """As Flax writes arrays, and anything else as it is."""

    def default(value):
        return msgpack.ExtType(1, serialization._ndarray_to_bytes(np.asarray(value)))

    return msgpack.packb(tree, default=default)


@FUZZ
@given(step=LEAVES, params=TREES)
def test_other_contents_in_the_right_places(step, params, file):
    assert outcome(file, packed({"step": step, "ema_params": params})) != "loaded"


def nested(depth, inner):
    for _ in range(depth):
        inner = {"a": inner}
    return inner


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": None}, "its step is no count but None"),
        ({"step": -1}, "its step is no count but -1"),
        ({"step": True}, "its step is no count but True"),
        ({"ema_params": [1, 2]}, "its ema_params are no dict but list"),
        (
            {"ema_params": {}},
            "has nothing for the parameter gamma/b, but the configuration calls for float32[1]",
        ),
        ({"ema_params": {1: 2, "a": 3, b"b": 4, None: 5}}, "has int for the parameter a, but"),
        ({"ema_params": {"a\nb": 1, "gamma": {}}}, r"has int for the parameter 'a\nb', but"),
        ({"ema_params": nested(300, 1)}, "has int for the parameter a/a/a/"),
        ({"ema_params": nested(1020, 1)}, "maximum recursion depth"),
        ({"ema_params": nested(5000, 1)}, "is damaged, cut short or not"),
    ],
)
def test_what_is_wrong_is_said(change, message, file):
    tree = {"step": 3, "ema_params": {}} | change
    if isinstance(change.get("ema_params"), dict) and len(change["ema_params"]) == 1:
        content = deep(tree["ema_params"], tree["step"])
    else:
        content = packed(tree)
    assert message in outcome(file, content)


def deep(params, step):
    """MessagePack of nested dicts of one entry each, deeper than its own writer goes."""
    heads = b""
    while isinstance(params, dict) and len(params) == 1:
        [(key, params)] = params.items()
        heads += b"\x81" + msgpack.packb(key)
    return (
        b"\x82" + msgpack.packb("step") + msgpack.packb(step) + msgpack.packb("ema_params")
        + heads + packed(params)
    )  # fmt: skip


def ext(code, content):
    return b"\xc9" + len(content).to_bytes(4, "big") + bytes([code]) + content


HUGE = {
    "a list of 4 billion": b"\xdd\xff\xff\xff\xff",
    "nested lists of all there is": b"\xdd\x00\x0f\x00\x00" * 900,
    "a shape of as many": ext(1, b"\x93" + b"\xdd\x00\x0f\x00\x00" * 900),
    "an array of a large shape": ext(
        1, msgpack.packb(((2**40, 2**20), "float32", b"\0\0\0\0"), use_bin_type=True)
    ),
    "an array of objects": ext(1, msgpack.packb(((1,), "object", b"\0" * 8), use_bin_type=True)),
    "a chunked array without chunks": msgpack.packb({"__msgpack_chunked_array__": True}),
}


@pytest.mark.parametrize("what", HUGE)
def test_what_a_file_declares_is_not_taken_at_its_word(what, file):
    content = b"\x82\xa4step\x01\xaaema_params" + HUGE[what] + b"\0" * 1_000_000
    assert "is damaged, cut short or not" in outcome(file, content)


def test_a_megabyte_that_declares_gigabytes_needs_none(tmp_path):
    """In a process that may have 1 GiB more than it needs for a small file."""
    file = tmp_path / "ckpt-1.flax"
    inner = b"\xdd\x00\x0f\x00\x00" * 900 + b"\0" * 1_000_000
    file.write_bytes(b"\x82\xa4step\x01\xaaema_params" + ext(1, b"\x93" + inner))
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from vdm_jax.nn import published\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: published.read(Path(sys.argv[1]))\n"
        "except ValueError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, file], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100 * 1024  # KiB; as declared it would be 7 GiB


def test_a_file_that_may_not_be_read(file, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    file.write_bytes(WHOLE)
    monkeypatch.setattr(type(file), "read_bytes", refuse)
    with pytest.raises(ValueError, match=r"ckpt-1\.flax can't be read: Permission denied"):
        published.load(file, load(NAME).config)
