"""Training: a model, its step and loop, checkpoints."""

import os
from typing import Any

from vdm_jax import extras

extras.need("train")

# chex imports absl's test cases, which look for a folder for temporary files unless they are told
# one: where nothing can be written there is none, and a command would end with a traceback.
os.environ.setdefault("TEST_TMPDIR", os.curdir)


def __getattr__(name: str) -> Any:
    """Returns `fit`, which evaluates too and so lies in `run`: it is imported when asked for."""
    if name == "fit":
        from vdm_jax.run.fit import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
