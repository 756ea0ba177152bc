"""Fast samplers: solvers of the probability-flow ODE, and DDIM, over any table of gammas.

With x_hat held constant over a step the flow from gamma_t down to gamma_s is solved exactly,

    z_s = (sigma_s / sigma_t) z_t + alpha_s (1 - e^-h) x_hat,   h = (gamma_t - gamma_s) / 2,

which is DDIM without noise (Song, Meng & Ermon 2021, eq. 12): first order, one call of the network.
h is the step in lambda = log(alpha / sigma) = -gamma / 2. The same step is Euler's method for
d(z / alpha) = eps_hat d(sigma / alpha). Two ways to a better prediction make it second order:

* "dpm_solver": the line through the last two x_hat, half a step ahead, still one call
  (DPM-Solver++(2M), Lu et al. 2022, algorithm 2); the first step and the last are of first order;
* "heun": the mean of eps_hat at both ends of the step, two calls: Heun's method in sigma / alpha
  (Karras et al. 2022, algorithm 1, without its last exception: gamma_0 is finite here).

No schedule appears: a sampler takes any decreasing table of gammas, as `vdm_jax.spacing` makes
them. A step is one pure function of a `State`, for `jax.lax.scan` (in `sample` and `solve`) as for
a loop outside.
"""

from collections.abc import Sequence
from numbers import Real
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from vdm_jax.gaussian import Gaussian
from vdm_jax.parameterization import to_eps, to_x
from vdm_jax.process import expand
from vdm_jax.sampler import ancestral_step, predict
from vdm_jax.schedule import alpha, variance
from vdm_jax.spacing import Spacing
from vdm_jax.timestep import check_num_steps
from vdm_jax.types import Denoise, Key, Kind, ReverseVar, Tensor

__all__ = [
    "SAMPLERS",
    "Sampler",
    "State",
    "bridge",
    "default_spacing",
    "initial",
    "needs_noise",
    "network_calls",
    "noise",
    "sample",
    "solve",
    "start",
    "step",
]

Sampler = Literal["ancestral", "ddim", "dpm_solver", "heun"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)


class State(NamedTuple):
    """Where a sampler is, between two steps."""

    z: Tensor
    """The latent at the present gamma, [batch, *event]."""
    x_hat: Tensor
    """The prediction of the step before, of that shape (of "dpm_solver" and "ddim")."""
    gamma: Tensor
    """The gamma of that prediction, a scalar; the present one where there was no step yet."""


def default_spacing(sampler: Sampler) -> Spacing:
    """The chain of the bound, "time", for "ancestral"; for the others "karras", for few steps."""
    _check_sampler(sampler)
    return "time" if sampler == "ancestral" else "karras"


def network_calls(sampler: Sampler, num_steps: int) -> int:
    """How often a sampler of `num_steps` steps calls the network: twice a step for "heun"."""
    check_num_steps(num_steps)
    _check_sampler(sampler)
    return 2 * num_steps if sampler == "heun" else num_steps


def bridge(
    z_t: Tensor, x: Tensor, gamma_s: ArrayLike, gamma_t: ArrayLike, eta: float = 0.0
) -> Gaussian:
    """q_eta(z_s|z_t, x) with the marginals of the process for every eta in [0, 1].

    The variance is eta^2 times the posterior's, sigma_s^2 c with c = 1 - e^(gamma_s - gamma_t), and
    the mean alpha_s x + sigma_s sqrt(1 - eta^2 c) eps with eps = (z_t - alpha_t x) / sigma_t (Song,
    Meng & Ermon 2021, eq. 7 and 16). At 1 it is `vdm_jax.process.posterior`; at 0 a point, of which
    eps is that of z_t, the equation at the head of this module.
    """
    gamma_s, gamma_t = expand(gamma_s, z_t), expand(gamma_t, z_t)
    share = -(eta**2) * jnp.expm1(gamma_s - gamma_t)  # eta^2 c
    # alpha_s less what the noise takes of x would cancel: by expm1 of a logarithm.
    kept = 0.5 * jnp.log1p(-share)
    ratio = 0.5 * (jax.nn.log_sigmoid(gamma_s) - jax.nn.log_sigmoid(gamma_t))
    of_x = -alpha(gamma_s) * jnp.expm1(kept + 0.5 * (gamma_s - gamma_t))
    return Gaussian(jnp.exp(ratio + kept) * z_t + of_x * x, variance(gamma_s) * share)


