"""The learned schedule of least variance (VDM, "Variance minimization" and appendix I.2).

In continuous time the bound depends on gamma(t) through its end points alone: they are trained on
it, and the shape between them to minimise Var[L], or as E[L] stays E[L^2], L the diffusion loss.
With L = gamma'(t) e, where e depends on gamma and the noise, and with gamma for the variable of
integration, E[L^2] = int gamma' e^2 dgamma: at a given gamma the shape appears in the slope alone.
So the gradient for the shape is E[(L^2 / gamma') dslope], with dslope the change of the slope at
fixed gamma, dgamma'(t) - (gamma'' / gamma') dgamma(t). It needs no derivative of the network; the
one backward pass serves the network's parameters and, by the gradient for gamma(t) and gamma'(t) as
they enter the bound, the end points.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from vdm_jax import loss, timestep
from vdm_jax.train.model import Batch, Model, Params, unit
from vdm_jax.types import Gamma, Key, PerExample, Tensor
from vdm_jax.vdm import VDM


class ScheduleValues(NamedTuple):
    """The values of a schedule in the bound: gamma(t) and gamma'(t), [batch], and its two ends."""

    gamma_t: PerExample
    slope: PerExample
    gamma_0: Tensor
    gamma_1: Tensor


def schedule_values(model: Model, gamma_params: Params, t: PerExample) -> ScheduleValues:
    """Returns the values at times `t`, as a function of the schedule's parameters."""
    if model.weight is not None or model.adaptive:
        raise ValueError("minimising the variance goes with no weight, and no times that adapt.")
    gamma: Gamma = model.bind({"gamma": gamma_params, "score_model": {}}).gamma
    gamma_t, slope = jax.jvp(gamma, (t,), (jnp.ones_like(t),))
    if slope.ndim > 1:
        raise ValueError("minimising the variance needs one schedule, not one of each feature.")
    return ScheduleValues(gamma_t, slope, *timestep.end_points(gamma, t.dtype))


def gradient(model: Model) -> Callable[[Params, Batch, Key], tuple[Params, loss.ElboTerms]]:
    """Returns the function (params, batch, key) -> (gradient, terms of the bound [batch] in nats).

    For the network and the end points, `params["gamma"][model.end_points]`, it is the gradient of
    the mean bound in the model's unit; for the schedule's other parameters that of E[L^2].
    """

    def compute(params: Params, batch: Batch, key: Key) -> tuple[Params, loss.ElboTerms]:
        key_elbo, key_dropout = jax.random.split(key)
        vdm = cast(VDM, model.bind_batch(params, batch, key_dropout))
        if vdm.num_steps is not None:
            raise ValueError("minimising the variance needs continuous time, num_steps=None.")
        images = model.data(batch["images"])
        eps_0, eps, t = loss.draw(key_elbo, images.shape, vdm.timesteps)
        x = loss.to_data(images, vdm.levels, vdm.mask)

        def bound(network: Params, at: ScheduleValues) -> tuple[Tensor, loss.ElboTerms]:
            bound_params = {"gamma": params["gamma"], "score_model": network}
            denoise = cast(VDM, model.bind_batch(bound_params, batch, key_dropout)).denoise

            def gamma(s: PerExample) -> PerExample:  # of the times t, or the first of them
                return at.gamma_t[: len(s)] + at.slope[: len(s)] * (s - t[: len(s)])

            rest = None, vdm.kind, vdm.reverse_var, vdm.mask
            terms = loss.ElboTerms(
                loss.reconstruction(images, eps_0, at.gamma_0, vdm.levels, vdm.mask),
                loss.prior(x, at.gamma_1, vdm.mask),
                loss.diffusion(x, eps, t, denoise, gamma, *rest),
            )
            return unit(vdm).of(terms.total.mean(), vdm.event_shape), terms

        values, pull = jax.vjp(lambda p: schedule_values(model, p, t), params["gamma"])
        of_bound = jax.grad(bound, argnums=(0, 1), has_aux=True)
        (of_network, of_values), terms = of_bound(params["score_model"], values)
        diffusion = unit(vdm).of(terms.diffusion, vdm.event_shape)
        of_slope = jnp.square(diffusion) / values.slope / len(t)
        slopes = lambda t: schedule_values(model, params["gamma"], t).slope  # noqa: E731
        bend = jax.jvp(slopes, (t,), (jnp.ones_like(t),))[1] / values.slope  # gamma'' / gamma'
        zero = jnp.zeros_like(values.gamma_0)
        of_square = ScheduleValues(-bend * of_slope, of_slope, zero, zero)
        (of_gamma,), (of_ends,) = pull(of_square), pull(of_values)
        of_gamma = {**of_gamma, **{k: of_ends[k] for k in of_gamma if k == model.end_points}}
        return {"gamma": of_gamma, "score_model": of_network}, terms

    return compute
