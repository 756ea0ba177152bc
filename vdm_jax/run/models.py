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
from vdm_jax.nn.small import MLP, ResNet
from vdm_jax.nn.unet import UNet
from vdm_jax.nn.vae import HierarchicalVAE as HierarchyNetwork
from vdm_jax.related import hierarchy
from vdm_jax.related.models import BinomialDiffusion, HierarchicalVAE
from vdm_jax.run import config as check
from vdm_jax.run.cli import UserError
from vdm_jax.schedule import alpha
from vdm_jax.train.model import Model, Params
from vdm_jax.types import Key, PerExample, Tensor
from vdm_jax.vdm import VDM

__all__ = ["make_model"]

Apply = Callable[[Params, Tensor, PerExample, Tensor | None, Key | None], Any]


def make_model(
    config: ConfigDict, event_shape: tuple[int, ...], levels: int, num_classes: int = 0
) -> Model:
    """The model of `config.model` and `config.hierarchy` for images of the given shape and levels.

    With `num_classes` the conditioning is [batch, 2], the augmentation flag and the class, else
    the flag alone, [batch].

    A VDM's parameters are {"gamma": …, "score_model": …}, as in the published code.
    Raises UserError for settings that don't fit together.
    """
    check.model(config, levels, num_classes)
    try:
        model: Model
        if config.hierarchy.depth is not None:
            model = _hierarchy(config, event_shape, levels, num_classes)
        elif config.model.process == "binomial":
            model = _binomial(config.model, event_shape, num_classes)
        else:
            model = _vdm(config.model, event_shape, levels, num_classes)
        model.facts()
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

    density = c.decoder == "density"

    def bind(params: Params, conditioning: Tensor | None = None, dropout: Key | None = None) -> VDM:
        def denoise(z_t: Tensor, gamma_t: PerExample) -> Any:
            return apply(params["score_model"], z_t, gamma_t, conditioning, dropout)

        def gamma(t: Tensor) -> Tensor:
            return cast(Tensor, gamma_module.apply({"params": params["gamma"]}, t))

        return VDM(
            denoise,
            gamma,
            event_shape,
            None if density else levels,
            head_kind(c.head),
            c.num_steps,
            c.reverse_var,
            c.timesteps,
        )

    return Model(
        init,
        bind,
        end_points=monotone.END_POINTS if c.gamma_objective == "variance" else None,
        pixel_levels=levels if density else None,
    )


def _binomial(c: ConfigDict, event_shape: tuple[int, ...], num_classes: int) -> Model:
    timestep.check_num_steps(c.num_steps)
    with_keep = ConfigDict(c.to_dict())
    with_keep.update(gamma_min=0.0, gamma_max=1.0)  # what it is conditioned on is keep_t
    init, apply = _with_conditioning(_network(with_keep, 2), event_shape, num_classes)

    def bind(
        params: Params, conditioning: Tensor | None = None, dropout: Key | None = None
    ) -> BinomialDiffusion:
        def denoise(z_t: Tensor, keep_t: PerExample) -> Any:
            return apply(params, z_t, keep_t, conditioning, dropout)

        return BinomialDiffusion(denoise, event_shape, c.num_steps, c.timesteps)

    return Model(init, bind)


def _hierarchy(
    config: ConfigDict, event_shape: tuple[int, ...], levels: int, num_classes: int
) -> Model:
    c, h = config.model, config.hierarchy
    words = "VAE" if h.depth == 1 else f"hierarchical VAE of {h.depth} latents"
    density = c.decoder == "density"
    pixel_levels = levels if density else None
    if h.data_size and h.fixed_encoder:
        ends = ConfigDict(c.to_dict())
        if not h.ends_at_normal:
            ends.gamma_max = 0.0
        vdm = _vdm(ends, event_shape, levels, num_classes)
        if h.ends_at_normal:
            words += f", a VDM of T = {h.depth - 1}"

        def of_vdm(*args: Any) -> HierarchicalVAE:
            return _chain(vdm.bind(*args), h.depth - 1, words)

        return Model(vdm.init, of_vdm, pixel_levels=pixel_levels)
    network = HierarchyNetwork(
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

    def bind(
        params: Params, conditioning: Tensor | None = None, dropout: Key | None = None
    ) -> HierarchicalVAE:
        rngs = {} if dropout is None else {"dropout": dropout}

        def call(method: str, *args: Any) -> Gaussian:
            variables = {"params": params}
            found = network.apply(variables, *args, dropout is None, method=method, rngs=rngs)
            return cast(Gaussian, found)

        return HierarchicalVAE(
            [functools.partial(call, "encode", i) for i in range(h.depth)],
            [functools.partial(call, "decode", i) for i in range(h.depth - 1)],
            functools.partial(call, "pixels"),
            event_shape,
            (network.size,),
            None if density else levels,
            words,
        )

    return Model(init, bind, pixel_levels=pixel_levels)


def _chain(vdm: VDM, num_steps: int, words: str) -> HierarchicalVAE:
    """Returns a VDM as a hierarchical VAE: with all three restrictions at once it is one."""
    encode, decode = hierarchy.of_diffusion(
        vdm.denoise, vdm.gamma, num_steps, vdm.kind, vdm.reverse_var
    )
    gamma_0 = vdm.gamma(jnp.zeros(1))[0]

    def likelihood(z_0: Tensor) -> Gaussian:
        return Gaussian(z_0 / alpha(gamma_0), jnp.exp(gamma_0))

    return HierarchicalVAE(
        [functools.partial(encode, i) for i in range(num_steps + 1)],
        [functools.partial(decode, i) for i in range(num_steps)],
        likelihood,
        vdm.event_shape,
        vdm.event_shape,
        vdm.levels,
        words,
    )


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
        params: Params, z_t: Tensor, gamma_t: PerExample, given: Tensor | None,
        dropout: Key | None,
    ) -> Any:  # fmt: skip
        if given is None and not num_classes:
            given = jnp.zeros(z_t.shape[:1])
        training = dropout is not None
        rngs = {} if dropout is None else {"dropout": dropout}
        module = trained if training else network
        if num_classes:
            if given is None:
                raise ValueError(
                    "this network needs the class of each image, conditioning [batch, 2]."
                )
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
