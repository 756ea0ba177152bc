"""Samplers: the ancestral chain, DDIM, and second-order solvers of the probability-flow ODE.

With x_hat held constant over a step the flow from gamma_t down to gamma_s is solved exactly,

    z_s = (sigma_s / sigma_t) z_t + alpha_s (1 - e^-h) x_hat,   h = (gamma_t - gamma_s) / 2,

which is DDIM without noise (Song, Meng & Ermon 2021, eq. 12): first order, one call of the network.
h is the step in lambda = log(alpha / sigma) = -gamma / 2. The same step is Euler's method for
d(z / alpha) = eps_hat d(sigma / alpha). Two ways to a better prediction make it second order:

* "dpm_solver": the line through the last two x_hat, half a step ahead, still one call
  (DPM-Solver++(2M), Lu et al. 2022, algorithm 2); the first step and the last are of first order;
* "heun": the mean of eps_hat at both ends of the step, two calls: Heun's method in sigma / alpha
  (Karras et al. 2022, algorithm 1; what it does in its last step, to sigma = 0, is done here in any
  step over which sigma / alpha falls more than tenfold: it is of first order).
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from vdm_jax import checks, masks, mixed, pixels, timestep
from vdm_jax.distributions import Gaussian
from vdm_jax.mixed import Levels
from vdm_jax.parameterization import split, to_eps, to_x
from vdm_jax.process import expand, reverse, scan
from vdm_jax.rule import Rule
from vdm_jax.schedule import alpha, variance
from vdm_jax.transforms import Coefficients
from vdm_jax.types import Denoise, Gamma, Images, Key, Kind, ReverseVar, Tensor

if TYPE_CHECKING:
    from vdm_jax.vdm import VDM


class State(NamedTuple):
    """The latent [batch, *event] between two steps, and the step before's prediction and gamma.

    Only "dpm_solver" and "ddim" set the prediction. Before the first step gamma is the present one.
    """

    z: Tensor
    x_hat: Tensor
    gamma: Tensor


def sample(key: Key, vdm: "VDM", n: int, rule: Rule | None = None) -> Images | Tensor:
    """Returns `n` samples of a model: integers in [0, levels), or x where it has no levels.

    The default is the ancestral chain of `default_steps`. But for that chain, sample number i takes
    its noise from fold_in(key, i).
    """
    rule = rule or Rule("ancestral", default_steps(vdm))
    if rule.sampler == "ancestral" and rule.spacing == "time":
        args = vdm.gamma, (n, *vdm.event_shape), rule.num_steps, vdm.kind, vdm.reverse_var
        z_0 = ancestral(key, vdm.predict, *args)
    else:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))
        z_0 = solve(initial(keys, vdm.event_shape), vdm, rule, keys)
    gamma_0, _ = timestep.end_points(vdm.gamma)
    return masks.keep(to_images(z_0, gamma_0, vdm.levels), vdm.mask)


class Guided:
    """A guided model: all that its VDM has but for a likelihood, as no density is known of it."""

    def __init__(self, vdm: "VDM", scale: float) -> None:
        self.scale, self._vdm = scale, vdm

    def __getattr__(self, name: str) -> Any:
        if name in ("elbo", "elbo_given", "elbo_by_keys", "log_prob", "_replace"):
            said = f"take {name} of the conditional model"
            raise ValueError(f"a model guided with scale {self.scale:g} has no likelihood: {said}.")
        return getattr(self._vdm, name)


def guided(conditional: "VDM", unconditional: "VDM", scale: float) -> Guided:
    """Returns the model to sample whose noise is (1 + scale) eps_conditional - scale eps_other.

    The other is `unconditional` (Ho & Salimans 2022, arXiv 2207.12598, eq. 6), asked at the noise
    levels of `conditional`. A learned variance is the conditional one. With scale 0 samples are
    those of `conditional`, bit for bit.
    """

    if unconditional.event_shape != conditional.event_shape:
        raise ValueError("both models must be of the same event; their event_shape differs.")

    def eps_of(vdm: "VDM", z_t: Tensor, gamma_t: Tensor) -> tuple[Tensor, Any]:
        prediction, share = split(vdm.denoise(z_t, gamma_t), vdm.reverse_var)
        return to_eps(prediction, z_t, gamma_t, vdm.kind), share

    def denoise(z_t: Tensor, gamma_t: Tensor) -> Any:
        eps, share = eps_of(conditional, z_t, gamma_t)
        eps = (1.0 + scale) * eps - scale * eps_of(unconditional, z_t, gamma_t)[0]
        return (eps, share) if conditional.reverse_var == "learned" else eps

    led = conditional._replace(denoise=denoise, kind="eps")
    return Guided(led if scale else conditional, scale)


def default_steps(vdm: "VDM") -> int:
    """Returns the number of steps of a model's ancestral chain: its T, or 1000."""
    return 1000 if vdm.num_steps is None else vdm.num_steps


