"""Training on another objective than the plain bound: a weighted loss, times that adapt to it.

Times that adapt are drawn by importance (`vdm_jax.timestep`): stratified, from a density in
proportion to the standard deviation of the loss that training has seen in each of equal bins of t:
with stratified times the variance within the bins is the only one. For a schedule that is a line
these are equal bins of gamma. (Kingma & Gao 2023 take the mean in place of the deviation.) The
times' weights keep every expectation as it is at uniform times.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax import loss, weighting
from vdm_jax.timestep import Proposal, mixed
from vdm_jax.train.model import Batch, Model, Params, unit
from vdm_jax.types import Key, PerExample, Tensor
from vdm_jax.vdm import VDM

BINS = 100  # of t
KEPT = 0.998  # share of what was seen that each step keeps
PRIOR = 4.0  # draws of the mean variance over all bins that each is taken to have had besides


class Seen(NamedTuple):
    """Draws of the loss in each bin of t: their number, sum and sum of squares."""

    draws: Float[Array, " bins"]
    sums: Float[Array, " bins"]
    squares: Float[Array, " bins"]

    @classmethod
    def of(cls, t: PerExample, losses: PerExample) -> "Seen":
        """Returns what one batch shows."""
        bins = jnp.minimum((t * BINS).astype(int), BINS - 1)
        losses = jax.lax.stop_gradient(losses)
        each = jnp.ones_like(losses), losses, jnp.square(losses)
        return cls(*(jnp.zeros(BINS).at[bins].add(of) for of in each))

    @property
    def proposal(self) -> Proposal:
        """The density of times; uniform before anything was seen."""
        some = jnp.maximum(self.draws, 1e-6)  # far below one draw
        inner = jnp.maximum(self.squares - jnp.square(self.sums) / some, 0.0)
        mean = jnp.sum(inner) / jnp.sum(some)
        inner = inner / jnp.where(mean > 0.0, mean, 1.0)
        cdf = jnp.cumsum(mixed(jnp.sqrt((inner + PRIOR) / (some + PRIOR)), 0.1)) / BINS
        return Proposal(jnp.concatenate([jnp.zeros(1), cdf[:-1], jnp.ones(1)]))

    def then(self, new: "Seen") -> "Seen":
        """Returns what was seen after one more step."""
        return jax.tree.map(lambda old, now: KEPT * old + now, self, new)


def nothing_seen() -> Seen:
    """Returns the state before the first step."""
    return Seen(*jnp.zeros((3, BINS)))


def gradient(
    model: Model, seen: Seen | None
) -> Callable[[Params, Batch, Key], tuple[Params, tuple[loss.ElboTerms, Seen | None]]]:
    """Returns (params, batch, key) -> (gradient, (terms of the bound [batch] in nats, new draws)).

    The gradient is that of the mean in the model's unit, the diffusion term multiplied by
    `model.weight`, if it has one; the terms are the bound's own, from the same draws. Without
    `seen` the times are those of the model.
    """

    def objective(
        params: Params, batch: Batch, key: Key
    ) -> tuple[Tensor, tuple[loss.ElboTerms, Seen | None]]:
        key_elbo, key_dropout = jax.random.split(key)
        vdm = cast(VDM, model.bind_batch(params, batch, key_dropout))
        images = model.data(batch["images"])
        eps_0, eps, t = loss.draw(key_elbo, images.shape, vdm.timesteps)
        importance = jnp.ones_like(t)
        if seen is not None:
            t, importance = seen.proposal.at(t)
        terms = vdm.elbo_given(images, eps, t, eps_0)
        weight = 1.0 if model.weight is None else weighting.at(model.weight, vdm, t)
        new = None if seen is None else Seen.of(t, weight * terms.diffusion)
        terms = terms._replace(diffusion=importance * terms.diffusion)
        total = terms._replace(diffusion=weight * terms.diffusion).total.mean()
        return unit(vdm).of(total, vdm.event_shape), (terms, new)

    return jax.grad(objective, has_aux=True)