# ---- one step ----


def start(z_1: Tensor, gamma_1: ArrayLike) -> State:
    """The state before the first step."""
    return State(z_1, jnp.zeros_like(z_1), jnp.asarray(gamma_1, z_1.dtype))


def step(
    state: State,
    eps: Tensor | None,
    denoise: Denoise,
    gamma_s: ArrayLike,
    gamma_t: ArrayLike,
    sampler: Sampler = "dpm_solver",
    kind: Kind = "eps",
    reverse_var: ReverseVar = "posterior",
    eta: float = 0.0,
    last: ArrayLike = False,
) -> State:
    """The state at gamma_s of that at gamma_t, scalars, gamma_s < gamma_t.

    Args:
      state: of `start`, or of the step before.
      eps: standard-normal noise of the latent's shape, for "ancestral" and for "ddim" with eta
        above 0; the others take no notice of it, and it may be None.
      denoise, kind, reverse_var: as for `vdm_jax.loss.diffusion`. Only "ancestral" makes use of the
        variance; of a learned one the others take the prediction and leave the share.
      sampler: one of `SAMPLERS`.
      eta: of "ddim", in [0, 1]: 0 for no noise, 1 for the posterior's variance.
      last: whether it is the last step, which "dpm_solver" makes by first order: of few steps it is
        so long that the line through two predictions leads past the data.

    Raises:
      ValueError: for an unknown name, eta out of range or with another sampler, or missing noise.
    """
    _check(sampler, eta)
    if eps is None:
        if needs_noise(sampler, eta):
            raise ValueError(f"the sampler {sampler!r} with eta = {eta} needs noise, got None.")
        eps = jnp.zeros_like(state.z)  # of no use
    z, now = state.z, jnp.asarray(gamma_t, state.z.dtype)
    if sampler == "ancestral":
        z_s = ancestral_step(z, eps, denoise, gamma_s, gamma_t, kind, reverse_var)
        return State(z_s, state.x_hat, now)
    if sampler == "heun":
        at_t = _eps(denoise, z, gamma_t, kind, reverse_var)
        at_s = _eps(denoise, _flow(z, at_t, gamma_s, gamma_t), gamma_s, kind, reverse_var)
        return State(_flow(z, 0.5 * (at_t + at_s), gamma_s, gamma_t), state.x_hat, now)
    prediction, _ = predict(denoise, z, gamma_t, reverse_var)
    x_t = to_x(prediction, z, gamma_t, kind)
    if sampler == "dpm_solver":
        ahead = jnp.where(last, 0.0, _ahead(state.gamma, now, gamma_s))
        z_s = bridge(z, x_t + ahead * (x_t - state.x_hat), gamma_s, gamma_t).mean
        return State(z_s, x_t, now)
    to = bridge(z, x_t, gamma_s, gamma_t, eta)
    return State(to.mean if eta == 0.0 else to.at(eps), x_t, now)


def needs_noise(sampler: Sampler, eta: float = 0.0) -> bool:
    """Whether a sampler's steps draw noise. Raises ValueError as `step`."""
    _check(sampler, eta)
    return sampler == "ancestral" or eta > 0.0


def _eps(
    denoise: Denoise, z: Tensor, gamma: ArrayLike, kind: Kind, reverse_var: ReverseVar
) -> Tensor:
    prediction, _ = predict(denoise, z, gamma, reverse_var)
    return to_eps(prediction, z, gamma, kind)


def _flow(z_t: Tensor, eps_hat: Tensor, gamma_s: ArrayLike, gamma_t: ArrayLike) -> Tensor:
    """The step with eps_hat held constant, which is that with its x_hat held constant."""
    return bridge(z_t, to_x(eps_hat, z_t, gamma_t, "eps"), gamma_s, gamma_t).mean


def _ahead(gamma_r: Tensor, gamma_t: Tensor, gamma_s: ArrayLike) -> Tensor:
    """Half the step from t to s, as a multiple of the one before, from r to t.

    0 where there was none: then it is a step of first order.
    """
    before = gamma_r - gamma_t
    some = before > 0.0
    return jnp.where(some, 0.5 * (gamma_t - gamma_s) / jnp.where(some, before, 1.0), 0.0)


# ---- all of them ----


