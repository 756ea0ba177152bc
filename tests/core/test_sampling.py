"""Samplers against exact denoisers: convergence orders, closed forms, and what must not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import affine_chain, alpha_sigma, normal_denoiser

from vdm_jax import VDM, bounds, parameterization, pixels, process, sampling, schedule
from vdm_jax.rule import SAMPLERS, SPACINGS, Rule

ORDER = {"ddim": 1, "dpm_solver": 2, "heun": 2}
MEAN, VAR = 0.4, 0.3
ENDS = -5.0, 4.0
LINEAR = schedule.linear(*ENDS)


optimal = normal_denoiser(MEAN, VAR)
GAUSSIAN = VDM(optimal, LINEAR, (2,), None, "x")


def flow_of_gaussian(z_1, gamma_0=ENDS[0], gamma_1=ENDS[1]):
    """The exact flow: z stays as many standard deviations of q(z_t) from its mean."""
    (alpha_0, sigma_0), (alpha_1, sigma_1) = alpha_sigma(gamma_0), alpha_sigma(gamma_1)
    ratio = np.sqrt((alpha_0**2 * VAR + sigma_0**2) / (alpha_1**2 * VAR + sigma_1**2))
    return alpha_0 * MEAN + ratio * (np.asarray(z_1) - alpha_1 * MEAN)


def latents(n=32, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, 2))


def orders(errors) -> np.ndarray:
    return -np.diff(np.log2(errors))


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def solve(z_1, vdm, rule, keys=None):
    return jax.jit(lambda z_1, keys: sampling.solve(z_1, vdm, rule, keys))(z_1, keys)


# ---- convergence ----


@pytest.mark.parametrize(
    ("name", "spaced"), [("ddim", "gamma"), ("dpm_solver", "karras"), ("heun", "time")]
)
def test_error_against_the_flow_of_gaussian_data_has_the_order_of_the_method(x64, name, spaced):
    z_1 = latents()
    exact = flow_of_gaussian(z_1)
    errors = [rms(solve(z_1, GAUSSIAN, Rule(name, n, spaced)) - exact) for n in (256, 512)]
    np.testing.assert_allclose(orders(errors), ORDER[name], atol=0.08)
    assert errors[-1] > 1e-9  # far above rounding


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_to_three_steps_from_any_noise_stay_near_the_data(name):
    """In float32, from noise e^20 and e^40 times the data: within 6 standard deviations."""

    @jax.jit
    def samples(reach):
        vdm = GAUSSIAN._replace(gamma=lambda t: reach * (2.0 * t - 1.0))
        return [sampling.sample(jax.random.key(0), vdm, 8, Rule(name, n)) for n in (1, 2, 3)]

    for reach in (40.0, 80.0):
        for found in samples(reach):
            assert np.max(np.abs(found - MEAN)) < 6 * VAR**0.5


# ---- guidance ----


def of_gaussian(mean, kind="eps"):
    """The exact model of N(mean, VAR) by a prediction of any kind."""
    eps_of = {"x": parameterization.to_x, "v": parameterization.to_v}

    def denoise(z_t, gamma_t):
        alpha, sigma = (f(process.expand(gamma_t, z_t)) for f in (schedule.alpha, schedule.sigma))
        eps = sigma * (z_t - alpha * mean) / (alpha**2 * VAR + sigma**2)
        return eps if kind == "eps" else eps_of[kind](eps, z_t, gamma_t, "eps")

    return VDM(denoise, LINEAR, (2,), None, kind)


@pytest.mark.parametrize(
    ("kinds", "rule"),
    [
        (("eps", "eps"), Rule("ancestral", 5)),
        (("x", "x"), Rule("heun", 4)),
        (("v", "v"), Rule("ancestral", 5)),
        (("x", "v"), Rule("heun", 4)),
    ],
)
def test_guided_samples_are_those_of_the_gaussian_whose_mean_is_led_further(x64, kinds, rule):
    """eps = sigma (z - alpha m) / (alpha^2 VAR + sigma^2) is affine in m: it moves m alone."""
    of_class, scale = jnp.array([[0.5, -1.0], [2.0, 0.25]]), 1.5
    means = of_class[jnp.arange(6) % 2]
    conditional, other = of_gaussian(means, kinds[0]), of_gaussian(of_class.mean(0), kinds[1])
    further = of_gaussian((1 + scale) * means - scale * of_class.mean(0))
    models = (sampling.guided(conditional, other, scale), further)

    @jax.jit
    def sample(key):
        return [sampling.sample(key, vdm, 6, rule) for vdm in models]

    np.testing.assert_allclose(*sample(jax.random.key(0)), rtol=1e-9)
    z, gamma_t = latents(6), jnp.full(6, -1.0)
    plain = sampling.guided(conditional, other, 0.0)
    np.testing.assert_array_equal(plain.denoise(z, gamma_t), conditional.denoise(z, gamma_t))


def test_likelihoods_are_of_the_conditional_model_and_never_guided(x64):
    means = jnp.array([[0.5, -1.0], [2.0, 0.25]])
    conditional, x = of_gaussian(means), jnp.array([[0.3, 0.1], [-0.2, 0.4]])
    # The flow from x to z_1 is affine, and z_1 is standard normal.
    (alpha_0, sigma_0), (alpha_1, sigma_1) = map(alpha_sigma, ENDS)
    ratio = np.sqrt((alpha_1**2 * VAR + sigma_1**2) / (alpha_0**2 * VAR + sigma_0**2))
    z_1 = alpha_1 * means + ratio * alpha_0 * (x - means)
    exact = jax.scipy.stats.norm.logpdf(z_1).sum(1) + 2 * np.log(ratio * alpha_0)
    found = conditional.log_prob(x=x, key=jax.random.key(0), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    learned = conditional._replace(
        reverse_var="learned", denoise=lambda z, g: (conditional.denoise(z, g), 0.25 + 0.0 * z)
    )
    guided = sampling.guided(learned, conditional, 2.0)
    assert guided.scale == 2.0 and guided.event_shape == (2,)
    np.testing.assert_array_equal(guided.denoise(x, jnp.zeros(2))[1], 0.25)
    for name in ("elbo", "elbo_given", "elbo_by_keys", "log_prob"):
        with pytest.raises(ValueError, match=f"scale 2 has no likelihood: take {name} of the cond"):
            getattr(guided, name)


# ---- single steps ----


def test_bridge_keeps_the_marginal_of_the_process_for_every_eta(x64):
    # q(z_s|x) from q(z_t|x): means and variances of an affine map, exactly.
    x, gamma_s, gamma_t = np.full((3, 1), 0.7), np.array([-9.0, 0.5, -3]), np.array([3.0, 0.6, 8])
    _, sigma_t = alpha_sigma(gamma_t[:, None])
    q_s, q_t = process.marginal(x, gamma_s), process.marginal(x, gamma_t)
    for eta in (0.0, 0.3, 1.0):
        at = sampling.bridge(q_t.mean, x, gamma_s, gamma_t, eta)
        gain = sampling.bridge(q_t.mean + 1.0, x, gamma_s, gamma_t, eta).mean - at.mean
        np.testing.assert_allclose(at.mean, q_s.mean, rtol=1e-11)
        np.testing.assert_allclose(gain**2 * sigma_t**2 + at.var, q_s.var, rtol=1e-11)
        posterior = process.posterior(x, x, gamma_s, gamma_t)
        np.testing.assert_allclose(at.var, eta**2 * posterior.var, rtol=1e-12)


def test_ddim_with_eta_one_is_the_ancestral_step(x64):
    z, eps = latents(), latents(seed=3)
    for gamma_s, gamma_t in ((-9.0, 3.0), (1.0, 1.001)):
        state = sampling.start(z, gamma_t)
        other = sampling.ancestral_step(z, eps, optimal, gamma_s, gamma_t, "x")
        one, same = (
            sampling.step(state, eps, GAUSSIAN, gamma_s, gamma_t, rule).z
            for rule in (Rule("ddim", 1, eta=1.0), Rule("ancestral", 1))
        )
        np.testing.assert_allclose(one, other, rtol=1e-10)
        np.testing.assert_array_equal(same, other)


@pytest.mark.parametrize("kind", parameterization.KINDS)
def test_ancestral_step_is_a_draw_of_the_reverse_kernel(x64, kind):
    z_t, eps = latents(3), latents(3, seed=1)
    prediction = getattr(parameterization, f"to_{kind}")(optimal(z_t, 1.0), z_t, 1.0, kind="x")
    seen = []

    def denoise(z, gamma_t):
        seen.append((z, gamma_t))
        return prediction

    z_s = sampling.ancestral_step(z_t, eps, denoise, -2.0, 1.0, kind)
    p = process.reverse(z_t, optimal(z_t, 1.0), -2.0, 1.0)
    np.testing.assert_allclose(z_s, p.mean + jnp.sqrt(p.var) * eps, rtol=1e-10)
    # The network sees the latent as it is and one gamma_t per example.
    np.testing.assert_array_equal(seen[0][0], z_t)
    np.testing.assert_array_equal(seen[0][1], np.ones(3))


def test_small_steps_keep_their_digits_in_float32():
    # What x adds over a step of 1e-4 at gamma = -13, where alpha_s and what is taken off agree to
    # five digits.
    x, z = jnp.ones((1, 1)), jnp.zeros((1, 1))
    found = float(sampling.bridge(z, x, -13.0001, -13.0).mean[0, 0])
    h = 0.5 * (float(np.float32(-13.0)) - float(np.float32(-13.0001)))
    np.testing.assert_allclose(found, -np.expm1(-h), rtol=1e-5)


def test_dpm_solver_is_exact_where_the_prediction_is_linear_in_lambda_to_second_order(x64):
    # x_hat = a + b lambda: z / sigma = int x_hat d(alpha / sigma), of which the line through the
    # last two predictions half a step ahead leaves the third power of the step.
    def denoise(z, gamma_t):
        return jnp.broadcast_to(process.expand(0.7 - 0.4 * (-gamma_t / 2), z), z.shape)

    def inner(lam):  # int e^l (0.7 - 0.4 l) dl
        return np.exp(lam) * (0.7 - 0.4 * (lam - 1.0))

    errors, one = [], jnp.ones((1, 1))
    for h in (0.2, 0.1, 0.05):
        gamma_t, gamma_s = 1.0, 1.0 - 2 * h
        before = sampling.State(one, denoise(one, 1.0 + 5 * h), 1.0 + 5 * h)  # a longer step
        vdm = GAUSSIAN._replace(denoise=denoise)
        z_s = sampling.step(before, None, vdm, gamma_s, gamma_t, Rule("dpm_solver", 3)).z
        (_, sigma_t), (_, sigma_s) = alpha_sigma(gamma_t), alpha_sigma(gamma_s)
        truth = sigma_s * (1.0 / sigma_t + inner(-gamma_s / 2) - inner(-gamma_t / 2))
        errors.append(abs(float(z_s[0, 0]) - truth))
    np.testing.assert_allclose(orders(errors), 3.0, atol=0.1)


def test_the_first_and_the_last_step_of_dpm_solver_are_ddim_s(x64):
    z_1 = latents()
    (alpha_1, sigma_1), (alpha_0, sigma_0) = alpha_sigma(ENDS[1]), alpha_sigma(ENDS[0])
    x_1 = np.asarray(optimal(z_1, ENDS[1]))
    by_hand = alpha_0 * x_1 + sigma_0 * (np.asarray(z_1) - alpha_1 * x_1) / sigma_1
    ddim, dpm = (
        [solve(z_1, GAUSSIAN, Rule(name, n)) for n in (1, 2, 3)] for name in ORDER if name != "heun"
    )
    np.testing.assert_allclose(ddim[0], by_hand, rtol=1e-10)
    for one, other in zip(ddim[:2], dpm[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-15)
    assert rms(ddim[2] - dpm[2]) > 1e-3


def test_a_latent_of_fewer_bits_than_the_schedule_is_taken_as_one_of_as_many(x64):
    z_1 = jnp.array([[0.25, -1.5]], jnp.float32)  # both are exact in float32
    z_0 = sampling.solve(z_1, GAUSSIAN, Rule("ddim", 4))
    again = sampling.solve(z_1.astype(float), GAUSSIAN, Rule("ddim", 4))
    assert z_0.dtype == float
    np.testing.assert_array_equal(z_0, again)


# ---- distributions ----


def assert_moments(sample, mean: float, var: float) -> None:
    """The sample's mean and variance lie within four standard errors."""
    n = sample.size
    assert abs(float(sample.mean()) - mean) < 4 * np.sqrt(var / n)
    assert abs(float(sample.var()) / var - 1) < 4 * np.sqrt(2 / n)