def to_images(
    z_0: Tensor, gamma_0: ArrayLike, levels: Levels, key: Key | None = None
) -> Images | Tensor:
    """Returns pixels in [0, levels) of a z_0: the most likely, or a draw of p(x|z_0) by `key`.

    Where z_0 is not a number they are -1. Without levels it is x = z_0 / alpha_0; floats, where
    features are of several kinds. Of `transforms.Coefficients` it is made of W^T z_0 / alpha_0.
    """
    z_0, gamma_0 = jnp.asarray(z_0), expand(gamma_0, z_0)
    if isinstance(levels, tuple):
        parts = list(mixed.parts(levels, z_0, gamma_0))
        keys = [None] * len(parts) if key is None else jax.random.split(key, len(parts))
        found = (to_images(z, at, n, k) for (n, z, at), k in zip(parts, keys, strict=True))
        return mixed.joined(levels, found)
    x = z_0 / alpha(gamma_0)
    if isinstance(levels, Coefficients):
        x, gamma_0 = levels.transform.inverse(x), levels.gamma_of_pixels(gamma_0, x)
        levels = levels.levels
    return x if levels is None else pixels.decode(x, gamma_0, levels, key)


def ancestral(
    key: Key,
    denoise: Denoise,
    gamma: Gamma,
    shape: Sequence[int],
    num_steps: int,
    kind: Kind = "eps",
    reverse_var: ReverseVar = "posterior",
) -> Tensor:
    """Returns z_0 [batch, *event]: z_1 ~ N(0, I), then `num_steps` steps equal in time.

    `to_images` makes pixels of z_0. The other arguments are as for `vdm_jax.VDM`.
    """
    checks.count(num_steps, "num_steps")
    shape = checks.shape(shape)
    gammas = timestep.falling(timestep.steps(gamma, jnp.linspace(1.0, 0.0, num_steps + 1)))
    key_init, key_steps = jax.random.split(key)

    def body(z_t: Tensor, step: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, None]:
        i, gamma_t, gamma_s = step
        eps = jax.random.normal(jax.random.fold_in(key_steps, i), z_t.shape, z_t.dtype)
        return ancestral_step(z_t, eps, denoise, gamma_s, gamma_t, kind, reverse_var), None

    z_1 = jax.random.normal(key_init, shape, gammas.dtype)
    return scan(body, z_1, (jnp.arange(num_steps), gammas[:-1], gammas[1:]))


def ancestral_step(
    z_t: Tensor,
    eps: Tensor,
    denoise: Denoise,
    gamma_s: ArrayLike,
    gamma_t: ArrayLike,
    kind: Kind = "eps",
    reverse_var: ReverseVar = "posterior",
) -> Tensor:
    """Returns z_s ~ p(z_s|z_t) made of noise `eps` (VDM eq. 33), [batch, *event].

    Gammas are scalars, [1, *event] for a schedule of each feature, or [batch, *event].
    """
    z_t, eps = jnp.asarray(z_t), jnp.asarray(eps)
    checks.same_shape(z_t, eps, "z_t", "eps")
    prediction, share = _predict(denoise, z_t, gamma_t, reverse_var)
    x_hat = to_x(prediction, z_t, gamma_t, kind)
    return reverse(z_t, x_hat, gamma_s, gamma_t, share).at(eps)


def _predict(
    denoise: Denoise, z_t: Tensor, gamma_t: ArrayLike, reverse_var: ReverseVar
) -> tuple[Tensor, Tensor | float]:
    """Returns `split` of the prediction for z_t [batch, *event] at a gamma_t, `timestep.steps`."""
    per_example = timestep.of_batch(jnp.asarray(gamma_t, z_t.dtype), z_t)
    return split(denoise(z_t, per_example), reverse_var)


def bridge(
    z_t: Tensor, x: Tensor, gamma_s: ArrayLike, gamma_t: ArrayLike, eta: float = 0.0
) -> Gaussian:
    """Returns q_eta(z_s|z_t, x), with the marginals of the process for every eta in [0, 1].

    The variance is eta^2 times the posterior's, sigma_s^2 c with c = 1 - e^(gamma_s - gamma_t), and
    the mean alpha_s x + sigma_s sqrt(1 - eta^2 c) eps with eps = (z_t - alpha_t x) / sigma_t (Song,
    Meng & Ermon 2021, eq. 7 and 16). At 1 it is `vdm_jax.process.posterior`, at 0 a point.
    """
    gamma_s, gamma_t = expand(gamma_s, z_t), expand(gamma_t, z_t)
    share = -(eta**2) * jnp.expm1(gamma_s - gamma_t)  # eta^2 c
    # alpha_s less what the noise takes of x would cancel: by expm1 of a logarithm.
    kept = 0.5 * jnp.log1p(-share)
    ratio = 0.5 * (jax.nn.log_sigmoid(gamma_s) - jax.nn.log_sigmoid(gamma_t))
    of_x = -alpha(gamma_s) * jnp.expm1(kept + 0.5 * (gamma_s - gamma_t))
    return Gaussian(jnp.exp(ratio + kept) * z_t + of_x * x, variance(gamma_s) * share)


