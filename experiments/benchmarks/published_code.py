"""The published code's own network and loss, from a copy of it, for comparisons of speed.

Of that code only model_vdm.py is imported. Its training step lies in files that need TensorFlow and
clu, so it's put together here as there: AdamW, the average of the parameters, one bound a step;
compiled by `jax.jit` in place of `pmap` around a scan, which on a CPU would be many times slower.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vdm_jax import loss
from vdm_jax.errors import UserError
from vdm_jax.nn.published_configs import PUBLISHED
from vdm_jax.train import optimizer, step


class PublishedCode:
    """The published model for 32x32 RGB images, with the given width and depth."""

    def __init__(self, folder: Path, channels: int, num_blocks: int) -> None:
        module = _load(folder)
        config = PUBLISHED["cifar10"]["model"] | {"sm_n_embd": channels, "sm_n_layer": num_blocks}
        self._model: Any = module.VDM(module.VDMConfig(**config))
        self._adamw = optimizer.make(optimizer.learning_rate(2e-4, warmup_steps=100))

    def init(self, key: jax.Array) -> Any:
        """Returns parameters, their average, and the optimiser's state."""
        images, conditioning = jnp.zeros((2, 32, 32, 3), jnp.uint8), jnp.zeros((2,))
        params = self._model.init({"params": key, "sample": key}, images, conditioning)["params"]
        return params, jax.tree.map(jnp.copy, params), self._adamw.init(params)

    def train_step(self, state: Any, images: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
        """Returns the state after a step on images [batch, 32, 32, 3], and their bits per dim."""
        params, average, opt_state = state
        key_sample, key_dropout = jax.random.split(key)

        def bound(params: Any) -> jax.Array:
            found = self._model.apply(
                {"params": params}, images=images, conditioning=jnp.zeros(len(images)),
                deterministic=False, rngs={"sample": key_sample, "dropout": key_dropout},
            )  # fmt: skip
            nats = found.loss_recon + found.loss_klz + found.loss_diff
            return loss.bits_per_dim(nats.mean(), images.shape[1:])

        value, grads = jax.value_and_grad(bound)(params)
        updates, opt_state = self._adamw.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, step.ema_update(average, params, 0.9999), opt_state), value

    def sample_step(self, params: Any, z_t: jax.Array, i: jax.Array, key: jax.Array) -> jax.Array:
        """Returns z_s after step number `i` of 1000 ancestral ones."""
        return self._model.apply(
            {"params": params}, i=i, T=1000, z_t=z_t, conditioning=jnp.zeros(len(z_t)), rng=key,
            method=self._model.sample,
        )  # fmt: skip


def _load(folder: Path) -> ModuleType:
    file = folder / "model_vdm.py"
    if not file.is_file():
        raise UserError(f"--official-code: {file} is missing; wanted a copy of google-research/vdm")
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(file.stem)
    except Exception as error:
        raise UserError(f"--official-code: {file} can't be imported: {error}") from error
    finally:
        sys.path.remove(str(folder))
