"""The published code's checkpoints, as plain functions.

A checkpoint is a file `ckpt-N.flax` (N counts saves): a Flax msgpack of step, params, ema_params
and opt_state. What the published evaluation uses, and what is read here, is ema_params. Anyone may
have written such a file.
"""

import math
import re
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
from flax import linen as nn
from flax import serialization

from vdm_jax import checks, timestep
from vdm_jax.nn import gamma as monotone
from vdm_jax.nn.unet import UNet, from_published, to_published
from vdm_jax.types import Key, PerExample, Tensor
from vdm_jax.vdm import VDM

# Every key of the published `config.model`, with the type its value must have.
_KEYS: dict[str, type] = {  # Real admits integers, and neither admits a bool
    "vocab_size": Integral, "sample_softmax": bool, "antithetic_time_sampling": bool,
    "with_fourier_features": bool, "with_attention": bool, "gamma_type": str, "gamma_min": Real,
    "gamma_max": Real, "sm_n_timesteps": Integral, "sm_n_embd": Integral, "sm_n_layer": Integral,
    "sm_pdrop": Real,
}  # fmt: skip
_WORDS = {Integral: "an integer", Real: "a number", bool: "True or False", str: "a string"}
_LEAST = {"vocab_size": 1, "sm_n_timesteps": 0, "sm_n_layer": 0, "sm_pdrop": 0}
_MOST = 10_000  # entries of a list or dict: its place is taken before they are read
_GAMMA_TYPES = {"learnable_nnet": "monotone", "learnable_scalar": "scalar", "fixed": "fixed"}


class OfficialModel(NamedTuple):
    """A published model: `gamma(t)`, `denoise(z_t, gamma_t)`, `params`; `bind` makes it a VDM."""

    params: Any
    """Parameters, EMA, {"gamma": ..., "score_model": ...}; the score network's in this package's
    form, blocks stacked (`to_published` gives the file's own)."""
    gamma_module: nn.Module
    score_module: UNet
    levels: int
    num_steps: int | None
    timesteps: timestep.Method
    step: int  # number of steps that it was trained

    def gamma(self, t: Tensor) -> Tensor:
        """Returns gamma(t) for times of any shape."""
        return self.bind(())(self.params).gamma(t)

    def denoise(
        self, z_t: Tensor, gamma_t: PerExample, conditioning: PerExample | None = None
    ) -> Tensor:
        """Returns eps_hat of latents [batch, height, width, channels], gammas [batch] or scalar."""
        per_example = jnp.broadcast_to(gamma_t, z_t.shape[:1])
        return self.bind(z_t.shape[1:])(self.params, conditioning).denoise(z_t, per_example)

    def bind(self, event_shape: tuple[int, ...]) -> Callable[..., VDM]:
        """Returns bind(params, conditioning=None, dropout=None) -> VDM of images of that shape."""

        def bind(params: Any, conditioning: Any = None, dropout: Key | None = None) -> VDM:
            def gamma(t: Tensor) -> Tensor:
                return cast(Tensor, self.gamma_module.apply({"params": params.get("gamma", {})}, t))

            def denoise(z_t: Tensor, gamma_t: PerExample) -> Any:
                variables = {"params": params["score_model"]}
                still, rngs = dropout is None, {} if dropout is None else {"dropout": dropout}
                given = z_t, gamma_t, conditioning, still
                return self.score_module.apply(variables, *given, rngs=rngs)

            vdm = VDM(denoise, gamma, event_shape, self.levels, num_steps=self.num_steps)
            return vdm._replace(timesteps=self.timesteps)

        return bind