def exact_chain(gammas: np.ndarray, eta: float = 1.0) -> tuple[float, float]:
    """Mean and variance of z_0 of the chain of gammas [T + 1], decreasing, from the paper.

    z_s = alpha_s x_hat + sqrt(sigma_s^2 - v) eps_hat + sqrt(v) eps; eta = 1 is ancestral.
    """
    t, s = np.asarray(gammas, np.float64)[:-1], np.asarray(gammas, np.float64)[1:]
    (alpha_s, sigma_s), (alpha_t, sigma_t) = alpha_sigma(s), alpha_sigma(t)
    step_var = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
    v = eta**2 * step_var * sigma_s**2 / sigma_t**2
    of_eps = np.sqrt(sigma_s**2 - v) / sigma_t
    of_x = alpha_s - of_eps * alpha_t
    gain = alpha_t * VAR / (VAR * alpha_t**2 + sigma_t**2)
    return affine_chain(of_eps + of_x * gain, of_x * (1 - gain * alpha_t) * MEAN, v)


@pytest.mark.parametrize(
    "rule", [Rule("ancestral", 10), Rule("ancestral", 8, "gamma"), Rule("ddim", 3, eta=0.6)]
)
def test_samples_have_the_moments_of_the_exact_discrete_chain(rule):
    vdm = GAUSSIAN._replace(gamma=schedule.cosine(-6.0, 3.0))
    z_0 = jax.jit(lambda key: sampling.sample(key, vdm, 6000, rule))(jax.random.key(1))
    z_0 *= alpha_sigma(-6.0)[0]  # x is z_0 / alpha_0
    eta = 1.0 if rule.sampler == "ancestral" else rule.eta
    assert_moments(z_0, *exact_chain(rule.gammas(vdm.gamma), eta))
    # Elements of one example and examples of one batch are independent draws.
    assert np.max(np.abs(np.corrcoef(z_0.T) - np.eye(2))) < 4 / np.sqrt(6000)


