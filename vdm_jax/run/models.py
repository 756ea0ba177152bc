"""Models as a configuration describes them: joins the Flax networks to training."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from vdm_jax import timestep, transforms, weighting
from vdm_jax.data import Condition
from vdm_jax.data.image_data import UNCONDITIONAL
from vdm_jax.errors import UserError
from vdm_jax.gaussian import Gaussian
from vdm_jax.mixed import Levels
from vdm_jax.nn import gamma as monotone
from vdm_jax.nn.features import head_kind
from vdm_jax.nn.pyramid import Pyramid
from vdm_jax.nn.small import MLP, ResNet
from vdm_jax.nn.unet import UNet
from vdm_jax.nn.vae import HierarchicalVAE as HierarchyNetwork
from vdm_jax.related import hierarchy
from vdm_jax.related.binomial import BinomialDiffusion
from vdm_jax.related.hierarchy import HierarchicalVAE
from vdm_jax.run import defaults
from vdm_jax.run.config import check_model
from vdm_jax.schedule import alpha
from vdm_jax.train import sharding
from vdm_jax.train.model import Model, Params, dropped
from vdm_jax.transforms import Coefficients, Transform
from vdm_jax.types import Key, PerExample, Tensor
from vdm_jax.vdm import VDM

Shape = tuple[int, ...]
Apply = Callable[[Params, Tensor, PerExample, Tensor | None, Key | None], Any]


def make_model(
    config: ConfigDict, event_shape: Shape, levels: int, condition: Condition = UNCONDITIONAL,
    mesh: Mesh | AbstractMesh | None = None,
) -> Model:  # fmt: skip
    """Returns the model of `config.model` and `config.hierarchy` for images of a shape and levels.

    The conditioning is the augmentation flag, [batch], or with a `condition` [batch, 1 + k], the
    flag and behind it the class or the numbers; with config.model.condition_dropout the flag alone
    stands for any condition. A VDM's parameters are {"gamma": …, "score_model": …}, as in the
    published code. Given the `mesh` that trains it, it trains as is fastest there. Raises UserError
    for settings that don't fit together.
    """
    check_model(config, levels, condition)
    hierarchical, platform = config.hierarchy.depth is not None, sharding.platform(mesh)
    try:
        if hierarchical:
            model = _hierarchy(config, event_shape, levels, condition, platform)
        elif config.model.process == "binomial":
            model = _binomial(config.model, event_shape, condition, platform)
        else:
            model = _vdm(config.model, event_shape, levels, condition, platform)
        model.facts()
    except UserError:  # which names the setting
        raise
    except ValueError as error:
        parts = "config.model" + (", config.hierarchy" if hierarchical else "")
        raise UserError(f"{parts}: {error}") from error
    return model


def _vdm(
    c: ConfigDict, event_shape: Shape, levels: int, condition: Condition, platform: str | None
) -> Model:
    ends = c.gamma_min, c.gamma_max, c.gamma_pinned, c.learn_end_points
    told = condition.size + (c.condition_dropout > 0) if c.gamma == "conditional_path" else 0
    schedule = monotone.make(c.gamma, *ends, event_shape, told)
    transform = _transform(c, event_shape)
    if c.num_steps is not None:
        timestep.check_num_steps(c.num_steps)
    start, apply = _with_conditioning(c, event_shape, levels, condition, platform)
    pixel_levels = levels if c.decoder == "density" else None
    number = None if pixel_levels else levels
    data_levels: Levels = number if transform is None else Coefficients(number, transform)
    adaptive = c.timesteps == "adaptive"
    times: timestep.Method = "antithetic" if adaptive else c.timesteps

    def init(key: Key) -> Params:
        gamma = schedule.init(key, jnp.zeros((1,))).get("params", {})
        return {"gamma": gamma, "score_model": start(key)}

    def bind(params: Params, conditioning: Tensor | None = None, dropout: Key | None = None) -> VDM:
        def of_pixels(z_t: Tensor, gamma_t: PerExample) -> Any:
            return apply(params["score_model"], z_t, gamma_t, conditioning, dropout)

        denoise = of_pixels if transform is None else transforms.denoiser(of_pixels, transform)
        by: tuple[Tensor, ...] = ()
        if told and conditioning is not None:
            # By the same key as for the network, which so lacks the same conditions.
            by = (_columns(conditioning, condition, c.condition_dropout, dropout)[0][:, 1:],)

        def gamma(t: Tensor) -> Tensor:
            return cast(Tensor, schedule.apply({"params": params["gamma"]}, t, *by))

        rule = head_kind(c.head), c.num_steps, c.reverse_var, times
        return VDM(denoise, gamma, event_shape, data_levels, *rule)

    end_points = monotone.END_POINTS if c.gamma_objective == "variance" else None
    weight = None if c.weighting == "bound" else weighting.NAMED[c.weighting]()
    return Model(init, bind, end_points, pixel_levels, weight, adaptive)


def _transform(c: ConfigDict, event_shape: Shape) -> Transform | None:
    """Returns the transform of `config.model.transform`, "none", "dct" or "haar-" and a number."""
    if c.transform == "none":
        return None
    name, _, levels = c.transform.partition("-")
    made = transforms.haar(int(levels)) if name == "haar" else transforms.dct()
    made.forward(jnp.zeros((1, *event_shape)))  # refuses sizes that it can't be of
    return made


def _binomial(
    c: ConfigDict, event_shape: Shape, condition: Condition, platform: str | None
) -> Model:
    timestep.check_num_steps(c.num_steps)
    with_keep = ConfigDict(c.to_dict())
    with_keep.update(gamma_min=0.0, gamma_max=1.0)  # what it is conditioned on is keep_t
    init, apply = _with_conditioning(with_keep, event_shape, 2, condition, platform)

    def bind(
        params: Params, conditioning: Tensor | None = None, dropout: Key | None = None
    ) -> BinomialDiffusion:
        def denoise(z_t: Tensor, keep_t: PerExample) -> Any:
            return apply(params, z_t, keep_t, conditioning, dropout)

        return BinomialDiffusion(denoise, event_shape, c.num_steps, c.timesteps)

    return Model(init, bind)


def _hierarchy(
    config: ConfigDict, event_shape: Shape, levels: int, condition: Condition, platform: str | None
) -> Model:
    c, h = config.model, config.hierarchy
    if h.data_size and h.fixed_encoder:
        return _restricted(config, event_shape, levels, condition, platform)
    words = "VAE" if h.depth == 1 else f"hierarchical VAE of {h.depth} latents"
    pixel_levels = levels if c.decoder == "density" else None
    data_levels = None if pixel_levels else levels
    sizes = {name: c[name] for name in ("num_blocks", "dropout", "gamma_min", "gamma_max")}
    network = HierarchyNetwork(event_shape, **h.to_dict(), width=c.channels, **sizes)

    def init(key: Key) -> Params:
        return network.init(key, jnp.zeros((1, *event_shape)))["params"]

    def bind(params: Params, _: Any = None, dropout: Key | None = None) -> HierarchicalVAE:
        rngs = {} if dropout is None else {"dropout": dropout}

        def call(method: str, *args: Any) -> Gaussian:
            variables = {"params": params}
            found = network.apply(variables, *args, dropout is None, method=method, rngs=rngs)
            return cast(Gaussian, found)

        encoders = [functools.partial(call, "encode", i) for i in range(h.depth)]
        decoders = [functools.partial(call, "decode", i) for i in range(h.depth - 1)]
        shapes, pixels = (event_shape, (network.size,)), functools.partial(call, "pixels")
        return HierarchicalVAE(encoders, decoders, pixels, *shapes, data_levels, words)

    return Model(init, bind, pixel_levels=pixel_levels)


def _restricted(
    config: ConfigDict, event_shape: Shape, levels: int, condition: Condition, platform: str | None
) -> Model:
    """Returns a hierarchy whose latents are as large as the data and whose encoder is fixed.

    It has a VDM's networks, and if it also ends at N(0, I) it is the VDM of T = depth - 1.
    """
    c, h = ConfigDict(config.model.to_dict()), config.hierarchy
    num_steps = h.depth - 1
    words = f"hierarchical VAE of {h.depth} latents"
    if h.ends_at_normal:
        words += f", a VDM of T = {num_steps}"
    else:
        c.gamma_max = 0.0
    model = _vdm(c, event_shape, levels, condition, platform)

    data_levels = None if model.pixel_levels else levels

    def bind(*args: Any) -> HierarchicalVAE:
        vdm: VDM = model.bind(*args)
        encode, decode = hierarchy.of_diffusion(vdm._replace(num_steps=num_steps))
        gamma_0 = vdm.gamma(jnp.zeros(1))[0]

        def likelihood(z_0: Tensor) -> Gaussian:
            return Gaussian(z_0 / alpha(gamma_0), jnp.exp(gamma_0))

        encoders = [functools.partial(encode, i) for i in range(num_steps + 1)]
        decoders = [functools.partial(decode, i) for i in range(num_steps)]
        shapes = (event_shape, event_shape)
        return HierarchicalVAE(encoders, decoders, likelihood, *shapes, data_levels, words)

    return Model(model.init, bind, pixel_levels=model.pixel_levels)


def _with_conditioning(
    c: ConfigDict, event_shape: Shape, levels: int, condition: Condition, platform: str | None
) -> tuple[Callable[[Key], Params], Apply]:
    """Returns the network's init, and its call (params, z_t, gamma_t, conditioning, dropout)."""
    network, rate = _network(c, levels, platform), c.condition_dropout
    trained = network
    if isinstance(network, UNet | Pyramid):
        # As it is trained, and with forward derivatives on any device.
        trained = network.clone(reverse_only=platform == "cpu")
        network = network.clone(fused_attention=False)
    if isinstance(trained, UNet):
        on_gpu, on_tpu = platform in ("gpu", "cuda"), platform == "tpu"
        trained = trained.clone(written_out=on_tpu, redraw=on_gpu, packed=on_tpu)

    def init(key: Key) -> Params:
        conditioning = jnp.zeros((1, 1 + condition.size + (rate > 0)))
        z_t = jnp.zeros((1, *event_shape))
        return network.init(key, z_t, jnp.zeros((1,)), conditioning)["params"]

    def apply(
        params: Params, z_t: Tensor, gamma_t: PerExample, given: Tensor | None,
        dropout: Key | None,
    ) -> Any:  # fmt: skip
        given = jnp.zeros(z_t.shape[:1]) if given is None else given
        if condition.size:
            given, dropout = _columns(given, condition, rate, dropout)
        module, rngs = (network, {}) if dropout is None else (trained, {"dropout": dropout})
        return module.apply({"params": params}, z_t, gamma_t, given, dropout is None, rngs=rngs)

    return init, apply