def initial(keys: Key, event_shape: Sequence[int], dtype: DTypeLike = float) -> Tensor:
    """z_1 ~ N(0, I) of one key per example, [batch, *event]."""
    return noise(keys, -1, event_shape, dtype)


def noise(keys: Key, i: ArrayLike, event_shape: Sequence[int], dtype: DTypeLike = float) -> Tensor:
    """Standard-normal noise of step number `i`, from 0, by one key per example: [batch, *event].

    A sample depends on its own key only, whatever the batch.
    """
    at = jnp.asarray(i) + 1
    shape = tuple(event_shape)
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, at), shape, dtype))(keys)


def sample(
    key: Key,
    denoise: Denoise,
    gammas: ArrayLike,
    shape: Sequence[int],
    sampler: Sampler = "dpm_solver",
    kind: Kind = "eps",
    reverse_var: ReverseVar = "posterior",
    eta: float = 0.0,
) -> Tensor:
    """z_0 of the generative model: z_1 ~ N(0, I), then the steps of `gammas`.

    Args:
      key: gives all the noise; example number i takes its own from fold_in(key, i).
      denoise, sampler, kind, reverse_var, eta: as for `step`.
      gammas: [num_steps + 1], from gamma_1 down to gamma_0, as
        `vdm_jax.spacing.table` makes them.
      shape: [batch, *event] of the latents.

    Returns:
      z_0, of the given shape and the dtype of `gammas`; `vdm_jax.sampler.to_images` makes pixels of
      it. Raises ValueError as `solve`.
    """
    gammas = _as_table(gammas)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(shape[0]))
    z_1 = initial(keys, shape[1:], gammas.dtype)
    return solve(z_1, denoise, gammas, sampler, kind, reverse_var, eta, keys)


def solve(
    z_1: Tensor,
    denoise: Denoise,
    gammas: ArrayLike,
    sampler: Sampler = "dpm_solver",
    kind: Kind = "eps",
    reverse_var: ReverseVar = "posterior",
    eta: float = 0.0,
    keys: Key | None = None,
) -> Tensor:
    """The steps of `gammas` from a given z_1 [batch, *event] to z_0, of that shape.

    Without noise it approximates `vdm_jax.flow.sample`. `keys` [batch] give the noise where there
    is any; the rest is as for `sample`.

    Raises:
      ValueError: as `step`; for gammas that are no table, or that, as far as they are known, do not
        decrease (unknown until they are computed: NaN).
    """
    gammas = _as_table(gammas)
    z_1 = z_1 * jnp.where(jnp.all(jnp.diff(gammas) < 0.0), 1.0, jnp.nan).astype(z_1.dtype)

    def body(state: State, at: tuple[Tensor, Tensor, Tensor]) -> tuple[State, None]:
        i, gamma_t, gamma_s = at
        eps = None if keys is None else noise(keys, i, z_1.shape[1:], z_1.dtype)
        last = i == gammas.size - 2
        return step(
            state, eps, denoise, gamma_s, gamma_t, sampler, kind, reverse_var, eta, last
        ), None

    steps = (jnp.arange(gammas.size - 1), gammas[:-1], gammas[1:])
    state, _ = jax.lax.scan(body, start(z_1, gammas[0]), steps)
    return state.z


# ---- checks ----


def _as_table(gammas: ArrayLike) -> Tensor:
    gammas = jnp.asarray(gammas)
    gammas = gammas.astype(jnp.result_type(gammas, float))
    if gammas.ndim != 1 or gammas.size < 2:
        raise ValueError(f"gammas must be [num_steps + 1], at least two, got shape {gammas.shape}.")
    if not isinstance(gammas, jax.core.Tracer):
        rises = ~(np.diff(np.asarray(gammas)) < 0.0)
        if rises.any():
            at = int(np.argmax(rises))
            raise ValueError(
                f"gammas must decrease, from gamma_1 down to gamma_0, got gammas[{at}] = "
                f"{gammas[at]} and gammas[{at + 1}] = {gammas[at + 1]}."
            )
    return gammas


def _check_sampler(sampler: Sampler) -> None:
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}.")


def _check(sampler: Sampler, eta: float) -> None:
    _check_sampler(sampler)
    if isinstance(eta, bool) or not isinstance(eta, Real) or not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be a number in [0, 1], got {eta!r}.")
    if eta and sampler != "ddim":
        raise ValueError(f"eta is of the sampler 'ddim' alone, got {eta} with {sampler!r}.")
