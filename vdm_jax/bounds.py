"""Other bounds on -log p(x) of the same model: importance-weighted, and Luo's consistency form.

The T + 1 latents z_0, ..., z_T of a chain of T = `num_steps` steps stand at the times i / T. Each
is written as z_i = alpha_i x + sigma_i e_i. Under q(.|x) the noise e is a stationary Gaussian
chain: from gamma to a later gamma', and back, its correlation is r = exp((gamma - gamma') / 2),
and 1 - r^2 = -expm1(gamma - gamma') is left of its variance: neither a small step nor a small
sigma cancels anything.
"""

from typing import cast

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from vdm_jax import checks, loss, timestep
from vdm_jax.gaussian import Gaussian
from vdm_jax.parameterization import split, to_eps
from vdm_jax.process import expand, marginal, scan, transition, variance_log_ratio
from vdm_jax.schedule import alpha, sigma
from vdm_jax.types import Gamma, Images, Key, PerExample, Tensor
from vdm_jax.vdm import VDM


def importance_weighted(log_weights: ArrayLike, axis: int = 0) -> Tensor:
    """Returns -log of the mean of K weights, given their logarithms along `axis`, in nats.

    Of K independent `chain`s its expectation is above -log p(x), never increases with K and tends
    to it (Burda et al. 2016, eq. 8); K = 1 is the bound.
    """
    log_weights = jnp.asarray(log_weights)
    if not -log_weights.ndim <= axis < log_weights.ndim or not log_weights.shape[axis]:
        raise ValueError(
            f"log_weights must have at least one weight along axis {axis}, "
            f"got shape {log_weights.shape}."
        )
    return jnp.log(float(log_weights.shape[axis])) - logsumexp(log_weights, axis=axis)


