"""What training knows of a model: how to start it, and how to make terms of a bound of it."""

import dataclasses
from collections.abc import Callable, Container, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from vdm_jax import loss, sampler, timestep
from vdm_jax.control import Linear
from vdm_jax.schedule import alpha
from vdm_jax.timestep import Proposal
from vdm_jax.types import Denoise, Gamma, Images, Key, Kind, PerExample, ReverseVar, Tensor

__all__ = ["BITS", "NATS", "Batch", "Drawn", "Model", "Params", "Trainable", "Unit", "unit_of"]

Params = Any
"""A pytree of arrays."""

Batch = Mapping[str, jax.Array]
"""`images` [batch, *event], integers (or floats, of continuous data), and `conditioning`, [batch]
or [batch, n]."""


class Unit(NamedTuple):
    """What a bound is reported in. Numbers of two units are never compared."""

    name: str
    """In words."""
    key: str
    """In files."""
    of: Callable[[Any, tuple[int, ...]], jax.Array]
    """(nats per example, event shape) -> this unit."""


BITS = Unit("bits per dim", "bpd", loss.bits_per_dim)
"""Of discrete data, a probability."""

NATS = Unit("nats per dim of a density", "nats_per_dim", loss.nats_per_dim)
"""Of continuous data."""


def unit_of(names: Container[str]) -> Unit:
    """The unit of some metrics, by their names: that of a density if it is there."""
    return NATS if NATS.key in names else BITS


class Drawn(NamedTuple):
    """One draw of each example's bound, for an evaluation; all [batch]."""

    terms: loss.ElboTerms
    """In nats."""
    t: PerExample
    """The times; where there are none, those given, on which nothing depends."""
    weight: PerExample
    """What the diffusion term was multiplied by."""
    controls: Tensor | None = None
    """Control variates of the diffusion term without that factor, [batch, k]: of mean zero at each
    t. None: the model has none."""


class Trainable(Protocol):
    """What the training step, the evaluation and the loop ask of a model."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Of one example."""
        ...

    @property
    def levels(self) -> int | None:
        """The number of values of a pixel; None for data that are continuous from the start."""
        ...

    @property
    def unit(self) -> Unit:
        """Of the bound."""
        ...

    @property
    def words(self) -> str:
        """What it is, for reports, besides its network."""
        ...

    @property
    def note(self) -> str:
        """What reports say of its terms, where they aren't those of a VDM."""
        ...

    @property
    def init(self) -> Callable[[Key], Params]:
        """Key -> parameters."""
        ...

    def terms(
        self, params: Params, batch: Batch, key: Key, dropout: bool = False
    ) -> loss.ElboTerms:
        """One sample of the bound for each example: three terms, [batch] each, in nats."""
        ...

    def drawn(self, params: Params, batch: Batch, u: PerExample, keys: jax.Array) -> Drawn:
        """The same without dropout, from a uniform time and a key for each example, [batch]."""
        ...

    def sample(self, params: Params, key: Key, conditioning: Tensor, num_steps: int) -> Images:
        """One sample of the model for each row of `conditioning`, of data as in a batch."""
        ...


