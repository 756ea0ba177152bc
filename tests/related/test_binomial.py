import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.bernoulli import Bernoulli
from vdm_jax.related import binomial

BITS = np.array([0, 1])


def states(dims: int) -> np.ndarray:
    """All 2^dims vectors of bits, [2^dims, dims]."""
    return np.array(list(itertools.product(BITS, repeat=dims)))


def kernel(k: float) -> np.ndarray:
    """P(z_t = column|z_s = row) of one bit of which the share k is kept, [2, 2]."""
    return k * np.eye(2) + (1 - k) / 2


def kernels(k: float, dims: int) -> np.ndarray:
    """The same for vectors of bits, [2^dims, 2^dims]."""
    return functools.reduce(np.kron, [kernel(k)] * dims)


def probability(b: Bernoulli) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(b.logits, np.float64)))


def power(t):
    """Another schedule: keep falls to 0.04, not to zero."""
    return (1.0 - 0.8 * t) ** 2


SCHEDULES = {"erasure": binomial.constant_erasure, "power": power}


# ---- the forward process ----


@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
def test_constant_erasure_is_the_product_of_the_papers_betas(x64, num_steps):
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


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_products_of_single_steps_are_the_jump(x64, schedule):
    keep = SCHEDULES[schedule](np.linspace(0.0, 1.0, 9))
    one_step = [
        np.stack([[1 - p, p] for p in probability(binomial.transition(BITS, s, t))])
        for s, t in itertools.pairwise(keep)
    ]
    for n in range(1, 9):
        jump = np.linalg.multi_dot([np.eye(2), *one_step[:n]])
        np.testing.assert_allclose(probability(binomial.marginal(BITS, keep[n])), jump[:, 1])
        np.testing.assert_allclose(probability(binomial.transition(BITS, 1.0, keep[n])), jump[:, 1])
    middle = np.linalg.multi_dot(one_step[2:6])
    np.testing.assert_allclose(
        probability(binomial.transition(BITS, keep[2], keep[6])), middle[:, 1]
    )


