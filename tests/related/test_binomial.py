import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.distributions import Bernoulli
from vdm_jax.related import binomial

BITS = np.array([0, 1])
STATES = np.array(list(itertools.product(BITS, repeat=2)))


def kernel(k: float) -> np.ndarray:
    """P(z_t = column|z_s = row) of one bit of which the share k is kept, [2, 2]."""
    return k * np.eye(2) + (1 - k) / 2


def probability(b: Bernoulli) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(b.logits, np.float64)))


def power(t):
    """Another schedule: keep falls to 0.04, not to zero."""
    return (1.0 - 0.8 * t) ** 2


# ---- the forward process ----


def test_constant_erasure_is_the_product_of_the_papers_betas(x64):
    num_steps = 7
    i = np.arange(1, num_steps + 1)
    betas = 1 / (num_steps - i + 1)
    keep = binomial.constant_erasure(jnp.arange(num_steps + 1) / num_steps)
    np.testing.assert_allclose(keep[1:], np.cumprod(1 - betas), rtol=1e-12, atol=1e-15)
    assert keep[0] == 1.0 and keep[-1] == 0.0
    # Of the data's signal each step erases the same share.
    np.testing.assert_allclose(-np.diff(keep), np.full(num_steps, 1 / num_steps), rtol=1e-12)
    # The paper's kernel of each step, from z_s = 1 and from z_s = 0.
    for z_s in BITS:
        step = binomial.transition(np.full(num_steps, z_s), keep[:-1], keep[1:])
        np.testing.assert_allclose(probability(step), z_s * (1 - betas) + betas / 2, rtol=1e-12)


def test_prior_is_its_closed_form_and_vanishes_as_the_square_of_the_signal():
    prior = jax.jit(binomial.prior)
    dtype, keep_1 = np.float32, np.float32([0.999, 0.5, 0.04, 1e-3, 1e-6])
    for x in BITS:
        # Whatever the start: the KL does not depend on x.
        kl = prior(jnp.full((5, 2, 3), x), jnp.asarray(keep_1))
        k = keep_1.astype(np.float64)
        # log 2 - H((1 + k) / 2) = ((1 + k) log(1 + k) + (1 - k) log(1 - k)) / 2, or its series.
        plain = 0.5 * ((1 + k) * np.log1p(k) + (1 - k) * np.log1p(-k))
        series = k**2 / 2 + k**4 / 12 + k**6 / 30
        expected = 6 * np.where(k < 0.01, series, plain)
        np.testing.assert_allclose(kl, expected, rtol=60 * np.finfo(dtype).eps)
    ends = prior(jnp.ones((2, 3), int), jnp.asarray([0.0, 1.0], dtype))
    np.testing.assert_allclose(ends, [0.0, 3 * np.log(2)], rtol=4 * np.finfo(dtype).eps)


# ---- Bayes' rule ----


@pytest.mark.parametrize(("keep_s", "keep_t"), [(0.9, 0.3), (0.99, 0.0), (1.0, 0.6)])
def test_posterior_and_reverse_are_bayes_rule_by_enumeration(x64, keep_s, keep_t):
    first, second = kernel(keep_s), kernel(keep_t / keep_s)
    x, z_t = (v.ravel() for v in np.meshgrid(BITS, BITS))
    bayes = first[x, 1] * second[1, z_t] / (first @ second)[x, z_t]
    q = binomial.posterior(z_t, x, keep_s, keep_t)
    np.testing.assert_allclose(probability(q), bayes, rtol=1e-9)
    # The posterior over the two later or earlier bits, from the joint of a data bit with P(1) = a.
    for a in (0.03, 0.5, 0.8):
        joint = np.array([1 - a, a])[:, None, None] * first[:, :, None] * second[None]
        p_x = joint[1].sum(0) / joint.sum((0, 1))  # p(x = 1|z_t)
        p_s = joint[:, 1].sum(0) / joint.sum((0, 1))
        p = binomial.reverse(BITS, np.log(p_x / (1 - p_x)), keep_s, keep_t)
        np.testing.assert_allclose(probability(p), p_s, rtol=1e-9)


# ---- the bound against enumeration ----


def kernels(k: float) -> np.ndarray:
    """P(z_t = column|z_s = row) of two bits, [4, 4]."""
    return np.kron(kernel(k), kernel(k))


