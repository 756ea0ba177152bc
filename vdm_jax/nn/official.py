"""The published code's checkpoints, as plain functions.

A checkpoint is a file `ckpt-N.flax` (N counts saves): a Flax msgpack of step, params, ema_params
and opt_state. What the published evaluation uses, and what is read here, is ema_params.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import serialization

from vdm_jax.nn import monotone
from vdm_jax.nn.unet import UNet
from vdm_jax.types import PerExample, Tensor

__all__ = ["OfficialModel", "load", "modules"]

# Every key of the published `config.model`, with the type its value must have.
_KEYS: dict[str, type] = {
    "vocab_size": int,
    "sample_softmax": bool,
    "antithetic_time_sampling": bool,
    "with_fourier_features": bool,
    "with_attention": bool,
    "gamma_type": str,
    "gamma_min": float,
    "gamma_max": float,
    "sm_n_timesteps": int,
    "sm_n_embd": int,
    "sm_n_layer": int,
    "sm_pdrop": float,
}
_GAMMA_TYPES = {"learnable_nnet": "monotone", "learnable_scalar": "scalar", "fixed": "fixed"}


@dataclasses.dataclass(frozen=True)
class OfficialModel:
    """A published model: `gamma(t)`, `denoise(z_t, gamma_t)`, `params` and its constants.

    `gamma` and `denoise` have the parameters closed over; for gradients call `gamma_module` and
    `score_module` with `{"params": params["gamma"]}` and `{"params": params["score_model"]}`.
    """

    params: Any
    gamma_module: nn.Module
    score_module: UNet
    levels: int
    num_steps: int | None
    step: int

    def gamma(self, t: Tensor) -> Tensor:
        """Times of any shape -> gamma(t) of the same shape."""
        variables = {"params": self.params.get("gamma", {})}
        return cast(Tensor, self.gamma_module.apply(variables, t))

    def denoise(
        self, z_t: Tensor, gamma_t: PerExample, conditioning: PerExample | None = None
    ) -> Tensor:
        """Latents [batch, height, width, channels] and gammas [batch] -> eps_hat (kind "eps")."""
        variables = {"params": self.params["score_model"]}
        return cast(Tensor, self.score_module.apply(variables, z_t, gamma_t, conditioning))


def load(path: str | Path, model_config: Mapping[str, Any]) -> OfficialModel:
    """Read a published checkpoint.

    Args:
      path: the checkpoint file, or its folder (then the `ckpt-N.flax` with the largest N).
      model_config: that code's `config.model`, as a dict or ConfigDict.

    Raises:
      ValueError: for a folder without checkpoints, a file that isn't one, an unknown, missing or
        mistyped configuration key, or parameters that don't fit the configuration (names the first
        leaf that differs, with both shapes).
      FileNotFoundError: if there is nothing at `path`.
    """
    gamma_module, score_module = modules(model_config)
    file = _find(Path(path))
    tree = _read(file)
    params = tree["ema_params"]
    _check_params(params, gamma_module, score_module, file)
    steps = model_config["sm_n_timesteps"]
    return OfficialModel(
        params=jax.tree.map(jnp.asarray, params),
        gamma_module=gamma_module,
        score_module=score_module,
        levels=model_config["vocab_size"],
        num_steps=steps if steps > 0 else None,  # there 0 stands for continuous time
        step=int(tree["step"]),
    )


def modules(model_config: Mapping[str, Any]) -> tuple[nn.Module, UNet]:
    """The schedule and the network that a published `config.model` describes."""
    config = _check_config(model_config)
    lower, upper = config["gamma_min"], config["gamma_max"]
    kind = _GAMMA_TYPES[config["gamma_type"]]
    return monotone.make(kind, lower, upper, pinned=False), UNet(
        gamma_min=lower,
        gamma_max=upper,
        channels=config["sm_n_embd"],
        num_blocks=config["sm_n_layer"],
        attention="all" if config["with_attention"] else "middle",
        fourier_features=config["with_fourier_features"],
        dropout=config["sm_pdrop"],
    )


def _check_config(model_config: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(model_config.items())
    for key in _KEYS:
        if key not in given:
            raise ValueError(f"model_config has no {key!r}: wanted the published `config.model`.")
    for key, value in given.items():
        if key not in _KEYS and not callable(value):
            raise ValueError(f"model_config has an unknown key {key!r}; known: {', '.join(_KEYS)}.")
        wanted = _KEYS.get(key, object)
        numeric = wanted is float and isinstance(value, int) and not isinstance(value, bool)
        if not (type(value) is wanted or numeric or key not in _KEYS):
            raise ValueError(f"model_config[{key!r}] must be of type {wanted.__name__}: {value!r}.")
    if given["gamma_type"] not in _GAMMA_TYPES:
        known = ", ".join(_GAMMA_TYPES)
        raise ValueError(f"gamma_type must be one of {known}, got {given['gamma_type']!r}.")
    return given


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint file or folder at {path}.")
    number: Callable[[Path], int] = lambda file: int(re.findall(r"\d+", file.name)[0])  # noqa: E731
    files = [file for file in path.iterdir() if re.fullmatch(r"ckpt-\d+\.flax", file.name)]
    if not files:
        raise ValueError(f"the folder {path} holds no checkpoint ckpt-N.flax.")
    return max(files, key=number)


def _read(file: Path) -> dict[str, Any]:
    wanted = "a published checkpoint (a Flax msgpack of step, params, ema_params, opt_state)"
    try:
        tree = serialization.msgpack_restore(file.read_bytes())
    except Exception as error:  # msgpack raises its own kinds, ValueError, UnicodeDecodeError, ...
        raise ValueError(f"{file} is damaged, cut short or not {wanted}: {error}") from error
    if not isinstance(tree, dict) or not {"step", "ema_params"} <= set(tree):
        found = sorted(map(str, tree)) if isinstance(tree, dict) else type(tree).__name__
        raise ValueError(f"{file} is not {wanted}: it holds {found}.")
    return tree


def _check_params(params: Any, gamma_module: nn.Module, score_module: UNet, file: Path) -> None:
    """Compare names, shapes and dtypes with what the configuration calls for, leaf by leaf."""
    found = _flatten(params)
    # The number of image channels isn't in the configuration: the last convolution tells it.
    bias = found.get("score_model/conv_out/bias")
    channels = bias.shape[0] if isinstance(bias, np.ndarray) and bias.ndim == 1 else 3

    def initialise() -> Any:
        key, batch = jax.random.key(0), jnp.zeros((1,))
        z_t = jnp.zeros((1, 8, 8, channels))
        gamma = gamma_module.init(key, batch).get("params", {})
        return {"gamma": gamma, "score_model": score_module.init(key, z_t, batch)["params"]}

    expected = _flatten(jax.eval_shape(initialise))
    for name in sorted(expected.keys() | found.keys()):
        have, want = found.get(name), expected.get(name)
        if want is None:
            raise ValueError(f"{file} has a parameter {name} that the configuration has not.")
        if have is None:
            raise ValueError(f"{file} lacks the parameter {name}, wanted {list(want.shape)}.")
        if not isinstance(have, np.ndarray) or have.shape != want.shape:
            shape = list(have.shape) if isinstance(have, np.ndarray) else type(have).__name__
            raise ValueError(
                f"the parameter {name} of {file} is {shape}, but the configuration calls for "
                f"{list(want.shape)}."
            )
        if have.dtype != want.dtype or not np.isfinite(have).all():
            raise ValueError(f"the parameter {name} of {file} is not finite {want.dtype}.")


def _flatten(tree: Any) -> dict[str, Any]:
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}
