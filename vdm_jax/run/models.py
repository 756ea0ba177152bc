"""From a configuration to a model: joins the Flax networks to training."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from vdm_jax import timestep
from vdm_jax.gaussian import Gaussian
from vdm_jax.nn import gamma as monotone
from vdm_jax.nn.features import head_kind
from vdm_jax.nn.mlp import MLP
from vdm_jax.nn.resnet import ResNet
from vdm_jax.nn.unet import UNet
from vdm_jax.nn.vae import HierarchicalVAE
from vdm_jax.related import hierarchy
from vdm_jax.run import config as check
from vdm_jax.run.cli import UserError
from vdm_jax.schedule import alpha
from vdm_jax.train.binomial import BinomialModel
from vdm_jax.train.hierarchical import Conditionals, HierarchicalModel
from vdm_jax.train.model import Model, Params, Trainable
from vdm_jax.types import Denoise, Gamma, Key, PerExample, Tensor

__all__ = ["make_model"]

Apply = Callable[[Params, Tensor, PerExample, Tensor, Key | None], Any]


def make_model(
    config: ConfigDict, event_shape: tuple[int, ...], levels: int, num_classes: int = 0
) -> Trainable:
    """The model of `config.model` and `config.hierarchy` for images of the given shape and levels.

    With `num_classes` the conditioning is [batch, 2], the augmentation flag and the class, else
    the flag alone, [batch].

    A VDM's parameters are {"gamma": …, "score_model": …}, as in the published code.
    Raises UserError for settings that don't fit together.
    """
    check.model(config, levels, num_classes)
    try:
        model: Trainable
        if config.hierarchy.depth is not None:
            model = _hierarchy(config, event_shape, levels, num_classes)
        elif config.model.process == "binomial":
            model = _binomial(config.model, event_shape, num_classes)
        else:
            model = _vdm(config.model, event_shape, levels, num_classes)
        jax.eval_shape(model.init, jax.random.key(0))
    except ValueError as error:
        parts = "config.model" + (", config.hierarchy" if config.hierarchy.depth else "")
        raise UserError(f"{parts}: {error}") from error
    return model


# ---- the kinds of models ----


def _vdm(c: ConfigDict, event_shape: tuple[int, ...], levels: int, num_classes: int) -> Model:
    gamma_module = monotone.make(
        c.gamma, c.gamma_min, c.gamma_max, c.gamma_pinned, c.learn_end_points
    )
    if c.num_steps is not None:
        timestep.check_num_steps(c.num_steps)
    network = _network(c, levels)
    start, apply = _with_conditioning(network, event_shape, num_classes)

    def init(key: Key) -> Params:
        gamma = gamma_module.init(key, jnp.zeros((1,))).get("params", {})
        return {"gamma": gamma, "score_model": start(key)}

    def bind(params: Params, conditioning: Tensor, dropout: Key | None) -> tuple[Denoise, Gamma]:
        def denoise(z_t: Tensor, gamma_t: PerExample) -> Any:
            return apply(params["score_model"], z_t, gamma_t, conditioning, dropout)

        def gamma(t: Tensor) -> Tensor:
            return cast(Tensor, gamma_module.apply({"params": params["gamma"]}, t))

        return denoise, gamma

    return Model(
        init=init,
        bind=bind,
        kind=head_kind(c.head),
        event_shape=event_shape,
        levels=levels,
        num_steps=c.num_steps,
        timesteps=c.timesteps,
        end_points=monotone.END_POINTS if c.gamma_objective == "variance" else None,
        reverse_var=c.reverse_var,
        density=c.decoder == "density",
    )


def _binomial(c: ConfigDict, event_shape: tuple[int, ...], num_classes: int) -> BinomialModel:
    timestep.check_num_steps(c.num_steps)
    with_keep = ConfigDict(c.to_dict())
    with_keep.update(gamma_min=0.0, gamma_max=1.0)  # what it is conditioned on is keep_t
    init, apply = _with_conditioning(_network(with_keep, 2), event_shape, num_classes)

    def bind(params: Params, conditioning: Tensor, dropout: Key | None) -> Any:
        return lambda z_t, keep_t: apply(params, z_t, keep_t, conditioning, dropout)

    return BinomialModel(init, bind, event_shape, c.num_steps, c.timesteps)


def _hierarchy(
    config: ConfigDict, event_shape: tuple[int, ...], levels: int, num_classes: int
) -> HierarchicalModel:
    c, h = config.model, config.hierarchy
    shared = {
        "event_shape": event_shape,
        "levels": levels,
        "depth": h.depth,
        "density": c.decoder == "density",
        "words": "VAE" if h.depth == 1 else f"hierarchical VAE of {h.depth} latents",
    }
    if h.data_size and h.fixed_encoder:
        ends = ConfigDict(c.to_dict())
        if not h.ends_at_normal:
            ends.gamma_max = 0.0
        vdm = _vdm(ends, event_shape, levels, num_classes)
        if h.ends_at_normal:
            shared["words"] += f", a VDM of T = {h.depth - 1}"
        return HierarchicalModel(
            vdm.init, _chain_of(vdm, h.depth - 1), latent_shape=event_shape, **shared
        )
    network = HierarchicalVAE(
        event_shape,
        **h.to_dict(),
        width=c.channels,
        num_blocks=c.num_blocks,
        dropout=c.dropout,
        gamma_min=c.gamma_min,
        gamma_max=c.gamma_max,
    )

    def init(key: Key) -> Params:
        return network.init(key, jnp.zeros((1, *event_shape)))["params"]

    def bind(params: Params, conditioning: Tensor, dropout: Key | None) -> Conditionals:
        rngs = {} if dropout is None else {"dropout": dropout}

        def call(method: str, *args: Any) -> Gaussian:
            variables = {"params": params}
            found = network.apply(variables, *args, dropout is None, method=method, rngs=rngs)
            return cast(Gaussian, found)

        return Conditionals(
            [functools.partial(call, "encode", i) for i in range(h.depth)],
            [functools.partial(call, "decode", i) for i in range(h.depth - 1)],
            functools.partial(call, "pixels"),
        )

    return HierarchicalModel(init, bind, latent_shape=(network.size,), **shared)


def _chain_of(vdm: Model, num_steps: int) -> Callable[..., Conditionals]:
    """A VDM's conditionals: all three restrictions of a hierarchy at once."""

    def bind(params: Params, conditioning: Tensor, dropout: Key | None) -> Conditionals:
        denoise, gamma = vdm.bind(params, conditioning, dropout)
        encode, decode = hierarchy.of_diffusion(
            denoise, gamma, num_steps, vdm.kind, vdm.reverse_var
        )
        gamma_0 = gamma(jnp.zeros(1))[0]

        def likelihood(z_0: Tensor) -> Gaussian:
            return Gaussian(z_0 / alpha(gamma_0), jnp.exp(gamma_0))

        return Conditionals(
            [functools.partial(encode, i) for i in range(num_steps + 1)],
            [functools.partial(decode, i) for i in range(num_steps)],
            likelihood,
        )

    return bind


