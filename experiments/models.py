"""From a configuration to a model: joins the Flax networks to training."""

from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from experiments.cli import UserError
from vdm_jax import timestep
from vdm_jax.nn import monotone
from vdm_jax.nn.features import HEADS, head_kind
from vdm_jax.nn.mlp import MLP
from vdm_jax.nn.resnet import ResNet
from vdm_jax.nn.unet import UNet
from vdm_jax.train.model import Model, Params
from vdm_jax.types import Denoise, Gamma, Key, PerExample, Tensor

__all__ = ["make_model"]


def make_model(
    config: ConfigDict, event_shape: tuple[int, ...], levels: int, num_classes: int = 0
) -> Model:
    """The model of `config.model` for images of the given shape and number of levels.

    With `num_classes` the conditioning is [batch, 2], the augmentation flag and the class, else
    the flag alone, [batch].

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
    if c.gamma_objective == "variance":
        _check_variance(c)
    if c.timesteps not in timestep.METHODS:
        raise UserError(
            f"config.model.timesteps is {c.timesteps!r}; known: {', '.join(timestep.METHODS)}"
        )

    def init(key: Key) -> Params:
        batch = jnp.zeros((1,))
        conditioning = jnp.zeros((1, 1 + num_classes))
        variables = network.init(key, jnp.zeros((1, *event_shape)), batch, conditioning)
        return {
            "gamma": gamma_module.init(key, batch).get("params", {}),
            "score_model": variables["params"],
        }

    def bind(params: Params, conditioning: Tensor, dropout: Key | None) -> tuple[Denoise, Gamma]:
        def denoise(z_t: Tensor, gamma_t: PerExample) -> Tensor:
            variables = {"params": params["score_model"]}
            rngs = {} if dropout is None else {"dropout": dropout}
            given = conditioning
            if num_classes:
                flag, label = given[:, :1], given[:, 1].astype(int)
                given = jnp.concatenate([flag, jax.nn.one_hot(label, num_classes)], axis=1)
            fixed = (gamma_t, given, dropout is None)
            return cast(Tensor, network.apply(variables, z_t, *fixed, rngs=rngs))

        def gamma(t: Tensor) -> Tensor:
            return cast(Tensor, gamma_module.apply({"params": params["gamma"]}, t))

        return denoise, gamma

    try:
        jax.eval_shape(init, jax.random.key(0))
    except ValueError as error:
        raise UserError(f"config.model: {error}") from error
    return Model(
        init=init,
        bind=bind,
        kind=head_kind(c.head),
        event_shape=event_shape,
        levels=levels,
        num_steps=c.num_steps,
        timesteps=c.timesteps,
        end_points=monotone.END_POINTS if c.gamma_objective == "variance" else None,
    )


def _check_variance(c: ConfigDict) -> None:
    """Only a pinned monotone schedule in continuous time has a shape that the bound leaves free."""
    for name, wanted in (("gamma", "monotone"), ("gamma_pinned", True), ("num_steps", None)):
        if c[name] != wanted:
            raise UserError(
                f"config.model.gamma_objective is 'variance', which needs config.model.{name} to "
                f"be {wanted}, got {c[name]}: else the bound depends on the schedule's shape"
            )


def _network(c: ConfigDict, levels: int) -> nn.Module:
    """The network, unless its settings are wrong."""
    for name, known in (
        ("network", ("unet", "resnet", "mlp")),
        ("head", HEADS),
        ("attention", ("middle", "all")),
        ("gamma_objective", ("bound", "variance")),
    ):
        if c[name] not in known:
            raise UserError(f"config.model.{name} is {c[name]!r}; known: {', '.join(known)}")
    names = ("gamma_min", "gamma_max", "num_blocks", "dropout", "head", "fourier_features")
    shared = {name: c[name] for name in names} | {"levels": levels}
    if c.network == "mlp":
        return MLP(width=c.channels, **shared)
    if c.network == "resnet":
        return ResNet(channels=c.channels, **shared)
    if c.channels % 32 or c.channels < 64:
        raise UserError(
            f"config.model.channels is {c.channels}; the unet's normalisation over 32 groups needs "
            "a multiple of 32, and at least 64 to see gamma (one channel a group hides it)"
        )
    return UNet(
        channels=c.channels,
        attention=c.attention,
        **shared,
    )