def step(
    state: State,
    eps: Tensor | None,
    vdm: "VDM",
    gamma_s: ArrayLike,
    gamma_t: ArrayLike,
    rule: Rule,
    last: ArrayLike = False,
) -> State:
    """Returns the state at gamma_s of that at gamma_t (`timestep.steps`), gamma_s < gamma_t.

    `eps` is standard-normal noise of the latent's shape, or None where the rule is not `noisy`.
    Only "ancestral" makes use of a learned variance. "dpm_solver" makes the `last` step by first
    order: of few steps it is so long that the line through two predictions leads past the data.
    """
    z, now = state.z, jnp.asarray(gamma_t, state.z.dtype)
    if eps is None:
        if rule.noisy:
            raise ValueError(f"the steps of {rule} need noise, got eps = None.")
        eps = jnp.zeros_like(z)
    if rule.sampler == "ancestral":
        z_s = ancestral_step(z, eps, vdm.predict, gamma_s, gamma_t, vdm.kind, vdm.reverse_var)
        return State(z_s, state.x_hat, now)
    prediction, _ = _predict(vdm.predict, z, gamma_t, vdm.reverse_var)
    x_t = to_x(prediction, z, gamma_t, vdm.kind).astype(z.dtype)
    if rule.sampler == "heun":
        first_order = bridge(z, x_t, gamma_s, gamma_t).mean
        later, _ = _predict(vdm.predict, first_order, gamma_s, vdm.reverse_var)
        at_t = to_eps(prediction, z, gamma_t, vdm.kind)
        at_s = to_eps(later, first_order, gamma_s, vdm.kind)
        x_mean = to_x(0.5 * (at_t + at_s), z, gamma_t, "eps")
        z_s = bridge(z, x_mean, gamma_s, gamma_t).mean
        # eps_hat at the end of a long step from much noise is that of another x: times sigma_t /
        # alpha_t it would lead far from the data.
        long = now - gamma_s > 2.0 * math.log(10.0)
        return State(jnp.where(long, first_order, z_s), state.x_hat, now)
    if rule.sampler == "dpm_solver":
        ahead = jnp.where(last, 0.0, _ahead(state.gamma, now, gamma_s))
        z_s = bridge(z, x_t + ahead * (x_t - state.x_hat), gamma_s, gamma_t).mean
        return State(z_s, x_t, now)
    to = bridge(z, x_t, gamma_s, gamma_t, rule.eta)
    return State(to.at(eps) if rule.noisy else to.mean, x_t, now)


def _ahead(gamma_r: Tensor, gamma_t: Tensor, gamma_s: ArrayLike) -> Tensor:
    """Returns half the step from t to s as a multiple of the one before, from r to t, or 0."""
    before = gamma_r - gamma_t
    some = before > 0.0
    return jnp.where(some, 0.5 * (gamma_t - gamma_s) / jnp.where(some, before, 1.0), 0.0)


def start(z_1: Tensor, gamma_1: ArrayLike) -> State:
    """Returns the state before the first step."""
    return State(z_1, jnp.zeros_like(z_1), jnp.asarray(gamma_1, z_1.dtype))


def initial(keys: Key, event_shape: Sequence[int], dtype: DTypeLike = float) -> Tensor:
    """Returns z_1 ~ N(0, I) of one key per example, [batch, *event]."""
    return noise(keys, -1, event_shape, dtype)


def noise(keys: Key, i: ArrayLike, event_shape: Sequence[int], dtype: DTypeLike = float) -> Tensor:
    """Returns the noise of step number `i`, from 0, by one key per example: [batch, *event].

    A sample depends on its own key only, whatever the batch.
    """
    at = jnp.asarray(i) + 1
    shape = tuple(event_shape)
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, at), shape, dtype))(keys)


def solve(z_1: Tensor, vdm: "VDM", rule: Rule, keys: Key | None = None) -> Tensor:
    """Returns z_0 of a given z_1 [batch, *event] after all the steps of a rule.

    Without noise it approximates `vdm_jax.flow.sample`; else `keys` [batch] give it (`noise`).
    """
    gammas = rule.gammas(vdm.gamma)
    z_1 = jnp.asarray(z_1, jnp.promote_types(jnp.result_type(z_1), gammas.dtype))

    def body(state: State, at: tuple[Tensor, Tensor, Tensor]) -> tuple[State, None]:
        i, gamma_t, gamma_s = at
        eps = None if keys is None else noise(keys, i, z_1.shape[1:], z_1.dtype)
        return step(state, eps, vdm, gamma_s, gamma_t, rule, i == rule.num_steps - 1), None

    steps = (jnp.arange(rule.num_steps), gammas[:-1], gammas[1:])
    return scan(body, start(z_1, gammas[0]), steps).z
