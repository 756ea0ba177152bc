"""Whatever a disk does to a checkpoint: one line that names it, or exactly what was saved."""

import collections

import numpy as np
import pytest
from toy import assert_equal, state_at

from vdm_jax.train.checkpoint import Checkpoints, DamagedError


@pytest.fixture
def checkpoints(tmp_path):
    with Checkpoints(tmp_path / "c", {"seed": 1}) as writer:
        writer.save(7, state_at(7))
    with Checkpoints(tmp_path / "c", {"seed": 1}) as reader:
        yield reader


def files(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file())


def damaged(content, kind, rng):
    """What a disk, a file system or a copy cut short makes of a file's content."""
    content = bytearray(content)
    if kind == "flip" and content:
        bit = int(rng.integers(8 * len(content)))
        content[bit // 8] ^= 1 << (bit % 8)
    elif kind == "zeros":
        start = int(rng.integers(len(content) + 1))
        content[start : start + 512] = bytes(len(content[start : start + 512]))
    elif kind == "cut":
        content = content[: int(rng.integers(len(content) + 1))]
    return bytes(content)


@pytest.mark.parametrize("part", ["arrays", "words"])
def test_hundreds_of_damages_are_errors_of_one_line_or_nothing_at_all(part, checkpoints, tmp_path):
    """Arrays: all that TensorStore wrote. Words: JSON and marks, among them settings and sums."""
    folder, template, rng = tmp_path / "c", state_at(7), np.random.default_rng(3)
    words = [f for f in files(folder) if f.suffix or f.name.startswith("_") or "meta" in str(f)]
    victims = [file for file in files(folder) if (file in words) == (part == "words")]
    seen, messages = collections.Counter(), []
    for number in range(200):
        file = victims[number % len(victims)]
        whole, kind = file.read_bytes(), rng.choice(["flip", "flip", "zeros", "cut", "gone"])
        if kind == "gone":
            file.unlink()
        else:
            file.write_bytes(damaged(whole, kind, rng))
        try:
            restored = checkpoints.restore(template)
        except DamagedError as error:
            messages.append(str(error))
            seen[kind] += 1
        else:
            assert_equal(restored, template)
            seen["the same"] += 1
        file.write_bytes(whole)
    assert_equal(checkpoints.restore(template), template)
    assert min(seen[kind] for kind in ("flip", "zeros", "cut", "gone", "the same")) >= 3, seen
    assert all(str(folder / "7") in line and "\n" not in line for line in messages)