# ---- the networks ----


def _with_conditioning(
    network: nn.Module, event_shape: tuple[int, ...], num_classes: int
) -> tuple[Callable[[Key], Params], Apply]:
    """The network's init, and its call with parameters, latents, gamma, conditioning, dropout."""

    trained = network
    if isinstance(network, UNet):  # as it is trained, and with forward derivatives on any device
        trained, network = network.clone(reverse_only=True), network.clone(fused_attention=False)

    def init(key: Key) -> Params:
        conditioning = jnp.zeros((1, 1 + num_classes))
        z_t = jnp.zeros((1, *event_shape))
        return network.init(key, z_t, jnp.zeros((1,)), conditioning)["params"]

    def apply(
        params: Params, z_t: Tensor, gamma_t: PerExample, given: Tensor, dropout: Key | None
    ) -> Any:
        training = dropout is not None
        rngs = {} if dropout is None else {"dropout": dropout}
        module = trained if training else network
        if num_classes:
            flag, label = given[:, :1], given[:, 1].astype(int)
            given = jnp.concatenate([flag, jax.nn.one_hot(label, num_classes)], axis=1)
        return module.apply({"params": params}, z_t, gamma_t, given, not training, rngs=rngs)

    return init, apply


def _network(c: ConfigDict, levels: int) -> nn.Module:
    names = ("gamma_min", "gamma_max", "num_blocks", "dropout", "head", "fourier_features")
    shared = {name: c[name] for name in names} | {"levels": levels}
    shared["learn_variance"] = c.reverse_var == "learned"
    if c.network == "mlp":
        return MLP(width=c.channels, **shared)
    if c.network == "resnet":
        return ResNet(channels=c.channels, **shared)
    if c.channels % 32 or c.channels < 64:
        raise UserError(
            f"config.model.channels is {c.channels}; the unet's normalisation over 32 groups needs "
            "a multiple of 32, and at least 64 to see gamma (one channel a group hides it)"
        )
    own = ("channels", "attention", "remat", "dtype", "fused_attention")
    return UNet(**{name: c[name] for name in own}, **shared)
