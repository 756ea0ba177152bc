"""The golden files: values of the published code (see tests/data/README.md)."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import loss, pixels
from vdm_jax.loss import ElboTerms
from vdm_jax.nn import published as official
from vdm_jax.nn.blocks import Remat

DATA = Path(__file__).parent.parent / "data"
NAMES = ("scalar_gamma", "nnet_gamma_attention", "no_fourier_odd_batch")


@dataclasses.dataclass(frozen=True)
class Golden:
    """A published model with its inputs and results."""

    folder: Path
    config: dict[str, Any]
    model: official.OfficialModel
    expected: dict[str, np.ndarray]

    @property
    def x(self) -> jax.Array:
        return pixels.encode(self.expected["images"], 256)

    def terms(self, params: Any, num_steps: int | None, remat: Remat = "matmuls") -> ElboTerms:
        """The bound's terms at the stored noise and times, as a function of the parameters."""
        network = self.model.score_module.clone(reverse_only=True, remat=remat)
        model = dataclasses.replace(self.model, params=params, score_module=network)
        names = ("images", "eps_0", "eps", "t_continuous")
        given = (jnp.asarray(self.expected[name]) for name in names)
        return loss.elbo_given(*given, model.denoise, model.gamma, 256, num_steps)

    def bpd(self, params: Any, num_steps: int | None, remat: Remat = "matmuls") -> jax.Array:
        total = self.terms(params, num_steps, remat).total
        return loss.bits_per_dim(total.mean(), self.x.shape[1:])

    def norms(self, tree: Any) -> np.ndarray:
        """L2 norm per leaf of parameters or the like, in the order of the golden files."""
        leaves = jax.tree.leaves(as_published(tree))
        return np.array([np.linalg.norm(np.asarray(leaf).ravel()) for leaf in leaves])


def as_published(tree: Any) -> Any:
    """Parameters, or gradients for them, as a tree of the published code's names."""
    return {**tree, "score_model": official.to_published(tree["score_model"])}


@functools.cache
def load(name: str) -> Golden:
    folder = DATA / name
    config = json.loads((folder / "model_config.json").read_text())
    model = official.load(folder / "checkpoints-0", config)
    with np.load(folder / "expected.npz") as arrays:
        return Golden(folder, config, model, dict(arrays))