# ---- what must not matter ----


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_denoiser_in_two_kinds_or_with_a_share_makes_one_sample(x64, name):
    def denoise(z, g):
        return parameterization.to_v(optimal(z, g), z, g, "x"), jnp.zeros_like(z)

    other = GAUSSIAN._replace(denoise=denoise, kind="v", reverse_var="learned")
    rule, keys = Rule(name, 3), jax.random.split(jax.random.key(1), 3)
    one, same = (solve(latents(3), vdm, rule, keys) for vdm in (GAUSSIAN, other))
    np.testing.assert_allclose(one, same, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_loop_over_steps_is_the_scan_and_the_network_is_called_as_often_as_said(x64, name):
    rule, calls = Rule(name, 3), []

    def denoise(z, gamma_t):
        calls.append(1)  # at each call that is in a compiled step
        return optimal(z, gamma_t)

    vdm, keys = GAUSSIAN._replace(denoise=denoise), jax.random.split(jax.random.key(0), 3)
    step = jax.jit(lambda *args: sampling.step(*args[:2], vdm, *args[2:4], rule, args[4]))
    gammas, z_1 = rule.gammas(LINEAR), sampling.initial(keys, (2,), float)
    state = sampling.start(z_1, gammas[0])
    for i in range(3):
        eps = sampling.noise(keys, i, (2,), float)
        state = step(state, eps, gammas[i + 1], gammas[i], i == 2)
    assert 3 * len(calls) == rule.network_calls
    z_0 = solve(z_1, GAUSSIAN, rule, keys)
    np.testing.assert_allclose(state.z, z_0, rtol=1e-10)
    # A sample is that of its own key, whatever the batch.
    alone = solve(z_1[1:2], GAUSSIAN, rule, keys[1:2])
    np.testing.assert_allclose(alone[0], z_0[1], rtol=1e-10)


def test_noise_differs_between_steps_examples_and_the_start():
    keys = jax.random.split(jax.random.key(0), 3)
    drawn = [sampling.initial(keys, (500,)), *(sampling.noise(keys, i, (500,)) for i in (0, 1))]
    rows = np.concatenate(drawn)
    assert np.max(np.abs(np.corrcoef(rows) - np.eye(9))) < 5 / np.sqrt(500)
    assert_moments(rows, 0.0, 1.0)


# ---- pixels ----


@pytest.mark.parametrize("levels", [17, 256])
def test_to_images_gives_the_nearest_pixels_of_a_latent(levels):
    images = np.random.default_rng(0).integers(0, levels, (3, 5, 3))
    alpha, _ = alpha_sigma(-3.0)  # alpha = 0.976: off by three levels of 256 if not undone
    z_0 = jnp.asarray(alpha * np.asarray(pixels.encode(images, levels)), jnp.float32)
    np.testing.assert_array_equal(sampling.to_images(z_0, -3.0, levels), images)


# ---- rules ----


def test_tables_are_uniform_in_what_their_name_says_with_the_schedule_s_ends(x64):
    gamma = schedule.cosine(-8.0, 5.0)
    coordinate = {
        "gamma": lambda g: g,
        "karras": lambda g: np.exp(g / 2) ** (1 / 7),
        "angle": lambda g: np.arctan(np.exp(g / 2)),
    }
    ends = gamma(jnp.array([1.0, 0.0]))

    def bent(t):
        return jnp.stack([18 * t**2 - 13, 18 * jnp.sqrt(t) - 13], axis=-1)

    for name in SPACINGS:
        table = Rule("ddim", 9, name).gammas(gamma)
        assert np.all(np.diff(table) < 0)
        np.testing.assert_array_equal(table[jnp.array([0, -1])], ends)
        if name == "time":
            np.testing.assert_array_equal(table, gamma(jnp.linspace(1.0, 0.0, 10)))
        else:
            widths = np.diff(coordinate[name](np.asarray(table)))
            np.testing.assert_allclose(widths, widths.mean(), rtol=1e-9)
        # Of schedules of two features it is the mean that lies so, and all are of one time.
        both = Rule("ddim", 9, name).gammas(bent)
        t = np.sqrt((both[..., 0] + 13) / 18)
        np.testing.assert_allclose(both, bent(t), atol=1e-9)
        np.testing.assert_array_equal(t[[0, -1], 0], [1.0, 0.0])
        if name != "time":
            widths = np.diff(coordinate[name](np.mean(both, axis=(1, 2))))
            np.testing.assert_allclose(widths[:-2], widths.mean(), rtol=1e-2)
    np.testing.assert_array_equal(Rule("heun", 1).gammas(gamma), ends)
    assert Rule("ancestral", 5).spacing == "time" and Rule("heun", 5).spacing == "karras"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Rule("euler", 3), "sampler must be one of ancestral, ddim, dpm_solver, heun, got"),
        (lambda: Rule("heun", 3, "log"), "spacing must be one of time, gamma, karras, angle, got"),
        (lambda: Rule("heun", 0), "num_steps must be an integer of at least 1, got 0"),
        (lambda: Rule("ddim", 3, eta=1.5), r"eta must be a number in \[0, 1\], got 1.5"),
        (lambda: Rule("heun", 3, eta=0.5), "eta=0.5 goes with the sampler 'ddim', got 'heun'"),
        (lambda: Rule("ddim", 2).gammas(lambda t: 5.0 - t), "gamma must rise with t, got"),
        (
            lambda: Rule("ddim", 2).gammas(lambda t: jnp.stack([5.0 - t, 4.0 - t], axis=-1)),
            "gamma must rise with t, got",
        ),
        (
            lambda: sampling.ancestral(jax.random.key(0), optimal, lambda t: 5.0 - t, (2, 2), 3),
            "gamma must rise with t, got",
        ),
        (
            lambda: sampling.solve(jnp.ones((1, 2)), GAUSSIAN, Rule("ancestral", 2)),
            "need noise, got eps = None",
        ),
        (
            lambda: sampling.ancestral_step(jnp.ones((2, 3)), jnp.ones((2, 1)), optimal, -1.0, 1.0),
            r"z_t \(2, 3\) and eps \(2, 1\) differ",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_schedule_that_falls_though_unknown_gives_no_number():
    def at(low, high):
        return Rule("ddim", 3).gammas(lambda t: low + (high - low) * t)

    assert np.isnan(jax.jit(at)(1.0, 0.0)).all() and np.isfinite(jax.jit(at)(0.0, 1.0)).all()


@pytest.mark.parametrize("name", ["chain", *SAMPLERS])
def test_inside_shard_map_the_condition_is_split_and_the_key_is_not(name):
    """Its carry is the same everywhere before the first step, and differs after it."""
    mesh, condition = jax.sharding.Mesh(jax.devices()[:1], "data"), jnp.array([[0.3], [-0.4]])

    def sample(key, condition):
        vdm = VDM(lambda z, gamma: 0.5 * z + condition, LINEAR, (3,), None, num_steps=4)
        if name == "chain":
            return bounds.chain(vdm, key, jnp.ones((2, 3)))
        return sampling.sample(key, vdm, 2, Rule(name, 4))

    whole, split = jax.P(), jax.P("data")
    specs, args = {"in_specs": (whole, split), "out_specs": split}, (jax.random.key(0), condition)

    @jax.jit
    def both(*args):
        return [
            jax.shard_map(sample, mesh=mesh, **specs, check_vma=check)(*args)
            for check in (True, False)
        ]

    expected = jax.jit(sample)(*args)
    for found in both(*args):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
