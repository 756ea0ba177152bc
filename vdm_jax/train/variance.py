"""The learned schedule that minimises the variance of the loss (VDM section 5.2, appendix I.2).

In continuous time the bound depends on gamma(t) through its end points alone, so the shape between
them is free to make the Monte-Carlo estimate of the diffusion loss L less noisy: as E[L] stays, the
gradient of Var[L] for the shape is that of E[L^2], which is E[2 L dL]. The end points are trained
on the bound. L sees the schedule through gamma(t) and gamma'(t) only, one number each per example,
so one backward pass through the network gives the gradient of every example's L for these two;
multiplied by 2 L for the shape, and as they are for the end points, they go back through the
schedule's own small network.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax import loss, pixels
from vdm_jax.train.model import Batch, Model, Params
from vdm_jax.types import Key, PerExample, Tensor

__all__ = ["ScheduleValues", "gradient", "schedule_values"]


class ScheduleValues(NamedTuple):
    """All that the bound sees of a schedule: gamma(t) and gamma'(t), [batch], and its two ends."""

    gamma_t: PerExample
    slope: PerExample
    gamma_0: Tensor
    gamma_1: Tensor


def schedule_values(model: Model, gamma_params: Params, t: PerExample) -> ScheduleValues:
    """The values at times `t`, as a function of the schedule's parameters."""
    _, gamma = model.bind({"gamma": gamma_params, "score_model": {}}, jnp.zeros_like(t), None)
    gamma_t, slope = jax.jvp(gamma, (t,), (jnp.ones_like(t),))
    return ScheduleValues(gamma_t, slope, *gamma(jnp.array([0.0, 1.0], t.dtype)))


def gradient(
    model: Model,
) -> Callable[[Params, Batch, Key], tuple[Params, loss.ElboTerms]]:
    """(params, batch, key) -> (gradient, terms of the bound [batch] in nats).

    The gradient is that of the mean bound in bits per dim for the network and for the schedule's
    end points, `params["gamma"][model.end_points]`, and of E[L^2], L the diffusion loss of one
    example in bits per dim, for the schedule's other parameters.
    """
    name = model.end_points
    if name is None or model.num_steps is not None or model.proposal is not None:
        raise ValueError(
            "minimising the variance needs end_points, num_steps=None and proposal=None."
        )

    def bits(nats: Tensor) -> Tensor:
        return loss.bits_per_dim(nats, model.event_shape)

    def compute(params: Params, batch: Batch, key: Key) -> tuple[Params, loss.ElboTerms]:
        key_elbo, key_dropout = jax.random.split(key)
        images = batch["images"]
        eps_0, eps, t = loss.draw(key_elbo, images.shape, model.timesteps)
        x = pixels.encode(images, model.levels)

        def bound(network: Params, at: ScheduleValues) -> tuple[Tensor, loss.ElboTerms]:
            bound_params = {"gamma": params["gamma"], "score_model": network}
            denoise, _ = model.bind(bound_params, batch["conditioning"], key_dropout)
            terms = loss.ElboTerms(
                loss.reconstruction(images, eps_0, at.gamma_0, model.levels),
                loss.prior(x, at.gamma_1),
                loss.diffusion_at(x, eps, at.gamma_t, at.slope, denoise, model.kind),
            )
            return bits(terms.total.mean()), terms

        values, pull = jax.vjp(lambda p: schedule_values(model, p, t), params["gamma"])
        of_bound = jax.grad(bound, argnums=(0, 1), has_aux=True)
        (of_network, of_values), terms = of_bound(params["score_model"], values)
        twice = 2.0 * bits(terms.diffusion)
        of_square = ScheduleValues(
            twice * of_values.gamma_t,
            twice * of_values.slope,
            jnp.zeros_like(values.gamma_0),
            jnp.zeros_like(values.gamma_1),
        )
        (of_gamma,), (of_ends,) = pull(of_square), pull(of_values)
        of_gamma = {**of_gamma, **{k: of_ends[k] for k in of_gamma if k == name}}
        return {"gamma": of_gamma, "score_model": of_network}, terms

    return compute