def reverse_kernel(denoise, keep_s: float, keep_t: float) -> np.ndarray:
    """p(z_s = column|z_t = row) of the model, [4, 4]: by Bayes' rule for each bit."""
    signs = jnp.asarray(2.0 * STATES - 1.0)
    p_hat = 1 / (1 + np.exp(-np.asarray(denoise(signs, jnp.full(4, keep_t)), np.float64)))
    joint = kernel(keep_s)[:, :, None] * kernel(keep_t / keep_s)
    posterior = joint / joint.sum(1, keepdims=True)  # [x, z_s, z_t]
    if_0, if_1 = (posterior[x].T[STATES] for x in BITS)  # [z_t, bit, its z_s]
    each = p_hat[..., None] * if_1 + (1 - p_hat[..., None]) * if_0
    return (each[:, 0, :, None] * each[:, 1, None, :]).reshape(4, 4)


def log_likelihood(denoise, keeps: np.ndarray) -> np.ndarray:
    """log p(x) of the chain with the keeps [T + 1], for each state x."""
    p = np.full(4, 0.25)
    for s, t in reversed(list(itertools.pairwise(keeps))):
        p = p @ reverse_kernel(denoise, s, t)
    return np.log(p)


def bound(denoise, keeps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two terms of the bound of each state x, prior and diffusion, by enumeration."""
    q_1 = kernels(keeps[-1])
    diffusion = np.zeros(4)
    for s, t in itertools.pairwise(keeps):
        joint = kernels(s)[:, :, None] * kernels(t / s)  # q(z_s, z_t|x), [x, z_s, z_t]
        posterior = joint / joint.sum(1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_ratio = np.log(posterior) - np.log(reverse_kernel(denoise, s, t).T)
            terms = np.where(joint > 0, joint * log_ratio, 0.0)
        diffusion += np.sum(terms, axis=(1, 2))
    return np.sum(q_1 * np.log(q_1 * 4), axis=1), diffusion


def expected(denoise, keep, num_steps: int) -> dict:
    """The expectation of `binomial.elbo` over noise and times, for each state x.

    Exact: in each step, all latents are made of noise near 0 or 1, and weighted with q.
    """
    x, step, z = (v.ravel() for v in np.indices((4, num_steps, 4)))
    u = jnp.where(STATES[z] == 1, 0.0, 1.0 - 1e-6)
    run = jax.jit(lambda *args: binomial.elbo(*args, denoise, keep, num_steps))
    terms = run(STATES[x], u, jnp.asarray((step + 0.5) / num_steps))
    q = np.array([kernels(k) for k in keep(np.arange(1, num_steps + 1) / num_steps)])
    weight = q[step, x, z] / num_steps
    return {
        name: np.bincount(x, weight * np.asarray(v, np.float64), 4)
        for name, v in (terms._asdict() | {"total": terms.total}).items()
    }


def elbo(key, images, denoise, keep, num_steps):
    """`binomial.elbo` at noise and times of a key."""
    key_t, key_u = jax.random.split(key)
    u, t = jax.random.uniform(key_u, images.shape), jax.random.uniform(key_t, images.shape[:1])
    return binomial.elbo(images, u, t, denoise, keep, num_steps)


def arbitrary(z, keep):
    """No posterior of any data, and different for each bit."""
    return jnp.sin(1.0 + jnp.arange(z.shape[-1])) + z * keep[:, None] - 0.7 * jnp.roll(z, 1, -1)


@pytest.mark.parametrize(("keep", "num_steps"), [(binomial.constant_erasure, 1), (power, 4)])
def test_terms_average_to_the_bound_by_enumeration_and_it_is_one(x64, keep, num_steps):
    keeps = keep(np.arange(num_steps + 1) / num_steps)
    prior, diffusion = bound(arbitrary, keeps)
    terms = expected(arbitrary, keep, num_steps)
    np.testing.assert_allclose(terms["prior"], prior, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(terms["diffusion"], diffusion, rtol=1e-9)
    np.testing.assert_array_equal(terms["reconstruction"], np.zeros(4))
    np.testing.assert_allclose(terms["total"], prior + diffusion, rtol=1e-9)
    slack = terms["total"] + log_likelihood(arbitrary, keeps)
    assert np.all(slack > -1e-12)
    if num_steps > 1:
        assert np.max(slack) > 1e-3  # a bound, and not the likelihood by chance


def test_elbo_is_unbiased():
    num_steps, n = 4, 10_000
    prior, diffusion = bound(arbitrary, power(np.arange(5) / 4))
    images = jnp.asarray(np.tile(STATES, (n, 1)))
    run = jax.jit(lambda key: elbo(key, images, arbitrary, power, num_steps))
    terms = run(jax.random.key(1))
    sampled = np.asarray(terms.diffusion, np.float64).reshape(n, 4)
    error = sampled.std(0) / np.sqrt(n)
    assert np.all(np.abs(sampled.mean(0) - diffusion) < 5 * error)
    assert np.all(error < 0.02 * diffusion)
    np.testing.assert_allclose(terms.prior[:4], prior, rtol=1e-5)


def test_what_is_no_bit_makes_its_own_example_nan_and_the_event_shape_does_not_matter():
    total = jax.jit(lambda v: elbo(jax.random.key(0), v, arbitrary, power, 3).total)
    flat = total(np.array([[0, 1], [2, 1], [1, 1]], np.uint8))
    np.testing.assert_array_equal(np.isnan(flat), [0, 1, 0])

    def shaped(z, keep):
        return arbitrary(z.reshape(3, 2), keep).reshape(z.shape)

    images = jnp.array([[0, 1], [1, 1], [1, 1]], bool).reshape(3, 1, 2, 1)
    other = jax.jit(lambda v: elbo(jax.random.key(0), v, shaped, power, 3).total)(images)
    np.testing.assert_allclose(other[::2], flat[::2], rtol=1e-5)


# ---- gradients ----


def test_the_network_gets_a_gradient_and_the_schedule_none():
    images, u, t = STATES[[0, 3]], jnp.full((2, 2), 0.3), jnp.array([0.2, 0.9])

    def total(size, end):
        keep = lambda t: (1.0 - end * t) ** 2  # noqa: E731
        terms = binomial.elbo(images, u, t, lambda z, k: size * z, keep, 10)
        return jnp.sum(terms.total)

    run = jax.jit(jax.value_and_grad(total, (0, 1)))
    for size in (0.4, 1e4):  # also where the network is almost certain
        of_network, of_schedule = run(size, 0.8)[1]
        assert np.isfinite(of_network) and of_schedule == 0.0
    numeric = (run(0.41, 0.8)[0] - run(0.39, 0.8)[0]) / 0.02
    np.testing.assert_allclose(run(0.4, 0.8)[1][0], numeric, rtol=1e-3)


# ---- sampling ----


def test_samples_have_the_distribution_of_the_exact_chain():
    num_steps, n = 4, 40_000
    p = np.exp(log_likelihood(arbitrary, power(np.arange(num_steps + 1) / num_steps)))
    run = jax.jit(lambda key: binomial.sample(key, arbitrary, power, (n, 2), num_steps))
    drawn = run(jax.random.key(num_steps))
    assert jnp.issubdtype(drawn.dtype, jnp.integer)
    share = np.bincount(np.asarray(drawn) @ [2, 1], minlength=4) / n
    assert np.all(np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / n))


# ---- refusals ----


def test_what_makes_no_bound_is_refused_by_name():
    key, images, u, t = jax.random.key(0), np.zeros((2, 3), int), np.zeros((2, 3)), np.zeros(2)
    late = lambda t: 0.99 - t  # noqa: E731
    count = "num_steps must be an integer of at least 1, got"
    start = "keep(0) must be 1 (z_0 is the data), got [0.99"

    def diffusion(images=images, u=u, t=t, denoise=arbitrary, keep=power):
        return binomial.diffusion(images, u, t, denoise, keep, 3)

    for call, message in (
        (lambda: elbo(key, images, arbitrary, power, 0), count),
        (lambda: binomial.sample(key, arbitrary, power, (2, 3), 2.0), count),
        (lambda: binomial.sample(key, arbitrary, late, (2, 3), 3), start),
        # Also when it is compiled.
        (lambda: jax.jit(lambda k: elbo(k, images, arbitrary, late, 3).total)(key), start),
        (lambda: diffusion(u=u[0]), "images (2, 3) and u (3,) differ in shape"),
        (lambda: diffusion(t=np.zeros(3)), "t must be [2], one time per example, got shape (3,)"),
        (lambda: diffusion(t=t + 2.0), "t must lie in [0, 1], got 2.0."),
        (lambda: diffusion(denoise=lambda z, k: z[:, 0]), "x_hat (2,) and z_t (2, 3) differ in"),
        (lambda: diffusion(keep=lambda t: 1 - t[:1]), "keep must map (2,) to (2,), but returned"),
        (lambda: binomial.BinomialDiffusion(arbitrary, (3,), 2).sample(key, 1, 0), count),
        (lambda: binomial.marginal(images, np.full(3, 0.5)), "keep_t of shape (3,) does not go"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
