"""What training knows of a model: how to start it, and how to make the core's callables of it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from vdm_jax import loss, timestep
from vdm_jax.timestep import Proposal
from vdm_jax.types import Denoise, Gamma, Key, Kind, Tensor

__all__ = ["Batch", "Model", "Params", "elbo_terms"]

Params = Any
"""A pytree of arrays."""

Batch = Mapping[str, jax.Array]
"""`images` [batch, *event], integers, and `conditioning`, [batch] or [batch, n]."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A network and its schedule as functions of their parameters.

    Attributes:
      init: key -> parameters.
      bind: (parameters, conditioning, dropout key or None) -> (denoise, gamma).
      kind: what denoise predicts.
      event_shape: of one image.
      levels: the number of values of a pixel.
      num_steps: T, or None for continuous time.
      timesteps: how times are drawn.
      proposal: the density from which times are drawn, None for the uniform one.
      end_points: None to train the schedule on the bound; or the name in params["gamma"] of what
        sets its end points, to train the rest for a low variance (`vdm_jax.train.variance`).
    """

    init: Callable[[Key], Params]
    bind: Callable[[Params, Tensor, Key | None], tuple[Denoise, Gamma]]
    kind: Kind
    event_shape: tuple[int, ...]
    levels: int
    num_steps: int | None = None
    timesteps: timestep.Method = "antithetic"
    proposal: Proposal | None = None
    end_points: str | None = None


def elbo_terms(
    model: Model, params: Params, batch: Batch, key: Key, dropout: bool = False
) -> loss.ElboTerms:
    """One sample of the bound for each image of the batch: three terms, [batch] each, in nats."""
    key_elbo, key_dropout = jax.random.split(key)
    denoise, gamma = model.bind(params, batch["conditioning"], key_dropout if dropout else None)
    return loss.elbo(
        key_elbo,
        batch["images"],
        denoise,
        gamma,
        levels=model.levels,
        num_steps=model.num_steps,
        kind=model.kind,
        timesteps=model.timesteps,
        proposal=model.proposal,
    )