def test_simulated_steps_have_the_distribution_of_a_jump():
    n, num_steps = 60_000, 6
    keep = power(np.linspace(0.0, 1.0, num_steps + 1))
    x = np.repeat(BITS, n // 2)
    keys = jax.random.split(jax.random.key(0), num_steps + 1)
    z = x
    for i in range(num_steps):
        z = binomial.transition(z, keep[i], keep[i + 1]).sample(keys[i])
    jump = binomial.marginal(x, keep[-1]).sample(keys[-1])
    for value in BITS:
        walked, jumped = (np.mean(v[x == value]) for v in (z, jump))
        # Two independent samples of variance at most 1/4 each.
        assert abs(walked - jumped) < 5 * np.sqrt(0.5 / (n // 2))
        assert abs(walked - kernel(keep[-1])[value, 1]) < 5 * np.sqrt(0.25 / (n // 2))


def test_prior_is_its_closed_form_and_vanishes_as_the_square_of_the_signal(dtype):
    prior = jax.jit(binomial.prior)
    keep_1 = np.asarray([0.999, 0.5, 0.04, 1e-3, 1e-6], dtype)
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


@pytest.mark.parametrize(
    ("keep_s", "keep_t"), [(0.9, 0.3), (0.5, 0.499), (0.99, 0.0), (1e-4, 1e-7), (1.0, 0.6)]
)
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


def test_reverse_is_the_mixture_of_posteriors_and_no_posterior_at_a_mean(x64):
    p_hat = np.array([0.02, 0.4, 0.5, 0.97])
    for z_t in np.broadcast_to(BITS[:, None], (2, 4)):
        q_1, q_0 = (
            probability(binomial.posterior(z_t, v, 0.7, 0.2)) for v in (z_t * 0 + 1, z_t * 0)
        )
        p = probability(binomial.reverse(z_t, np.log(p_hat / (1 - p_hat)), 0.7, 0.2))
        np.testing.assert_allclose(p, p_hat * q_1 + (1 - p_hat) * q_0, rtol=1e-12)


def test_at_the_data_the_posterior_is_a_point_and_reverse_is_the_network(dtype):
    x, z_t = (jnp.asarray(v.ravel()) for v in np.meshgrid(BITS, BITS))
    x_hat = jnp.asarray([-30.0, -0.4, 0.0, 12.0], dtype)

    @jax.jit
    def at(keep_t):
        def kl(x_hat):
            p = binomial.reverse(z_t, x_hat, 1.0, keep_t)
            return jnp.sum(binomial.posterior(z_t, x, 1.0, keep_t).kl(p)), p

        q = binomial.posterior(z_t, x, 1.0, keep_t)
        return q.logits, *jax.grad(kl, has_aux=True)(x_hat)

    for keep_t in (0.999, 0.5, 0.0):
        q, gradient, p = at(jnp.asarray(keep_t, dtype))
        np.testing.assert_array_equal(q, np.where(x == 1, np.inf, -np.inf))
        np.testing.assert_allclose(p.logits, x_hat, rtol=8 * np.finfo(dtype).eps)
        # KL(q, p) is -log p_hat(x), whose derivative with respect to the logit is p_hat(1) - x.
        p_hat = 1 / (1 + np.exp(-np.asarray(x_hat, np.float64)))
        np.testing.assert_allclose(gradient, p_hat - x, rtol=0, atol=2 * np.finfo(dtype).eps)


def test_a_network_that_is_certain_makes_reverse_the_posterior(dtype):
    x, z_t = (jnp.asarray(v.ravel()) for v in np.meshgrid(BITS, BITS))
    certain = jnp.where(x == 1, jnp.inf, -jnp.inf).astype(dtype)

    @jax.jit
    def at(keep_s, keep_t):
        q = binomial.posterior(z_t, x, keep_s, keep_t)
        p = binomial.reverse(z_t, certain, keep_s, keep_t)
        return q, p, q.kl(p)

    for keeps in [(1.0, 0.9), (0.9, 0.2), (0.2, 0.0)]:
        q, p, kl = at(*jnp.asarray(keeps, dtype))
        np.testing.assert_allclose(p.logits, q.logits, rtol=10 * np.finfo(dtype).eps)
        assert np.all(kl < 1e-10)


def test_float32_has_the_relative_accuracy_of_its_inputs():
    # Thousand steps, also those next to the data and to the last latent.
    keep = np.append(1.0 - np.arange(1000) / 1000, [1e-5, 1e-7]).astype(np.float32)
    x_hat = np.array([-9.0, -0.5, 0.5, 9.0], np.float32)

    z_t, x = (v.ravel()[:, None, None] for v in np.meshgrid(BITS, BITS))
    z_t, x = (np.broadcast_to(v, (4, len(keep) - 1, 4)) for v in (z_t, x))

    def values(kind):
        s, t, logits = (jnp.asarray(v, kind) for v in (keep[None, :-1], keep[None, 1:], x_hat))
        q = binomial.posterior(z_t, x, s, t)
        p = binomial.reverse(z_t, jnp.broadcast_to(logits, z_t.shape), s, t)
        return q.logits, p.logits, q.kl(p)

    single = jax.jit(lambda: values(jnp.float32))()
    with jax.enable_x64(True):
        double = jax.jit(lambda: values(jnp.float64))()
    # Logits have an absolute accuracy, as sums of larger ones; of the KL 1e-9 nats a step are
    # 1e-6 nats for each bit of the bound.
    for s, d, atol in zip(single, double, (2e-6, 2e-6, 1e-9), strict=True):
        assert s.dtype == np.float32 and d.dtype == np.float64
        np.testing.assert_allclose(s, d, rtol=2e-5, atol=atol)


# ---- the bound against enumeration ----


class Data:
    """A joint distribution of a few bits, its optimal network, the exact chain of any network."""

    def __init__(self, p: np.ndarray):
        self.p = p
        self.dims = int(np.log2(len(p)))
        self.states = states(self.dims)

    def entropy(self) -> float:
        return float(-np.sum(self.p * np.log(self.p)))

    def denoise(self, z, keep):
        """Logits of p(x_i = 1|z_t), from p(x) and q(z_t|x) = prod (1 + keep x z) / 2."""
        x = 2.0 * self.states - 1.0
        likelihood = jnp.prod(1.0 + keep[:, None, None] * x * z[:, None, :], axis=-1)
        weight = likelihood * self.p  # [batch, 2^d]
        return jnp.log(weight @ self.states) - jnp.log(weight @ (1 - self.states))

    def reverse_kernel(self, denoise: Callable, keep_s: float, keep_t: float) -> np.ndarray:
        """p(z_s = column|z_t = row) of the model, [2^d, 2^d]: by Bayes' rule for each bit."""
        signs = jnp.asarray(2.0 * self.states - 1.0)
        p_hat = 1 / (1 + np.exp(-np.asarray(denoise(signs, jnp.full(len(signs), keep_t)))))
        first, second = kernel(keep_s), kernel(keep_t / keep_s)
        joint = first[:, :, None] * second[None]
        posterior = joint / joint.sum(1, keepdims=True)  # [x, z_s, z_t]
        out = np.ones((len(signs), len(signs)))
        for row, z_t in enumerate(self.states):
            for column, z_s in enumerate(self.states):
                for i in range(self.dims):
                    p = p_hat[row, i]
                    q_0, q_1 = posterior[:, z_s[i], z_t[i]]
                    out[row, column] *= p * q_1 + (1 - p) * q_0
        return out

    def log_likelihood(self, denoise: Callable, keeps: np.ndarray) -> np.ndarray:
        """log p(x) of the chain with the keeps [T + 1], for each state x."""
        p = np.full(len(self.p), 1 / len(self.p))
        for s, t in reversed(list(itertools.pairwise(keeps))):
            p = p @ self.reverse_kernel(denoise, s, t)
        return np.log(p)

    def bound(self, denoise: Callable, keeps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The two terms of the bound of each state x, prior and diffusion, by enumeration."""
        n = len(self.p)
        q_1 = kernels(keeps[-1], self.dims)
        prior = np.sum(q_1 * np.log(q_1 * n), axis=1)
        diffusion = np.zeros(n)
        for s, t in itertools.pairwise(keeps):
            p = self.reverse_kernel(denoise, s, t)
            first, second = kernels(s, self.dims), kernels(t / s, self.dims)
            joint = first[:, :, None] * second[None]  # q(z_s, z_t|x), [x, z_s, z_t]
            posterior = joint / joint.sum(1, keepdims=True)
            with np.errstate(divide="ignore", invalid="ignore"):
                log_ratio = np.where(joint > 0, np.log(posterior) - np.log(p.T), 0.0)
            diffusion += np.sum(joint * log_ratio, axis=(1, 2))
        return prior, diffusion

    def expected(self, denoise: Callable, keep: Callable, num_steps: int, scale=1.0) -> dict:
        """The expectation of `binomial.elbo_given` over noise and times, for each state x.

        Exact: in each step, all latents are made of noise near 0 or 1, and weighted with q.
        """
        n = len(self.p)
        x, step, z = (
            v.ravel() for v in np.meshgrid(*map(np.arange, (n, num_steps, n)), indexing="ij")
        )
        u = np.where(self.states[z] == 1, 0.0, 1.0 - 1e-6)
        t = (step + 0.5) / num_steps
        terms = jax.jit(lambda *args: binomial.elbo_given(*args, denoise, keep, num_steps))(
            self.states[x], jnp.asarray(u), jnp.asarray(t)
        )
        q = np.array([kernels(k, self.dims) for k in keep(np.arange(1, num_steps + 1) / num_steps)])
        weight = q[step, x, z] / num_steps
        return {
            name: np.bincount(x, weight * np.asarray(v, np.float64), n)
            for name, v in (terms._asdict() | {"total": terms.total}).items()
        }


def arbitrary(z, keep):
    """No posterior of any data, and different for each bit."""
    return jnp.sin(1.0 + jnp.arange(z.shape[-1])) + z * keep[:, None] - 0.7 * jnp.roll(z, 1, -1)


JOINT = {
    "two": Data(np.array([0.45, 0.05, 0.15, 0.35])),
    "three": Data(np.random.default_rng(0).dirichlet(np.full(8, 0.6))),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("network", ["optimal", "arbitrary"])
@pytest.mark.parametrize(("data", "num_steps"), [("two", 1), ("three", 4)])
def test_terms_average_to_the_bound_by_enumeration_and_it_is_one(
    x64, data, num_steps, network, schedule
):
    data, keep = JOINT[data], SCHEDULES[schedule]
    denoise = data.denoise if network == "optimal" else arbitrary
    keeps = keep(np.arange(num_steps + 1) / num_steps)
    prior, diffusion = data.bound(denoise, keeps)
    terms = data.expected(denoise, keep, num_steps)
    np.testing.assert_allclose(terms["prior"], prior, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(terms["diffusion"], diffusion, rtol=1e-9)
    np.testing.assert_array_equal(terms["reconstruction"], np.zeros(len(data.p)))
    np.testing.assert_allclose(terms["total"], prior + diffusion, rtol=1e-9)
    slack = terms["total"] + data.log_likelihood(denoise, keeps)
    assert np.all(slack > -1e-12)
    if num_steps > 1:
        assert np.max(slack) > 1e-3  # a bound, and not the likelihood by chance


@pytest.mark.parametrize("num_steps", [1, 4])
def test_independent_bits_cost_their_entropy_at_any_number_of_steps(x64, num_steps):
    # The model's step is exact for them, so that only the last latent's KL is left.
    a, b = 0.13, 0.6
    data = Data(np.outer([1 - a, a], [1 - b, b]).ravel())
    total = data.p @ data.expected(data.denoise, binomial.constant_erasure, num_steps)["total"]
    np.testing.assert_allclose(total, data.entropy(), rtol=1e-10)
    excess = data.p @ data.expected(data.denoise, power, num_steps)["total"] - data.entropy()
    q_1 = data.p @ kernels(power(1.0), 2)
    np.testing.assert_allclose(excess, np.sum(q_1 * np.log(4 * q_1)), rtol=1e-8)


def test_a_thousand_steps_in_float32_cost_the_entropy():
    data = Data(np.array([0.87, 0.13]))
    total = data.p @ data.expected(data.denoise, binomial.constant_erasure, 1000)["total"]
    np.testing.assert_allclose(total, data.entropy(), rtol=2e-5)


def test_more_steps_lower_the_bound_to_the_entropy_and_its_excess_halves_as_they_double(x64):
    data, keep = JOINT["two"], binomial.constant_erasure
    excess = np.array(
        [
            data.p @ data.expected(data.denoise, keep, n)["total"] - data.entropy()
            for n in (1, 16, 32, 64)
        ]
    )
    # With one step nothing joins the bits: the bound is the sum of their entropies.
    marginals = data.p @ data.states
    alone = -np.sum(marginals * np.log(marginals) + (1 - marginals) * np.log1p(-marginals))
    np.testing.assert_allclose(excess[0], alone - data.entropy(), rtol=1e-9)
    assert np.all(excess > 0) and np.all(np.diff(excess) < 0)
    ratios = excess[1:-1] / excess[2:]
    assert np.all(np.diff(np.abs(ratios - 2)) < 0)
    np.testing.assert_allclose(ratios[-1], 2.0, rtol=0.02)


@pytest.mark.parametrize("timesteps", ["uniform", "antithetic"])
def test_elbo_is_unbiased(x64, timesteps):
    data, num_steps, n = JOINT["three"], 4, 4000
    prior, diffusion = data.bound(arbitrary, power(np.arange(5) / 4))
    images = jnp.asarray(np.tile(data.states, (n, 1)))
    terms = jax.jit(lambda key: binomial.elbo(key, images, arbitrary, power, num_steps, timesteps))(
        jax.random.key(1)
    )
    sampled = np.asarray(terms.diffusion).reshape(n, 8)
    error = sampled.mean(0) - diffusion
    assert np.all(np.abs(error) < 5 * sampled.std(0) / np.sqrt(n))
    np.testing.assert_allclose(terms.prior[:8], prior, rtol=1e-9)
    np.testing.assert_array_equal(terms.total, terms.prior + terms.diffusion)


def test_the_event_shape_and_the_type_of_the_bits_do_not_matter():
    images = np.random.default_rng(1).integers(0, 2, (6, 12))
    u, t = binomial.draw(jax.random.key(0), images.shape)

    @jax.jit
    def total(images, u):
        def denoise(z, keep):
            return z * keep.reshape(6, *[1] * (z.ndim - 1)) - 0.2

        return binomial.elbo_given(images, u, t, denoise, power, 7).total

    flat = total(images, u)
    for kind in (np.uint8, bool):
        shaped = total(images.reshape(6, 2, 2, 3).astype(kind), u.reshape(6, 2, 2, 3))
        np.testing.assert_allclose(shaped, flat, rtol=1e-6)


def test_what_is_no_bit_makes_its_own_example_nan():
    total = jax.jit(lambda v: binomial.elbo(jax.random.key(0), v, arbitrary, power, 3).total)
    np.testing.assert_array_equal(np.isnan(total(np.array([[0, 1], [2, 1], [1, 1]]))), [0, 1, 0])


# ---- gradients ----


def test_gradient_agrees_with_finite_differences_and_the_schedule_gets_none(x64):
    images = np.random.default_rng(0).integers(0, 2, (40, 3))
    u, t = binomial.draw(jax.random.key(0), images.shape)

    @jax.jit
    def total(w, end=0.8):
        def denoise(z, keep):
            return w[0] + w[1] * keep[:, None] * z + w[2] * jnp.roll(z, 1, -1)

        keep = lambda t: (1.0 - end * t) ** 2  # noqa: E731
        return jnp.sum(binomial.elbo_given(images, u, t, denoise, keep, 10).total)

    w = jnp.array([0.3, 1.1, -0.4])
    gradient, of_keep = jax.jit(jax.grad(total, (0, 1)))(w, 0.8)
    h = 1e-5
    numeric = [(total(w + h * e) - total(w - h * e)) / (2 * h) for e in np.eye(3)]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-7)
    assert of_keep == 0.0


def test_gradient_is_finite_for_networks_that_are_almost_certain():
    images = jnp.asarray(np.tile(BITS, (64, 4)))
    u, t = binomial.draw(jax.random.key(3), images.shape)

    @jax.jit
    @jax.grad
    def gradient(size):
        def denoise(z, keep):
            return size * z

        return jnp.mean(binomial.elbo_given(images, u, t, denoise, power, 50).total)

    for size in (0.0, 1.0, 90.0, 1e4):
        assert np.isfinite(gradient(size))


# ---- sampling ----


@pytest.mark.parametrize(("schedule", "num_steps"), [("erasure", 1), ("erasure", 4), ("power", 5)])
def test_samples_have_the_distribution_of_the_exact_chain(schedule, num_steps):
    keep, n = SCHEDULES[schedule], 40_000
    data = JOINT["three"]
    denoise = data.denoise if schedule == "erasure" else arbitrary
    p = np.exp(data.log_likelihood(denoise, keep(np.arange(num_steps + 1) / num_steps)))
    drawn = jax.jit(lambda key: binomial.sample(key, denoise, keep, (n, 3), num_steps))(
        jax.random.key(num_steps)
    )
    assert jnp.issubdtype(drawn.dtype, jnp.integer)
    share = np.bincount(np.asarray(drawn) @ [4, 2, 1], minlength=8) / n
    assert np.all(np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / n))


# ---- refusals ----


@pytest.mark.parametrize("num_steps", [0, -1, 2.0, True, None])
def test_num_steps_must_be_a_positive_integer(num_steps):
    images = np.zeros((2, 3), int)
    with pytest.raises(ValueError, match=r"num_steps must be an integer of at least 1, got"):
        binomial.elbo(jax.random.key(0), images, arbitrary, power, num_steps)
    with pytest.raises(ValueError, match=r"num_steps must be an integer of at least 1, got"):
        binomial.sample(jax.random.key(0), arbitrary, power, (2, 3), num_steps)


def test_a_schedule_that_does_not_start_at_the_data_is_refused_also_when_compiled():
    images, keep = np.zeros((2, 3), int), lambda t: 0.99 - t
    key = jax.random.key(0)
    for call in (
        lambda: binomial.elbo(key, images, arbitrary, keep, 3),
        lambda: jax.jit(lambda k: binomial.elbo(k, images, arbitrary, keep, 3).total)(key),
        lambda: jax.jit(lambda k: binomial.sample(k, arbitrary, keep, (2, 3), 3))(key),
    ):
        with pytest.raises(
            ValueError, match=r"keep\(0\) must be 1 \(z_0 is the data\), got \[0.99"
        ):
            call()


def test_wrong_shapes_are_refused_by_name():
    images, u, t = np.zeros((2, 3), int), np.zeros((2, 3)), np.zeros(2)
    diffusion = functools.partial(binomial.diffusion, denoise=arbitrary, keep=power, num_steps=3)
    with pytest.raises(ValueError, match=r"images \(2, 3\) and u \(3,\) differ in shape"):
        diffusion(images, u[0], t)
    with pytest.raises(
        ValueError, match=r"t must be \[2\], one time per example, got shape \(3,\)"
    ):
        diffusion(images, u, np.zeros(3))
    with pytest.raises(ValueError, match=r"x_hat has shape \(2,\), but z_t has \(2, 3\)"):
        binomial.diffusion(images, u, t, lambda z, k: z[:, 0], power, 3)
    with pytest.raises(ValueError, match=r"keep must map \(2,\) to \(2,\), but returned \(1,\)"):
        binomial.diffusion(images, u, t, arbitrary, lambda t: 1 - t[:1], 3)
    with pytest.raises(ValueError, match=r"keep_t of shape \(3,\) does not go with .* \(2, 3\)"):
        binomial.marginal(images, np.full(3, 0.5))
