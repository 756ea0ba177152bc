"""From a configuration to a model: joins the Flax networks to training."""

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from experiments.cli import UserError
from vdm_jax import timestep
from vdm_jax.nn import monotone
from vdm_jax.nn.mlp import MLP
from vdm_jax.nn.unet import UNet
from vdm_jax.train.model import Model, Params
from vdm_jax.types import Denoise, Gamma, Key, PerExample, Tensor

__all__ = ["make_model"]


def make_model(config: ConfigDict, event_shape: tuple[int, ...], levels: int) -> Model:
    """The model of `config.model` for images of the given shape and number of levels.

    Its parameters are {"gamma": …, "score_model": …}, as in the published code.
    Raises UserError for settings that don't fit together.
    """
    c = config.model
    try:
        gamma_module = monotone.make(
            c.gamma, c.gamma_min, c.gamma_max, c.gamma_pinned, c.learn_end_points
        )
        if c.num_steps is not None:
            timestep.check_num_steps(c.num_steps)
    except ValueError as error:
        raise UserError(f"config.model: {error}") from error
    network = _network(c, levels)
    if c.timesteps not in timestep.METHODS:
        raise UserError(
            f"config.model.timesteps is {c.timesteps!r}; known: {', '.join(timestep.METHODS)}"
        )

    def init(key: Key) -> Params:
        batch = jnp.zeros((1,))
        variables = network.init(key, jnp.zeros((1, *event_shape)), batch)
        return {
            "gamma": gamma_module.init(key, batch).get("params", {}),
            "score_model": variables["params"],
        }

    def bind(
        params: Params, conditioning: PerExample, dropout: Key | None
    ) -> tuple[Denoise, Gamma]:
        def denoise(z_t: Tensor, gamma_t: PerExample) -> Tensor:
            variables = {"params": params["score_model"]}
            rngs = {} if dropout is None else {"dropout": dropout}
            return network.apply(variables, z_t, gamma_t, conditioning, dropout is None, rngs=rngs)

        return denoise, lambda t: gamma_module.apply({"params": params["gamma"]}, t)

    return Model(
        init=init,
        bind=bind,
        kind="x" if c.head == "levels" else "eps",
        event_shape=event_shape,
        levels=levels,
        num_steps=c.num_steps,
        timesteps=c.timesteps,
    )


def _network(c: ConfigDict, levels: int) -> nn.Module:
    """The network, unless its settings are wrong."""
    for name, known in (
        ("network", ("unet", "mlp")),
        ("head", ("eps", "levels")),
        ("attention", ("middle", "all")),
    ):
        if c[name] not in known:
            raise UserError(f"config.model.{name} is {c[name]!r}; known: {', '.join(known)}")
    for name in ("channels", "num_blocks"):
        if c[name] < 1:
            raise UserError(f"config.model.{name} must be at least 1, got {c[name]}")
    if not 0.0 <= c.dropout < 1.0:
        raise UserError(f"config.model.dropout must lie in [0, 1), got {c.dropout}")
    shared = dict(
        gamma_min=c.gamma_min,
        gamma_max=c.gamma_max,
        num_blocks=c.num_blocks,
        dropout=c.dropout,
        head=c.head,
        levels=levels,
    )
    if c.network == "mlp":
        return MLP(width=c.channels, **shared)
    if c.channels % 32:
        raise UserError(
            f"config.model.channels is {c.channels}; the unet's group normalisation needs a "
            "multiple of 32"
        )
    return UNet(
        channels=c.channels,
        attention=c.attention,
        fourier_features=c.fourier_features,
        **shared,
    )
