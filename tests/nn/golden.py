"""The golden files: values of the published code (see tests/data/README.md)."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import loss, pixels
from vdm_jax.loss import ElboTerms
from vdm_jax.nn import official
from vdm_jax.nn.blocks import Remat
from vdm_jax.vdm import VDM

DATA = Path(__file__).parent.parent / "data"
NAMES = ("scalar_gamma", "nnet_gamma_attention", "no_fourier_odd_batch")


class Golden(NamedTuple):
    """A published model with its inputs and results."""

    folder: Path
    config: dict[str, Any]
    model: official.OfficialModel
    expected: dict[str, np.ndarray]

    @property
    def x(self) -> jax.Array:
        return pixels.encode(self.expected["images"], 256)

    def terms(self, vdm: VDM, num_steps: int | None) -> ElboTerms:
        """The bound's terms at the stored noise and times."""
        names = ("images", "eps", "t_continuous", "eps_0")
        given = (jnp.asarray(self.expected[name]) for name in names)
        return vdm._replace(num_steps=num_steps).elbo_given(*given)

    def norms(self, tree: Any) -> np.ndarray:
        """L2 norm per leaf of parameters or the like, in the order of the golden files."""
        leaves = jax.tree.leaves(as_published(tree))
        return np.array([np.linalg.norm(np.asarray(leaf).ravel()) for leaf in leaves])


@functools.cache
def gradient(name: str, num_steps: int | None, remat: Remat) -> Callable[[Any], Any]:
    """params -> (bits per dim, gradient), compiled once a session."""
    golden = load(name)
    network = golden.model.score_module.clone(reverse_only=True, remat=remat)
    bind = golden.model._replace(score_module=network).bind(golden.x.shape[1:])

    def value(params: Any) -> jax.Array:
        total = golden.terms(bind(params), num_steps).total
        return loss.bits_per_dim(total.mean(), golden.x.shape[1:])

    return jax.jit(jax.value_and_grad(value))


@functools.cache
def compiled(name: str) -> VDM:
    """The model with its own parameters, its network compiled once a session."""
    golden = load(name)
    vdm = golden.model.bind(golden.x.shape[1:])(golden.model.params)
    return vdm._replace(denoise=jax.jit(vdm.denoise))


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


def as_dataset(name: str, folder: Path) -> tuple[str, ...]:
    """The flags that name a model's images as a dataset, kept in a folder."""
    images = load(name).expected["images"]
    np.savez(folder / "images.npz", train=images, test=images)
    return "--data=arrays", f"--path={folder / 'images.npz'}", f"--data_dir={folder / 'cache'}"
