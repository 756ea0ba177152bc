"""Samplers against exact denoisers: convergence orders, closed forms, and what must not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import affine_chain, alpha_sigma

from vdm_jax import flow, parameterization, process, sampler, schedule, solvers, spacing
from vdm_jax.related.mixture import Mixture

DETERMINISTIC = ("ddim", "dpm_solver", "heun")
ORDER = {"ddim": 1, "dpm_solver": 2, "heun": 2}
MEAN, VAR = 0.4, 0.3
ENDS = -5.0, 4.0
LINEAR = schedule.linear(*ENDS)


def optimal(z, gamma_t):
    """E[x|z_t] for independent x ~ N(MEAN, VAR), elementwise."""
    g = process.expand(gamma_t, z)
    alpha = jnp.sqrt(jax.nn.sigmoid(-g))
    gain = alpha * VAR / (VAR * alpha**2 + jax.nn.sigmoid(g))
    return MEAN + gain * (z - alpha * MEAN)


def flow_of_gaussian(z_1, gamma_0=ENDS[0], gamma_1=ENDS[1]):
    """The exact flow: z stays as many standard deviations of q(z_t) from its mean."""
    (alpha_0, sigma_0), (alpha_1, sigma_1) = alpha_sigma(gamma_0), alpha_sigma(gamma_1)
    ratio = np.sqrt((alpha_0**2 * VAR + sigma_0**2) / (alpha_1**2 * VAR + sigma_1**2))
    return alpha_0 * MEAN + ratio * (np.asarray(z_1) - alpha_1 * MEAN)


def mixture() -> Mixture:
    return Mixture.of(
        np.array([0.5, 0.3, 0.2]),
        np.array([[1.0, 0.2], [-0.8, 0.5], [0.1, -0.9]]),
        np.full(3, 0.05),
    )


def in_kind(kind, denoise):
    """The denoiser of kind x as one of another kind."""
    to = getattr(parameterization, f"to_{kind}")
    return lambda z, g: to(denoise(z, g), z, g, "x")


def latents(n=32, event=(2,), seed=0):
    return jax.random.normal(jax.random.key(seed), (n, *event))


def orders(errors) -> np.ndarray:
    return -np.diff(np.log2(errors))


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


# ---- convergence ----


@pytest.mark.parametrize("spaced", spacing.SPACINGS)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_error_against_the_flow_of_gaussian_data_has_the_order_of_the_method(x64, name, spaced):
    z_1 = latents()
    exact = flow_of_gaussian(z_1)
    errors = [
        rms(solvers.solve(z_1, optimal, spacing.table(LINEAR, n, spaced), name, "x") - exact)
        # "angle" has the longest steps at its ends, and comes to its order later.
        for n in ((1024, 2048, 4096) if spaced == "angle" else (128, 256, 512))
    ]
    np.testing.assert_allclose(orders(errors), ORDER[name], atol=0.08)
    assert errors[-1] > 1e-9  # far above rounding


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_error_against_the_flow_of_a_mixture_has_the_order_of_the_method(x64, name):
    data, z_1 = mixture(), latents()
    exact = flow.sample(z_1, data.posterior_mean, *ENDS, "x", rtol=1e-9, atol=1e-9).z_0
    errors = [
        rms(solvers.solve(z_1, data.posterior_mean, LINEAR(t), name, "x") - exact)
        for t in (np.linspace(1, 0, n + 1) for n in (128, 256, 512))
    ]
    np.testing.assert_allclose(orders(errors), ORDER[name], atol=0.1)


def test_second_order_methods_beat_ddim_at_equal_calls_of_the_network(x64):
    data, z_1 = mixture(), latents()
    exact = flow.sample(z_1, data.posterior_mean, *ENDS, "x", rtol=1e-9, atol=1e-9).z_0
    error = {
        name: rms(
            solvers.solve(z_1, data.posterior_mean, spacing.table(LINEAR, n, "karras"), name, "x")
            - exact
        )
        for name, n in (("ddim", 24), ("dpm_solver", 24), ("heun", 12))
    }
    assert solvers.network_calls("heun", 12) == solvers.network_calls("ddim", 24) == 24
    assert error["dpm_solver"] < 0.2 * error["ddim"] and error["heun"] < 0.6 * error["ddim"]


def test_uneven_steps_of_any_sizes_reach_the_same_limit(x64):
    # Steps up to three times as long as their neighbours, drawn at random.
    z_1 = latents()
    widths = np.random.default_rng(0).uniform(0.5, 1.5, 600)
    gammas = ENDS[1] - (ENDS[1] - ENDS[0]) * np.append(0.0, np.cumsum(widths)) / widths.sum()
    exact = flow_of_gaussian(z_1, gammas[-1], gammas[0])
    for name, most in (("ddim", 5e-3), ("dpm_solver", 5e-5), ("heun", 5e-5)):
        assert rms(solvers.solve(z_1, optimal, gammas, name, "x") - exact) < most, name


# ---- single steps ----


def test_ddim_step_of_known_data_stays_on_its_way_exactly(x64):
    # z = alpha x + sigma eps with one x and one eps, whatever the length of the step.
    x, eps = latents(seed=1), latents(seed=2)
    z = [a * x + s * eps for a, s in (alpha_sigma(4.0), alpha_sigma(-7.0))]
    np.testing.assert_allclose(solvers.bridge(z[0], x, -7.0, 4.0).mean, z[1], rtol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_bridge_keeps_the_marginal_of_the_process_for_every_eta(x64, eta):
    # q(z_s|x) from q(z_t|x): means and variances of an affine map, exactly.
    x = jnp.full((1, 1), 0.7)
    for gamma_s, gamma_t in ((-9.0, 3.0), (0.5, 0.6), (-3.0, 8.0)):
        alpha_t, sigma_t = alpha_sigma(gamma_t)
        at = [solvers.bridge(jnp.full((1, 1), z), x, gamma_s, gamma_t, eta) for z in (0.0, 1.0)]
        gain = at[1].mean - at[0].mean
        q = process.marginal(x, gamma_s)
        np.testing.assert_allclose(at[0].mean + gain * alpha_t * 0.7, q.mean, rtol=1e-11)
        np.testing.assert_allclose(gain**2 * sigma_t**2 + at[0].var, q.var, rtol=1e-11)
        posterior = process.posterior(x, x, gamma_s, gamma_t)
        np.testing.assert_allclose(at[0].var, eta**2 * posterior.var, rtol=1e-12)


def test_ddim_with_eta_one_is_the_ancestral_step(x64):
    z, eps = latents(), latents(seed=3)
    for gamma_s, gamma_t in ((-9.0, 3.0), (1.0, 1.001), (-5.0, -4.0)):
        state = solvers.start(z, gamma_t)
        one = solvers.step(state, eps, optimal, gamma_s, gamma_t, "ddim", "x", eta=1.0).z
        other = sampler.ancestral_step(z, eps, optimal, gamma_s, gamma_t, "x")
        np.testing.assert_allclose(one, other, rtol=1e-10)
        same = solvers.step(state, eps, optimal, gamma_s, gamma_t, "ancestral", "x").z
        np.testing.assert_array_equal(same, other)


def test_small_steps_keep_their_digits_in_float32():
    # What x adds over a step of 1e-4 at gamma = -13, where alpha_s and what is taken off agree to
    # five digits.
    x, z = jnp.ones((1, 1)), jnp.zeros((1, 1))
    found = float(solvers.bridge(z, x, -13.0001, -13.0).mean[0, 0])
    h = 0.5 * (float(np.float32(-13.0)) - float(np.float32(-13.0001)))
    np.testing.assert_allclose(found, -np.expm1(-h), rtol=1e-5)


def test_dpm_solver_is_exact_where_the_prediction_is_linear_in_lambda_to_second_order(x64):
    # x_hat = a + b lambda: z / sigma = int x_hat d(alpha / sigma), of which the line through the
    # last two predictions half a step ahead leaves the third power of the step.
    def denoise(z, gamma_t):
        return jnp.broadcast_to(process.expand(0.7 - 0.4 * (-gamma_t / 2), z), z.shape)

    def exact(lam_t, lam_s, z, sigma_t, sigma_s):
        def inner(lam):  # int e^l (0.7 - 0.4 l) dl
            return np.exp(lam) * (0.7 - 0.4 * (lam - 1.0))

        return sigma_s * (z / sigma_t + inner(lam_s) - inner(lam_t))

    errors = []
    for h in (0.2, 0.1, 0.05):
        gamma_t, gamma_s = 1.0, 1.0 - 2 * h
        before = solvers.State(
            jnp.ones((1, 1)), denoise(jnp.ones((1, 1)), 1.0 + 2 * h), 1.0 + 2 * h
        )
        z_s = solvers.step(before, None, denoise, gamma_s, gamma_t, "dpm_solver", "x").z
        (_, sigma_t), (_, sigma_s) = alpha_sigma(gamma_t), alpha_sigma(gamma_s)
        truth = exact(-gamma_t / 2, -gamma_s / 2, 1.0, sigma_t, sigma_s)
        errors.append(abs(float(z_s[0, 0]) - truth))
    np.testing.assert_allclose(orders(errors), 3.0, atol=0.1)


@pytest.mark.parametrize("name", ["dpm_solver", "ddim"])
def test_one_step_is_ddim_s_and_of_dpm_solver_so_are_the_first_and_the_last(x64, name):
    z_1 = latents()
    alpha, sigma = alpha_sigma(4.0)
    x_1 = np.asarray(optimal(z_1, 4.0))
    for gamma_0 in (-6.0, 3.0):
        alpha_0, sigma_0 = alpha_sigma(gamma_0)
        by_hand = alpha_0 * x_1 + sigma_0 * (np.asarray(z_1) - alpha * x_1) / sigma
        z_0 = solvers.solve(z_1, optimal, jnp.array([4.0, gamma_0]), name, "x")
        np.testing.assert_allclose(z_0, by_hand, rtol=1e-10)
    two = jnp.array([4.0, 0.0, -5.0])
    np.testing.assert_allclose(  # two programs: the last bit is the compiler's
        solvers.solve(z_1, optimal, two, name, "x"), solvers.solve(z_1, optimal, two, "ddim", "x"),
        rtol=1e-14, atol=4e-16,
    )  # fmt: skip
    three = jnp.array([4.0, 1.0, -2.0, -5.0])
    other = solvers.solve(z_1, optimal, three, "ddim", "x")
    assert (rms(solvers.solve(z_1, optimal, three, name, "x") - other) > 1e-3) == (name != "ddim")


# ---- distributions ----


@pytest.mark.parametrize("num_steps", [1, 3, 12])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_samples_of_gaussian_data_have_the_moments_of_their_chain(x64, eta, num_steps):
    gammas = spacing.table(LINEAR, num_steps, "karras")
    t, s = np.asarray(gammas[:-1]), np.asarray(gammas[1:])
    (alpha_s, sigma_s), (alpha_t, sigma_t) = alpha_sigma(s), alpha_sigma(t)
    # z_s = alpha_s x_hat + sqrt(sigma_s^2 - v) eps_hat + sqrt(v) eps, by the paper.
    step_var = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
    v = eta**2 * step_var * sigma_s**2 / sigma_t**2
    of_eps = np.sqrt(sigma_s**2 - v) / sigma_t
    of_x = alpha_s - of_eps * alpha_t
    gain = alpha_t * VAR / (VAR * alpha_t**2 + sigma_t**2)
    mean, var = affine_chain(of_eps + of_x * gain, of_x * (1 - gain * alpha_t) * MEAN, v)
    z_0 = solvers.sample(
        jax.random.key(num_steps), optimal, gammas, (4000, 3), "ddim", "x", eta=eta
    )
    n = z_0.size
    assert abs(float(z_0.mean()) - mean) < 4 * np.sqrt(var / n)
    assert abs(float(z_0.var()) / var - 1) < 4 * np.sqrt(2 / n)


def test_ancestral_samples_of_one_table_have_the_moments_of_ancestral(x64):
    one = solvers.sample(jax.random.key(0), optimal, LINEAR(jnp.linspace(1, 0, 9)), (6000, 2),
                         "ancestral", "x")  # fmt: skip
    other = sampler.ancestral(jax.random.key(1), optimal, LINEAR, (6000, 2), 8, "x")
    assert abs(float(one.mean() - other.mean())) < 4 * float(one.std()) * np.sqrt(2 / one.size)
    assert abs(float(one.var() / other.var()) - 1) < 4 * np.sqrt(4 / one.size)


# ---- what must not matter ----


@pytest.mark.parametrize("kind", parameterization.KINDS)
@pytest.mark.parametrize("name", solvers.SAMPLERS)
def test_one_denoiser_in_four_kinds_makes_one_sample(x64, name, kind):
    data, gammas = mixture(), spacing.table(LINEAR, 5, "karras")

    def draw(kind):
        denoise = in_kind(kind, data.posterior_mean)
        return solvers.sample(jax.random.key(0), denoise, gammas, (3, 2), name, kind)

    np.testing.assert_allclose(draw(kind), draw("x"), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_of_a_learned_variance_the_deterministic_samplers_take_the_prediction(x64, name):
    gammas = spacing.table(LINEAR, 4, "time")

    def draw(denoise, reverse_var):
        return solvers.sample(jax.random.key(0), denoise, gammas, (3, 2), name, "x", reverse_var)

    def with_share(z, g):
        return optimal(z, g), jnp.full_like(z, 0.3)

    np.testing.assert_array_equal(draw(with_share, "learned"), draw(optimal, "posterior"))
    with pytest.raises(ValueError, match="a denoiser returns its prediction alone"):
        draw(with_share, "posterior")


@pytest.mark.parametrize("name", solvers.SAMPLERS)
def test_a_sample_is_that_of_its_own_key_whatever_the_batch_jitted_or_not(dtype, name):
    gammas = spacing.table(LINEAR, 4, "gamma")

    def draw(key, batch):
        return solvers.sample(key, optimal, gammas, (batch, 2, 3, 1), name, "x")

    six = draw(jax.random.key(0), 6)
    assert six.dtype == dtype
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(six[:2], draw(jax.random.key(0), 2), **close)
    np.testing.assert_allclose(six, jax.jit(draw, static_argnums=1)(jax.random.key(0), 6), **close)
    both = jax.vmap(lambda key: draw(key, 6))(jax.random.split(jax.random.key(1)))
    np.testing.assert_allclose(both[1], draw(jax.random.split(jax.random.key(1))[1], 6), **close)
    assert np.abs(np.corrcoef(six.reshape(6, -1)) - np.eye(6)).max() < 0.999  # no two alike


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_gradient_in_the_data_s_mean_is_that_of_finite_differences(x64, name):
    gammas, z_1 = spacing.table(LINEAR, 6, "karras"), latents(4)

    def value(shift):
        z_0 = solvers.solve(z_1, lambda z, g: jnp.sin(optimal(z, g) + shift), gammas, name, "x")
        return jnp.sum(z_0**2)

    numeric = (value(0.3 + 1e-5) - value(0.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(value)(0.3), numeric, rtol=1e-7)


@pytest.mark.parametrize("name", solvers.SAMPLERS)
def test_a_loop_over_steps_is_the_scan_and_the_network_is_called_as_often_as_said(x64, name):
    gammas, seen = spacing.table(LINEAR, 5, "karras"), []

    def denoise(z, gamma_t):
        seen.append(float(gamma_t[0]))
        return optimal(z, gamma_t)

    keys = jax.random.split(jax.random.key(0), 3)
    z_1 = solvers.initial(keys, (2,), float)
    state = solvers.start(z_1, gammas[0])
    for i in range(5):
        eps, last = solvers.noise(keys, i, (2,), float), i == 4
        state = solvers.step(state, eps, denoise, gammas[i + 1], gammas[i], name, "x", last=last)
    assert len(seen) == solvers.network_calls(name, 5) == (10 if name == "heun" else 5)
    assert max(seen) == ENDS[1] and min(seen) == (ENDS[0] if name == "heun" else float(gammas[-2]))
    z_0 = solvers.solve(z_1, optimal, gammas, name, "x", keys=keys)
    np.testing.assert_allclose(state.z, z_0, rtol=1e-10)


# ---- spacings ----


def test_tables_are_uniform_in_what_their_name_says_with_the_schedule_s_ends(dtype):
    gamma = schedule.cosine(-8.0, 5.0)
    coordinate = {
        "gamma": lambda g: g,
        "karras": lambda g: np.exp(g / 2) ** (1 / 7),
        "angle": lambda g: np.arctan(np.exp(g / 2)),
    }
    ends = gamma(jnp.array([1.0, 0.0]))
    for name in spacing.SPACINGS:
        table = spacing.table(gamma, 9, name)
        assert table.dtype == dtype and np.all(np.diff(table) < 0)
        np.testing.assert_array_equal(table[jnp.array([0, -1])], ends)
        if name == "time":
            np.testing.assert_array_equal(table, gamma(jnp.linspace(1.0, 0.0, 10)))
        else:
            widths = np.diff(coordinate[name](np.asarray(table, np.float64)))
            np.testing.assert_allclose(widths, widths.mean(), rtol=2e-4)
    np.testing.assert_array_equal(spacing.table(gamma, 1, "angle"), ends)


# ---- refusals ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "euler"}, "sampler must be one of ancestral, ddim, dpm_solver, heun, got"),
        ({"sampler": "ddim", "eta": 1.5}, r"eta must be a number in \[0, 1\], got 1.5"),
        ({"sampler": "ddim", "eta": float("nan")}, r"eta must be a number in \[0, 1\], got nan"),
        (
            {"sampler": "heun", "eta": 0.5},
            "eta is of the sampler 'ddim' alone, got 0.5 with 'heun'",
        ),
        ({"sampler": "ancestral"}, "the sampler 'ancestral' with eta = 0.0 needs noise, got None"),
        ({"gammas": [1.0, 2.0]}, r"gammas must decrease, .* gammas\[0\] = 1.0 and gammas\[1\] = 2"),
        ({"gammas": [1.0, float("nan")]}, "gammas must decrease"),
        ({"gammas": [1.0]}, r"gammas must be \[num_steps \+ 1\], at least two, got shape \(1,\)"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings, message):
    settings = {"gammas": [3.0, 0.0], "kind": "x"} | settings
    with pytest.raises(ValueError, match=message):
        solvers.solve(jnp.ones((1, 1)), optimal, **settings)


def test_gammas_in_the_wrong_order_though_unknown_give_no_number():
    z_1 = jnp.ones((1, 1))
    at = jax.jit(lambda gammas: solvers.solve(z_1, optimal, gammas, "ddim", "x"))
    assert (
        np.isnan(at(jnp.array([0.0, 1.0]))).all() and np.isfinite(at(jnp.array([1.0, 0.0]))).all()
    )


def test_unknown_spacings_and_no_steps_are_refused():
    with pytest.raises(ValueError, match="spacing must be one of time, gamma, karras, angle, got"):
        spacing.table(LINEAR, 3, "log")
    for check in (lambda: spacing.table(LINEAR, 0), lambda: solvers.network_calls("heun", 0)):
        with pytest.raises(ValueError, match="num_steps must be an integer of at least 1, got 0"):
            check()
