import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Mixture, alpha_sigma, kl_exact, posterior_exact
from scipy import stats

from vdm_jax import process, schedule
from vdm_jax.gaussian import Gaussian

SHAPES = [(4, 5), (4, 3, 3, 1), (4, 2, 3, 3)]


def normal(seed: int, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def close(left: Gaussian, right: Gaussian, rtol: float = 1e-12) -> None:
    chex.assert_trees_all_close(left, right, rtol=rtol)


def then(first: Gaussian, gain: jax.Array, var: jax.Array) -> Gaussian:
    """The distribution of gain z + sqrt(var) eps for z ~ first."""
    return Gaussian(gain * first.mean, gain**2 * first.var + var)


@pytest.mark.parametrize(("gamma_s", "gamma_t"), [(-13.3, 5.0), (-2.0, -1.9), (3.0, 20.0)])
def test_marginal_then_transition_is_the_later_marginal(x64, gamma_s, gamma_t):
    x = normal(0, (4, 5))
    q_s, q_t = process.marginal(x, gamma_s), process.marginal(x, gamma_t)
    step = process.transition(jnp.ones((1, 1)), gamma_s, gamma_t)
    close(then(q_s, step.mean, step.var), q_t)


def test_two_transitions_are_one(x64):
    one = jnp.ones((1, 1))
    for s, u, t in [(-13.3, -4.0, 5.0), (-1.0, -0.999, -0.998), (0.0, 10.0, 20.0)]:
        first, second = process.transition(one, s, u), process.transition(one, u, t)
        close(then(first, second.mean, second.var), process.transition(one, s, t), rtol=1e-11)


@pytest.mark.parametrize(
    ("gamma_s", "gamma_t"), [(-13.3, 5.0), (-7.0, -6.9), (0.5, 2.0), (-20.0, 20.0)]
)
def test_posterior_is_bayes_rule(x64, gamma_s, gamma_t):
    x, z_s, z_t = normal(0, (6, 4)), 3 * normal(1, (6, 4)), 3 * normal(2, (6, 4))
    bayes = (
        process.transition(z_s, gamma_s, gamma_t).log_prob(z_t)
        + process.marginal(x, gamma_s).log_prob(z_s)
        - process.marginal(x, gamma_t).log_prob(z_t)
    )
    direct = process.posterior(z_t, x, gamma_s, gamma_t).log_prob(z_s)
    # Relative to the largest of the four terms, some 1e9 at gamma_s = -20.
    scale = np.max(np.abs(process.marginal(x, gamma_s).log_prob(z_s)))
    np.testing.assert_allclose(bayes, direct, rtol=1e-9, atol=1e-12 * scale)


number = st.floats(-3.0, 3.0)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(z_t=number, x=number, gamma_s=st.floats(-20.0, 15.0), log_step=st.floats(-12.0, 3.0))
def test_posterior_is_the_product_of_three_gaussians_in_exact_arithmetic(z_t, x, gamma_s, log_step):
    gamma_t = gamma_s + np.exp(log_step)
    expected, expected_var = posterior_exact(z_t, x, gamma_s, gamma_t)
    with jax.enable_x64(True):
        q = process.posterior(jnp.full((1, 1), z_t), jnp.full((1, 1), x), gamma_s, gamma_t)
    # The step's digits are those that gamma_t - gamma_s has left.
    rtol = 1e-13 + 1e-14 / (gamma_t - gamma_s)
    np.testing.assert_allclose(q.var, [[expected_var]], rtol=rtol)
    atol = 1e-300 + 1e-12 * (abs(x) + abs(z_t))
    np.testing.assert_allclose(q.mean, [[expected]], rtol=1e-12, atol=atol)


def test_posterior_averaged_over_the_later_latent_is_the_earlier_marginal(x64):
    x = normal(0, (3, 2))
    for gamma_s, gamma_t in [(-13.3, 5.0), (-3.0, -2.99)]:
        zero, one = jnp.zeros_like(x), jnp.ones_like(x)
        offset = process.posterior(zero, x, gamma_s, gamma_t)
        gain = process.posterior(one, x, gamma_s, gamma_t).mean - offset.mean
        q_t = process.marginal(x, gamma_t)
        mean, var = gain * q_t.mean + offset.mean, gain**2 * q_t.var + offset.var
        close(Gaussian(mean, var), _full(process.marginal(x, gamma_s)), rtol=1e-9)


def _full(g: Gaussian) -> Gaussian:
    return Gaussian(g.mean, jnp.broadcast_to(g.var, g.mean.shape))


def test_posterior_has_the_mean_and_variance_the_paper_writes(x64):
    x, z_t = normal(0, (3, 2)), normal(1, (3, 2))
    s, t = -2.0, 1.5
    a_s, a_t = 1 / (1 + np.exp(s)), 1 / (1 + np.exp(t))  # squared
    step = a_t / a_s
    step_var = (1 - a_t) - step * (1 - a_s)
    mean = (np.sqrt(step) * (1 - a_s) * z_t + np.sqrt(a_s) * step_var * x) / (1 - a_t)
    q = process.posterior(z_t, x, s, t)
    np.testing.assert_allclose(q.mean, mean, rtol=1e-13)
    np.testing.assert_allclose(q.var, np.full((1, 1), step_var * (1 - a_s) / (1 - a_t)), rtol=1e-13)


def test_reverse_step_in_terms_of_the_noise_is_the_papers_ancestral_sampler(x64):
    # z_s = alpha_s/alpha_t (z_t - sigma_t c eps_hat) + sqrt((1 - alpha_s^2) c) eps.
    z_t, eps_hat = normal(0, (3, 2)), normal(1, (3, 2))
    s, t = -4.0, -3.0
    alpha_s, alpha_t = (1 + np.exp(s)) ** -0.5, (1 + np.exp(t)) ** -0.5
    sigma_t, c = np.sqrt(1 - alpha_t**2), -np.expm1(s - t)
    p = process.reverse(z_t, (z_t - sigma_t * eps_hat) / alpha_t, s, t)
    np.testing.assert_allclose(
        p.mean, alpha_s / alpha_t * (z_t - sigma_t * c * eps_hat), rtol=1e-11, atol=1e-13
    )
    np.testing.assert_allclose(p.var, [[(1 - alpha_s**2) * c]], rtol=1e-12)


def test_reverse_with_the_true_data_is_the_posterior():
    x, z_t = normal(0, (4, 2, 3, 3)), normal(1, (4, 2, 3, 3))
    chex.assert_trees_all_equal(
        process.reverse(z_t, x, -3.0, 1.0), process.posterior(z_t, x, -3.0, 1.0)
    )


@pytest.mark.parametrize(("low", "high", "step"), [(-13.3, 5.0, 0.0183), (-20.0, 20.0, 2.0)])
def test_float32_has_the_relative_accuracy_of_its_inputs(low, high, step):
    gamma_s = np.arange(low, high - step, step).astype(np.float32)
    gamma_t = np.float32(gamma_s + np.float32(step))
    ones, zeros = np.ones((len(gamma_s), 1), np.float32), np.zeros((len(gamma_s), 1), np.float32)

    def coefficients(kind):
        one, zero, s, t = (jnp.asarray(v, kind) for v in (ones, zeros, gamma_s, gamma_t))
        of_latent, of_data = process.posterior(one, zero, s, t), process.posterior(zero, one, s, t)
        forward, marginal = process.transition(one, s, t), process.marginal(one, t)
        return [of_latent.mean, of_data.mean, of_data.var, *forward, *marginal]

    single = [np.asarray(c) for c in coefficients(jnp.float32)]
    with jax.enable_x64(True):
        double = [np.asarray(c) for c in coefficients(jnp.float64)]
    for s, d in zip(single, double, strict=True):
        assert s.dtype == np.float32
        assert d.dtype == np.float64
        np.testing.assert_allclose(s, d, rtol=5e-6)


def test_a_vanishing_step_stays_where_it_is(x64):
    x, z = normal(0, (3, 2)), normal(1, (3, 2))
    gamma, sigma2 = 0.7, 1 / (1 + np.exp(-0.7))
    still = process.posterior(z, x, gamma, gamma)
    np.testing.assert_allclose(still.mean, z, rtol=1e-15)
    np.testing.assert_array_equal(still.var, [[0.0]])
    h = 1e-7
    for step in (
        process.posterior(z, x, gamma - h, gamma),
        process.transition(z, gamma - h, gamma),
    ):
        np.testing.assert_allclose(step.mean, z, atol=1e-6)
        # Either way the variance grows as sigma^2 dgamma.
        np.testing.assert_allclose(step.var / h, [[sigma2]], rtol=1e-6)


def test_a_step_down_to_no_noise_is_the_data_and_one_from_pure_noise_forgets_the_latent(x64):
    x, z = normal(0, (3, 2)), normal(1, (3, 2))
    clean = process.posterior(z, x, -60.0, 1.0)
    np.testing.assert_allclose(clean.mean, x, rtol=1e-10)
    np.testing.assert_allclose(clean.var, [[np.exp(-60.0)]], rtol=1e-10)
    forgetful = process.posterior(z, x, -1.0, 80.0)
    chex.assert_trees_all_close(forgetful, process.marginal(x, -1.0), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("gamma", [-1000.0, -20.0, 20.0, 1000.0])
def test_extreme_gammas_give_finite_float32(gamma):
    x, z = normal(0, (3, 2)), normal(1, (3, 2))
    for g in (
        process.marginal(x, gamma),
        process.posterior(z, x, gamma, gamma + 50),
        process.transition(z, gamma - 50, gamma),
    ):
        chex.assert_tree_all_finite(g)


@pytest.mark.parametrize("shape", SHAPES)
def test_scalar_per_example_and_per_element_gammas_agree(shape):
    x, z = normal(0, shape), normal(1, shape)
    gamma_s, gamma_t = jnp.array([-9.0, -3.0, 0.0, 2.0]), jnp.array([-8.0, 3.0, 0.1, 9.0])

    def all_four(x, z, s, t):
        return (
            process.marginal(x, t),
            process.transition(z, s, t),
            process.posterior(z, x, s, t),
            process.reverse(z, x, s, t),
        )

    def full(x, z, s, t):
        return [_full(g) for g in all_four(x, z, s, t)]

    compiled = jax.jit(full)
    batched = full(x, z, gamma_s, gamma_t)
    spread = [np.broadcast_to(process.expand(g, x), shape) for g in (gamma_s, gamma_t)]
    chex.assert_trees_all_close(compiled(x, z, *spread), batched, rtol=1e-6)
    for i in range(4):
        one = compiled(x[i : i + 1], z[i : i + 1], gamma_s[i], gamma_t[i])
        picked = jax.tree.map(lambda a, i=i: a[i : i + 1], batched)
        chex.assert_trees_all_close(one, picked, rtol=1e-6)
    mapped = jax.jit(jax.vmap(all_four))(x, z, gamma_s, gamma_t)
    chex.assert_trees_all_close([_full(g) for g in mapped], batched, rtol=1e-6)
    chex.assert_trees_all_close(compiled(x, z, gamma_s, gamma_t), batched, rtol=1e-6)


def test_gammas_may_differ_within_an_example():
    x = jnp.ones((2, 3))
    gamma = jnp.array([[-3.0, 0.0, 3.0], [1.0, 2.0, -8.0]])
    np.testing.assert_allclose(process.marginal(x, gamma).var, jax.nn.sigmoid(gamma))


def test_expand_lines_gamma_up_with_the_leading_axes():
    like = jnp.zeros((4, 2, 3))
    chex.assert_shape(process.expand(1.0, like), (1, 1, 1))
    chex.assert_shape(process.expand(jnp.zeros(4), like), (4, 1, 1))
    chex.assert_shape(process.expand(jnp.zeros((1, 2)), like), (1, 2, 1))
    chex.assert_shape(process.expand(jnp.zeros((4, 2, 3)), like), (4, 2, 3))


@pytest.mark.parametrize("shape", [(3,), (4, 3), (4, 2, 3, 1), (2, 3)])
def test_a_gamma_that_fits_no_axis_is_refused(shape):
    with pytest.raises(ValueError, match=r"gamma of shape .* does not go with .*wanted a scalar"):
        process.marginal(jnp.zeros((4, 2, 3)), jnp.zeros(shape))


def test_gradients_with_respect_to_both_gammas_agree_with_finite_differences(x64):
    x, z = normal(0, (2, 2)), normal(1, (2, 2))

    def value(gammas):
        q = process.posterior(z, x, gammas[0], gammas[1])
        forward = process.transition(z, gammas[0], gammas[1])
        return q.log_prob(0.3 * x).sum() + forward.log_prob(0.2 * z).sum()

    gammas = jnp.array([-2.0, 1.0])
    h = 1e-6
    numeric = [(value(gammas + row) - value(gammas - row)) / (2 * h) for row in h * np.eye(2)]
    np.testing.assert_allclose(jax.grad(value)(gammas), numeric, rtol=1e-7)


# ---- the forward chain ----

CHAINS = {
    "linear, 20 steps": schedule.linear(-13.3, 5.0)(np.linspace(0.0, 1.0, 21)),
    "cosine, 100 steps": schedule.cosine(-13.3, 5.0)(np.linspace(0.0, 1.0, 101)),
    "DDPM": schedule.from_betas(schedule.ddpm_betas())(np.linspace(0.0, 1.0, 1000)),
    "Nichol & Dhariwal, 50 betas": schedule.from_betas(schedule.cosine_betas(50))(
        np.linspace(0.0, 1.0, 50)
    ),
    "one step": np.array([-6.0, 3.0]),
}


def two_sided(key: jax.Array, n: int) -> jax.Array:
    """Far from Gaussian: a quarter of the draws at -1, the others exponential."""
    at_minus_one, draws = jax.random.split(key)
    x = jnp.where(
        jax.random.bernoulli(at_minus_one, 0.25, (n,)), -1.0, jax.random.exponential(draws, (n,))
    )
    return x[:, None]


@pytest.mark.parametrize("name", CHAINS)
def test_single_steps_have_the_moments_of_the_jump_and_of_their_pairs(name):
    gammas, n, x = np.asarray(CHAINS[name], np.float64), 10_000, np.array([0.7, -1.1, 0.0])
    kept = np.unique(np.linspace(0, len(gammas) - 1, 11).astype(int))
    start = jnp.broadcast_to(jnp.asarray(x, jnp.float32), (n, 3))
    z = np.asarray(process.simulate(jax.random.key(0), start, gammas)[kept], np.float64)
    alpha, sigma = (c[kept][:, None] for c in alpha_sigma(gammas))
    assert np.all(abs(z.mean(1) - alpha * x) < 5 * sigma / np.sqrt(n))
    noise = z - alpha[:, None] * x
    assert np.all(abs(np.mean(noise**2, 1) / sigma**2 - 1) < 5 * np.sqrt(2 / n))
    # Cov(z_s, z_t) = (alpha_t / alpha_s) sigma_s^2: one trajectory, not a draw for each time.
    covariance = np.mean(noise[:-1] * noise[1:], 1)
    expected = alpha[1:] / alpha[:-1] * sigma[:-1] ** 2
    error = np.sqrt((sigma[:-1] ** 2 * sigma[1:] ** 2 + expected**2) / n)
    assert np.all(abs(covariance - expected) < 5 * error)


@pytest.mark.parametrize("name", CHAINS)
def test_single_steps_and_the_jump_by_alpha_bar_have_one_distribution(name):
    gammas, n = np.asarray(CHAINS[name]), 20_000
    chain = process.simulate(jax.random.key(0), two_sided(jax.random.key(1), n), gammas)
    other = two_sided(jax.random.key(2), n)
    for i in np.unique([len(gammas) // 2, 3 * len(gammas) // 4, len(gammas) - 1]):
        jump = process.marginal(other, gammas[i]).sample(jax.random.key(3 + i))
        assert stats.ks_2samp(np.ravel(chain[i]), np.ravel(jump)).pvalue > 1e-6
        # The test would tell: a fifth less noise is another distribution.
        alpha, sigma = alpha_sigma(gammas[i])
        less = alpha * other + 0.8 * (jump - alpha * other)
        if sigma**2 > 0.9:
            assert stats.ks_2samp(np.ravel(chain[i]), np.ravel(less)).pvalue < 1e-6


@pytest.mark.parametrize(("mean", "var"), [(0.0, 1e-6), (3.0, 0.2), (-0.5, 40.0), (10.0, 1.0)])
@pytest.mark.parametrize("name", ["linear, 20 steps", "DDPM"])
def test_gaussian_data_converge_to_the_standard_normal_by_the_kl_of_each_step(x64, mean, var, name):
    gammas = np.append(np.asarray(CHAINS[name], np.float64), [8.0, 12.0, 20.0])
    gammas = np.unique(gammas)
    data = Gaussian(jnp.full((len(gammas), 1), mean), var)
    kl = process.marginal_of_gaussian(data, gammas).kl(Gaussian(0.0, 1.0))[:, 0]
    alpha, sigma = alpha_sigma(gammas)
    expected = [
        kl_exact(a * mean, a**2 * var + s**2, 0.0, 1.0) for a, s in zip(alpha, sigma, strict=True)
    ]
    np.testing.assert_allclose(kl, expected, rtol=1e-6, atol=1e-15)
    assert np.all(np.diff(kl) < 0.0)
    # The mean is what is left at the end: KL -> exp(-gamma) m^2 / 2.
    np.testing.assert_allclose(kl[-1], 0.5 * np.exp(-20.0) * mean**2, rtol=1e-5, atol=1e-12)


def test_any_start_converges_to_the_standard_normal_and_never_turns_back(x64):
    """KL(q(z_t) || N(0, 1)) of starts with two, far and narrow humps, by quadrature."""
    starts = [
        Mixture(np.array([0.5, 0.5]), np.array([[-1.0], [1.0]]), np.array([1e-2, 1e-2])),
        Mixture(np.array([0.9, 0.1]), np.array([[-4.0], [5.0]]), np.array([0.3, 9.0])),
    ]
    gammas = np.append(np.linspace(-4.0, 5.0, 19), [8.0, 12.0, 20.0])
    z = np.linspace(-20.0, 20.0, 8001)
    for start in starts:
        log_q = jax.jit(
            jax.vmap(jax.vmap(start.log_prob, (0, None)), (None, 0))  # [gammas, z]
        )(jnp.asarray(z)[:, None], jnp.asarray(gammas))
        integrand = np.exp(log_q) * (log_q - stats.norm.logpdf(z))
        kl = np.sum(integrand, axis=1) * (z[1] - z[0])
        assert np.all(np.diff(kl) < 0.0)
        second = start.weights @ (start.means[:, 0] ** 2 + start.var)
        # At most what q(z_t|x) is away on average, by convexity: the prior term of the bound.
        prior = 0.5 * (jax.nn.sigmoid(-gammas) * (second - 1.0) - jax.nn.log_sigmoid(gammas))
        assert np.all(kl < prior)
        assert kl[-1] < 1e-7 < 1e-2 < kl[0]


def test_a_chain_of_one_latent_is_the_marginal_and_tables_are_wanted():
    x = normal(0, (5, 2, 3))
    alone = process.simulate(jax.random.key(0), x, [-3.0])
    assert alone.shape == (1, 5, 2, 3)
    still = process.simulate(jax.random.key(0), x, [-1.0, -1.0, -1.0])
    chex.assert_trees_all_close(still[1:], still[:-1], rtol=1e-6)
    for gammas in (-3.0, [], [[-3.0, 0.0]]):
        with pytest.raises(ValueError, match=r"gammas must be \[num\], at least one, got shape"):
            process.simulate(jax.random.key(0), x, gammas)