def load(path: str | Path, model_config: Mapping[str, Any]) -> OfficialModel:
    """Returns the model of a published checkpoint.

    `path` is the file, or its folder (then the `ckpt-N.flax` with the largest N), `model_config`
    that code's `config.model`, as a dict or ConfigDict. Raises FileNotFoundError if there is
    nothing at `path`, ValueError for a folder without checkpoints, a file that isn't one, a
    configuration with a key unknown, missing or mistyped, or parameters that don't fit it (names
    the first leaf that differs, with both shapes).
    """
    gamma_module, score_module = modules(model_config)
    if not isinstance(path, str | Path):
        raise ValueError(f"path must be a string or Path, got {type(path).__name__}.")
    file = _find(Path(path))
    tree = read(file)
    params = tree["ema_params"]
    check_params(params, _expected(params, gamma_module, score_module), file)
    params = {**params, "score_model": from_published(params["score_model"])}
    steps = model_config["sm_n_timesteps"]
    return OfficialModel(
        params=jax.tree.map(jnp.asarray, params),
        gamma_module=gamma_module,
        score_module=score_module,
        levels=int(model_config["vocab_size"]),
        num_steps=int(steps) if steps > 0 else None,  # there 0 stands for continuous time
        timesteps="antithetic" if model_config["antithetic_time_sampling"] else "uniform",
        step=tree["step"],
    )


def modules(model_config: Mapping[str, Any]) -> tuple[nn.Module, UNet]:
    """Returns the schedule and the network that a published `config.model` describes."""
    config = _check_config(model_config)
    lower, upper = config["gamma_min"], config["gamma_max"]
    kind = _GAMMA_TYPES[config["gamma_type"]]
    return monotone.make(kind, lower, upper, pinned=False), UNet(
        gamma_min=lower,
        gamma_max=upper,
        channels=int(config["sm_n_embd"]),
        num_blocks=int(config["sm_n_layer"]),
        attention="all" if config["with_attention"] else "middle",
        fourier_features=config["with_fourier_features"],
        dropout=config["sm_pdrop"],
    )


def _check_config(model_config: Mapping[str, Any]) -> dict[str, Any]:
    if not hasattr(model_config, "items"):
        kind = type(model_config).__name__
        raise ValueError(f"model_config must be a dict, the published `config.model`, got {kind}.")
    given = dict(model_config.items())
    for key in _KEYS:
        if key not in given:
            raise ValueError(f"model_config has no {key!r}: wanted the published `config.model`.")
    for key, value in given.items():
        if key not in _KEYS and not callable(value):
            raise ValueError(f"model_config has an unknown key {key!r}; known: {', '.join(_KEYS)}.")
        wanted = _KEYS.get(key, object)
        number = wanted in (Integral, Real)
        if not isinstance(value, wanted) or (number and isinstance(value, bool)):
            raise ValueError(f"model_config[{key!r}] must be {_WORDS[wanted]}, got {value!r}.")
    for key, low in _LEAST.items():
        high = 1 if key == "sm_pdrop" else math.inf
        if not low <= (got := given[key]) < high:
            raise ValueError(f"model_config[{key!r}] must lie in [{low}, {high}), got {got}.")
    checks.choice(given["gamma_type"], "gamma_type", list(_GAMMA_TYPES))
    return given


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint file or folder at {path}.")
    files = [file for file in path.iterdir() if re.fullmatch(r"ckpt-\d+\.flax", file.name)]
    if not files:
        raise ValueError(f"the folder {path} holds no checkpoint ckpt-N.flax.")
    return max(files, key=lambda file: int(file.stem.removeprefix("ckpt-")))


def _expected(params: Any, gamma_module: nn.Module, score_module: UNet) -> dict[str, Any]:
    """Returns the shapes that the configuration calls for, as the file has them."""
    # The number of image channels isn't in the configuration: the last convolution tells it.
    bias = leaves(params).get(("score_model", "conv_out", "bias"))
    channels = bias.size if isinstance(bias, np.ndarray) and bias.ndim == 1 and bias.size else 3

    def initialise() -> Any:
        key, batch = jax.random.key(0), jnp.zeros((1,))
        z_t = jnp.zeros((1, 8, 8, channels))
        gamma = gamma_module.init(key, batch).get("params", {})
        score_model = to_published(score_module.init(key, z_t, batch)["params"])
        return {"gamma": gamma, "score_model": score_model}

    return jax.eval_shape(initialise)