def chain(vdm: VDM, key: Key, images: Images | Tensor) -> PerExample:
    """Returns the log weight of one chain, log p(x, z_0, ..., z_T) - log q(z_0, ..., z_T|x).

    It is [batch], in nats. The latents are drawn from q, from z_T down, by T = `vdm.num_steps`
    calls of the network. Minus its expectation is the bound of T steps, that of `loss.elbo` (VDM
    eq. 11 to 14); the expectation of its exponential is p(x) of the chain. That has no finite
    variance if a step's p(z_s|z_t) is more than twice as wide, in variance, as q(z_s|z_t, x): with
    "transition", if sigma_t^2 > 2 sigma_s^2, as where steps are few.
    """
    num_steps = _num_steps(vdm)
    x = loss.to_data(images, vdm.levels, vdm.mask)
    gammas = timestep.steps(vdm.gamma, jnp.arange(num_steps, -1, -1, dtype=x.dtype) / num_steps)
    key_1, key_steps = jax.random.split(key)

    def step(
        carry: tuple[Tensor, PerExample], at: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[tuple[Tensor, PerExample], None]:
        (e_t, log_weight), (i, gamma_t, gamma_s) = carry, at
        per_example = timestep.of_batch(gamma_t, x)
        e_hat, share = _predict(vdm, x, e_t, per_example)
        eps = jax.random.normal(jax.random.fold_in(key_steps, i), x.shape, x.dtype)
        # The mean of p(z_s|z_t) is away from that of q(z_s|z_t, x) by this shift, in standard
        # deviations of q, and z_s by eps; q's variance is r times p's.
        shift = jnp.sqrt(jnp.expm1(gamma_t - gamma_s)) * (e_t - e_hat)
        log_r = -share * variance_log_ratio(gamma_s, gamma_t)
        wider = 0.5 * (log_r - jnp.expm1(log_r) * jnp.square(eps))
        moved = wider + jnp.exp(log_r) * shift * (eps - 0.5 * shift)
        log_weight += loss.sum_event(moved, vdm.mask)
        e_s = Gaussian(jnp.exp(0.5 * (gamma_s - gamma_t)) * e_t, -jnp.expm1(gamma_s - gamma_t))
        return (e_s.at(eps), log_weight), None

    e_1 = jax.random.normal(key_1, x.shape, x.dtype)
    steps = (jnp.arange(num_steps), gammas[:-1], gammas[1:])
    e_0, log_weight = scan(step, (e_1, _prior_log_ratio(x, e_1, gammas[0], vdm.mask)), steps)
    return log_weight - loss.reconstruction(images, e_0, gammas[-1], vdm.levels, vdm.mask)


def chains(
    vdm: VDM, key: Key, images: Images | Tensor, num_chains: int
) -> Float[Array, "chains batch"]:
    """Returns log weights of independent chains, one after the other in the memory of one."""
    checks.count(num_chains, "num_chains")
    return jax.lax.map(lambda key: chain(vdm, key, images), jax.random.split(key, num_chains))


def _prior_log_ratio(x: Tensor, e_1: Tensor, gamma_1: Tensor, mask: ArrayLike | None) -> PerExample:
    """Returns log N(z_1; 0, I) - log q(z_1|x) at z_1 = alpha_1 x + sigma_1 e_1."""
    a, s = alpha(gamma_1), sigma(gamma_1)
    # z_1^2 - e_1^2 as the small number that it is where alpha_1 is small.
    excess = a * (a * (jnp.square(x) - jnp.square(e_1)) + 2.0 * s * x * e_1)
    return -0.5 * loss.sum_event(excess - jax.nn.log_sigmoid(gamma_1), mask)


def consistency(vdm: VDM, key: Key, images: Images | Tensor) -> loss.ElboTerms:
    """Returns one sample of the bound of T steps in Luo's consistency form (eq. 44 and 45).

    The same number as `vdm.elbo` in expectation, at the same cost. Its variance is the same for a
    few steps, but grows with T, where that of `vdm.elbo` has a limit: for study, not for training.
    Its prior term is `prior_matching`, its diffusion term `consistency_term` at a random step.
    """
    num_steps = _num_steps(vdm)
    x = loss.to_data(images, vdm.levels, vdm.mask)
    key_t, *keys = jax.random.split(key, 5)
    t = timestep.draw(key_t, x.shape[0], vdm.timesteps)
    eps_0, eps_prior, eps_s, eps_u = (jax.random.normal(k, x.shape, x.dtype) for k in keys)
    gamma_0, _ = timestep.end_points(vdm.gamma, x.dtype)
    return loss.ElboTerms(
        loss.reconstruction(images, eps_0, gamma_0, vdm.levels, vdm.mask),
        prior_matching(x, eps_prior, vdm.gamma, num_steps, vdm.mask),
        consistency_term(vdm, x, eps_s, eps_u, t),
    )


def prior_matching(
    x: Tensor, eps: Tensor, gamma: Gamma, num_steps: int, mask: ArrayLike | None = None
) -> PerExample:
    """Returns KL(q(z_T|z_{T-1}) || N(0, I)) at z_{T-1} made of noise `eps` (Luo eq. 45)."""
    times = jnp.array([num_steps - 1.0, num_steps], x.dtype) / num_steps
    gamma_s, gamma_t = timestep.steps(gamma, times)
    q = transition(marginal(x, gamma_s).at(eps), gamma_s, gamma_t)
    return loss.sum_event(q.kl(Gaussian(jnp.zeros_like(x), jnp.ones_like(x))), mask)


def consistency_term(
    vdm: VDM, x: Tensor, eps_s: Tensor, eps_u: Tensor, t: PerExample
) -> PerExample:
    """Returns T E[log q(z_i|z_{i-1}) - log p(z_i|z_{i+1})] of the step that `t` falls into.

    It is [batch], in nats. Its expectation over t ~ U[0, 1] is the sum over i = 0, ..., T - 1 (Luo
    eq. 44, third term). The outer latents are made of noise [batch, *event], z_{i-1} of `eps_s` and
    z_{i+1} from it by `eps_u`; z_i is integrated out over the bridge q(z_i|z_{i-1}, z_{i+1}), which
    is Gaussian. For i = 0, z_{-1} is the data, and z_1 made of `eps_u` alone.

    Luo's eq. 45 instead writes E KL(q(z_i|z_{i-1}) || p(z_i|z_{i+1})). Read literally, it ignores
    that z_{i+1} says something of z_i and exceeds eq. 44, by about one nat per dimension and step.
    """
    num_steps = _num_steps(vdm)
    if vdm.reverse_var != "posterior":
        said = f"the consistency form is of the posterior's variance, got {vdm.reverse_var!r}"
        raise ValueError(f"{said}: take vdm.elbo, or reverse_var='posterior'.")
    checks.same_shape(x, eps_s, "x", "eps_s")
    checks.same_shape(x, eps_u, "x", "eps_u")
    checks.per_example(t, x)
    mid, late = timestep.grid(t, num_steps)
    early = jnp.maximum(jnp.rint(late * num_steps) - 2.0, 0.0) / num_steps
    gamma_s, gamma_t, gamma_u = (timestep.gammas(vdm.gamma, time) for time in (early, mid, late))
    first = expand(mid == 0.0, x)
    st, tu, su = (expand(g, x) for g in (gamma_s - gamma_t, gamma_t - gamma_u, gamma_s - gamma_u))
    # Correlations of the noise over the two steps, and what they leave of its variance: c1 and c,
    # over both c2. The data, before z_0, is as good as no noise.
    rho, c1 = jnp.where(first, 0.0, jnp.exp(0.5 * st)), jnp.where(first, 1.0, -jnp.expm1(st))
    r, c = jnp.exp(0.5 * tu), -jnp.expm1(tu)
    c2 = jnp.where(first, 1.0, -jnp.expm1(su))
    rise = jnp.where(first, -jnp.square(r), -jnp.exp(st) * jnp.expm1(tu - st))  # c - c1

    e_u = Gaussian(r * rho * eps_s, c2).at(eps_u)
    g = rho * eps_s - (e_u - _predict(vdm, x, e_u, gamma_u)[0]) / r
    # q's and p's log-densities averaged over the bridge, of variance c c1 / c2. In their difference
    # what is of order 1 for small steps has been cancelled by hand.
    kappa = jnp.square(r) * (rho**4 * rise - jnp.square(c1) * (1.0 + jnp.square(rho))) / c2
    near = jnp.abs(rise) < 0.5 * c1  # log(c / c1), by log1p of nearly equal numbers
    log_ratio = jnp.where(near, jnp.log1p(jnp.where(near, rise / c1, 0.0)), jnp.log(c / c1))
    constant = log_ratio - jnp.square(rho) * c
    cross = 2.0 * c * jnp.square(rho) * r / jnp.sqrt(c2) * g * eps_u
    twice = constant + kappa * (jnp.square(eps_u) - 1.0) + c * jnp.square(g) - cross
    return 0.5 * num_steps * loss.sum_event(twice, vdm.mask)


def _predict(
    vdm: VDM, x: Tensor, e_t: Tensor, gamma_t: PerExample
) -> tuple[Tensor, Tensor | float]:
    """Returns the noise that the network sees in z_t = alpha_t x + sigma_t e_t, and the share."""
    z_t = marginal(x, gamma_t).at(e_t)
    prediction, share = split(vdm.predict(z_t, gamma_t), vdm.reverse_var)
    return to_eps(prediction, z_t, gamma_t, vdm.kind), share


def _num_steps(vdm: VDM) -> int:
    _ = vdm.elbo  # a guided model has none
    checks.count(vdm.num_steps, "num_steps")
    return cast(int, vdm.num_steps)