def _columns(
    given: Tensor, condition: Condition, rate: float, dropout: Key | None
) -> tuple[Tensor, Key | None]:
    """Returns what network and schedule are told, and what `dropped` leaves of the dropout key.

    That is the augmentation flag and the condition. Where conditions are dropped at a `rate` a last
    column says whether this one is there, else it is all zeros, as where `given` is the flag alone.
    """
    if given.ndim == 1:
        if not rate:
            raise ValueError(f"the network needs the {condition.word} of each image, [batch, n].")
        return jnp.pad(given[:, None], ((0, 0), (0, condition.size + 1))), dropout
    flag, told = given[:, :1], given[:, 1:]
    if condition.classes:
        told = jax.nn.one_hot(told[:, 0].astype(int), condition.classes)
    parts = (told, jnp.ones_like(flag)) if rate else (told,)
    parts, dropout = dropped(parts, dropout, rate)
    return jnp.concatenate([flag, *parts], axis=1), dropout


def _network(c: ConfigDict, levels: int, platform: str | None) -> nn.Module:
    names = ("gamma_min", "gamma_max", "dropout", "head", "fourier_features")
    shared = {name: c[name] for name in names} | {"levels": levels}
    shared["learn_variance"] = c.reverse_var == "learned"
    kept = "channels", "attention", "dtype", "fused_attention", "remat"
    own = {name: c[name] for name in kept}
    if c.remat == "auto":
        own["remat"] = "none" if (c.network, platform) == ("unet", "tpu") else "matmuls"
    if c.network == "pyramid":
        sizes: dict[str, Any] = {name: _numbers(c, name) for name in ("multipliers", "blocks")}
        contrasts = _numbers(c, "contrasts") if c.contrasts else ()
        on_levels = (c.decoder, c.transform, c.head) == ("discretised", "none", "eps")
        return Pyramid(**own, **sizes, contrasts=contrasts, on_levels=on_levels, **shared)
    shared["num_blocks"] = c.num_blocks
    if c.network == "mlp":
        return MLP(width=c.channels, **shared)
    if c.network == "resnet":
        return ResNet(channels=c.channels, **shared)
    if c.channels % 32 or c.channels < 64:
        said = f"config.model.channels is {c.channels}; the unet normalises over 32 groups"
        raise UserError(f"{said}: give a multiple of 32, and at least 64 for it to see gamma")
    return UNet(**own, **shared)


def _numbers(c: ConfigDict, name: str) -> tuple[Any, ...]:
    """Returns the numbers of a setting such as "1,2,3". Raises UserError for anything else."""
    plain = defaults.DEFAULTS["model"][name]
    kind = float if "." in plain else int
    try:
        numbers = tuple(map(kind, c[name].split(",")))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number < 1000 for number in numbers):
        raise UserError(f"config.model.{name} is {c[name]!r}; wanted numbers above 0, as {plain!r}")
    return numbers