# ---- the file ----


def read(file: Path) -> dict[str, Any]:
    """Returns its step, an int, and its other parts as they are; ema_params is a dict.

    Raises ValueError, in one line that names the file, for whatever isn't a published checkpoint.
    It takes memory for the file's content twice, whatever the file declares.
    """
    wanted = "a published checkpoint (a Flax msgpack of step, params, ema_params, opt_state)"
    try:
        content = file.read_bytes()
        _check_sizes(content)
        tree = serialization.msgpack_restore(content)
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror}.") from error
    except Exception as error:  # msgpack raises its own kinds, ValueError, UnicodeDecodeError, ...
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{file} is damaged, cut short or not {wanted}: {said}") from error
    if not isinstance(tree, dict) or not {"step", "ema_params"} <= set(tree):
        found = ", ".join(ascii(key) for key in tree) if isinstance(tree, dict) else None
        kind = f"it holds {found[:200] or 'nothing'}" if found is not None else type(tree).__name__
        raise ValueError(f"{file} is not {wanted}: {kind}.")
    step = tree["step"]
    if isinstance(step, np.ndarray) and step.shape == ():
        step = step[()]
    said = " ".join(ascii(step).split())
    if not isinstance(step, Integral) or isinstance(step, bool) or step < 0:
        raise ValueError(f"{file} is not {wanted}: its step is no count but {said[:100]}.")
    if not isinstance(tree["ema_params"], dict):
        kind = type(tree["ema_params"]).__name__
        raise ValueError(f"{file} is not {wanted}: its ema_params are no dict but {kind}.")
    return {**tree, "step": int(step)}


def check_params(params: Mapping[Any, Any], expected: Mapping[str, Any], file: Path) -> None:
    """Compares names, shapes, dtypes and values with what the configuration calls for.

    Raises ValueError that names the first leaf, by name, that isn't as expected.
    """
    found, wanted = leaves(params), leaves(expected)
    for path in [path for path, leaf in wanted.items() if leaf == {}]:  # a schedule without any
        del wanted[path]
        if isinstance(found.get(path), Mapping):
            del found[path]
    for path in sorted(found.keys() | wanted.keys(), key=lambda path: list(map(ascii, path))):
        name = "/".join(key if isinstance(key, str) else ascii(key) for key in path)
        name = name[:200] if name.isprintable() else ascii(name)[:200]
        have, want = (_form(tree.get(path)) for tree in (found, wanted))
        if have != want:
            there = f"{file} has {have} for the parameter {name}"
            raise ValueError(f"{there}, but the configuration calls for {want}.")
        if not np.isfinite(found[path]).all():
            raise ValueError(f"the parameter {name} of {file} is not finite.")


def _form(leaf: Any) -> str:
    if isinstance(leaf, np.ndarray | jax.ShapeDtypeStruct):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return "nothing" if leaf is None else type(leaf).__name__


def leaves(tree: Mapping[Any, Any]) -> dict[tuple[Any, ...], Any]:
    """Returns each leaf by its keys, of any kind; an empty dict is a leaf, and so is a list.

    Not by recursion: a file may nest deeper than Python calls itself.
    """
    found: dict[tuple[Any, ...], Any] = {}
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), tree)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping) and (value or not path):
            waiting += [((*path, key), each) for key, each in value.items()]
        else:
            found[path] = value
    return found


def _check_sizes(content: bytes) -> None:
    """Parses and keeps nothing: so what Flax then parses declares no more than there is."""

    def small(code: int, data: bytes) -> None:
        if code in (1, 2, 3):  # Flax's arrays, complex numbers and scalars
            msgpack.unpackb(data, raw=True, max_array_len=100, max_map_len=100)

    msgpack.unpackb(
        content, ext_hook=small, strict_map_key=False, max_array_len=_MOST, max_map_len=_MOST
    )