@dataclasses.dataclass(frozen=True)
class Model:
    """A VDM: a network and its schedule as functions of their parameters.

    Attributes:
      init: key -> parameters.
      bind: (parameters, conditioning, dropout key or None) -> (denoise, gamma).
      kind: what denoise predicts.
      event_shape: of one image.
      levels: the number of values of a pixel, None for continuous data.
      num_steps: T, or None for continuous time.
      timesteps: how times are drawn.
      proposal: the density from which times are drawn, None for the uniform one.
      control: what makes the control variates of an evaluation, None for none.
      end_points: None to train the schedule on the bound; or the name in params["gamma"] of what
        sets its end points, to train the rest for a low variance (`vdm_jax.train.variance`).
      reverse_var: the variance of p(z_s|z_t); with "learned" denoise returns (prediction, share).
      density: whether x is taken for continuous, p(x|z_0) for a Gaussian density. Must be with
        levels=None; integers are encoded first.
    """

    init: Callable[[Key], Params]
    bind: Callable[[Params, Tensor, Key | None], tuple[Denoise, Gamma]]
    kind: Kind
    event_shape: tuple[int, ...]
    levels: int | None
    num_steps: int | None = None
    timesteps: timestep.Method = "antithetic"
    proposal: Proposal | None = None
    control: Linear | None = None
    end_points: str | None = None
    reverse_var: ReverseVar = "posterior"
    density: bool = False

    def __post_init__(self) -> None:
        if self.levels is None and not self.density:
            raise ValueError("levels=None, continuous data, needs density=True.")

    @property
    def unit(self) -> Unit:
        """Of the bound: bits of a probability, or nats of a density."""
        return NATS if self.density else BITS

    @property
    def words(self) -> str:
        """Its time."""
        return "continuous time" if self.num_steps is None else f"T = {self.num_steps}"

    @property
    def note(self) -> str:
        """Nothing."""
        return ""

    def data(self, images: Images | Tensor) -> tuple[Images | Tensor, int | None]:
        """The first and fifth argument of `loss.elbo` for the images of a batch."""
        if not self.density:
            return images, self.levels
        return loss.to_data(images, self.levels), None

    def terms(
        self, params: Params, batch: Batch, key: Key, dropout: bool = False
    ) -> loss.ElboTerms:
        """One sample of the bound for each image of the batch: three terms, [batch], in nats."""
        key_elbo, key_dropout = jax.random.split(key)
        denoise, gamma = self.bind(params, batch["conditioning"], key_dropout if dropout else None)
        images, levels = self.data(batch["images"])
        return loss.elbo(
            key_elbo,
            images,
            denoise,
            gamma,
            levels=levels,
            num_steps=self.num_steps,
            kind=self.kind,
            timesteps=self.timesteps,
            proposal=self.proposal,
            reverse_var=self.reverse_var,
        )

    def drawn(self, params: Params, batch: Batch, u: PerExample, keys: jax.Array) -> Drawn:
        """The same from a uniform time and a key for each image, [batch]; no dropout.

        The reconstruction is its expectation, so that z_0 adds no noise.
        """
        t, weight = (u, jnp.ones_like(u)) if self.proposal is None else self.proposal.at(u)
        shape = (2, *self.event_shape)
        # The first half, once z_0's, is left over: figures of one key stay comparable.
        eps = jax.vmap(lambda image_key: jax.random.normal(image_key, shape)[1])(keys)
        denoise, gamma = self.bind(params, batch["conditioning"], None)
        images, levels = self.data(batch["images"])
        terms = loss.elbo_given(
            images,
            None,
            eps,
            t,
            denoise,
            gamma,
            levels=levels,
            num_steps=self.num_steps,
            kind=self.kind,
            weight=weight,
            reverse_var=self.reverse_var,
        )
        if self.control is None:
            return Drawn(terms, t, weight)
        level = loss.noise_level(t, gamma, self.num_steps)
        x = loss.to_data(images, levels)
        controls = self.control.controls(x, eps, level.gamma_t)
        return Drawn(terms, t, weight, 0.5 * level.weight[:, None] * controls)

    def sample(self, params: Params, key: Key, conditioning: Tensor, num_steps: int) -> Images:
        """Ancestral samples: integers in [0, levels), or x where there are no levels."""
        denoise, gamma = self.bind(params, conditioning, None)
        shape = (len(conditioning), *self.event_shape)
        z_0 = sampler.ancestral(key, denoise, gamma, shape, num_steps, self.kind, self.reverse_var)
        gamma_0 = gamma(jnp.zeros(1))[0]
        if self.levels is None:
            return z_0 / alpha(gamma_0)
        return sampler.to_images(z_0, gamma_0, self.levels)
