"""The commands compress and decompress in this process, and files that lie."""

import contextlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from experiments.compress import compress as _compress
from experiments.decompress import decompress as _decompress
from vdm_jax.compression import Summary, file

STEPS = 20  # with fewer a tiny model's latents need more bits than the pixels have


class Made(NamedTuple):
    """What went in, the file, what the command returned and what it printed."""

    given: Path
    path: Path
    summary: Summary
    said: str


def digits(count: int) -> np.ndarray:
    """The last images of scikit-learn's digits, uint8 [count, 8, 8]."""
    return np.asarray(load_digits().images[-count:].astype(np.uint8))


def plain_compress(*arguments: object) -> Summary:
    return _compress(["experiments.compress", *map(str, arguments)])


def plain_decompress(*arguments: object) -> Path:
    return _decompress(["experiments.decompress", *map(str, arguments)])


def compress(workdir: Path, *arguments: Any) -> Made:
    """`python -m experiments.compress --workdir=WORKDIR INPUT ... -o FILE`."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        summary = plain_compress(f"--workdir={workdir}", f"--num_steps={STEPS}", *arguments)
    return Made(Path(arguments[0]), Path(arguments[-1]), summary, said.getvalue())


def decompress(workdir: Path, path: Path, out: Path) -> Path:
    """`python -m experiments.decompress --workdir=WORKDIR PATH -o OUT`."""
    with contextlib.redirect_stdout(io.StringIO()):
        return plain_decompress(f"--workdir={workdir}", path, "-o", out)


def changed(content: bytes, **fields: Any) -> bytes:
    """The file with other words in its header, and right checksums."""
    header, payload = file.unpack(content)
    return file.pack(header._replace(**fields), bytes(payload))
