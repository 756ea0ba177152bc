"""Schedules of each coefficient of an orthonormal transform, and the way back to pixels.

The data are Gaussian of four elements, or images of 2x2 pixels that can all be listed. DATA's exact
denoiser in coefficients is `exact`; W is a rotation that mixes all of them, unless said otherwise.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import alpha_sigma, cubature, gauss_hermite, gauss_legendre, over_times_and_noise
from scipy import fft, stats

from vdm_jax import VDM, bounds, flow, loss, pixels, process, sampling, schedule, transforms
from vdm_jax.related.mixture import Mixture
from vdm_jax.rule import Rule
from vdm_jax.transforms import Coefficients

RNG = np.random.default_rng(0)
ROTATION = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
MEAN = np.array([0.3, -0.5, 0.1, 0.2])
ROOT = np.tril(RNG.normal(size=(4, 4))) * 0.3 + 0.5 * np.eye(4)
COV = ROOT @ ROOT.T
KEY = jax.random.key(0)
FIRST, LAST = np.array([-9.0, -6.0, -5.0, -7.0]), np.array([3.0, 5.0, 4.0, 2.0])


def path(t, late=0.0, first=FIRST, last=LAST):
    """gamma(t) of each coefficient from `first` to `last`; the later ones rise `late`."""
    power = 1.0 + late * np.arange(len(first))
    return first + (last - first) * t[:, None] ** power


def straight(t):
    return path(t)


def bent(t):
    return path(t, 1.5)


def scales(gamma):
    return jnp.sqrt(jax.nn.sigmoid(-gamma)), jnp.sqrt(jax.nn.sigmoid(gamma))


def exact(w=ROTATION, cov=COV):
    """E[y|z_t] of coefficients y ~ N(W mean, W cov W^T), for gamma_t [batch, 4]."""
    mean, cov = w @ MEAN, w @ cov @ w.T

    def denoise(z, gamma_t):
        alpha, sigma = scales(gamma_t)
        of_z = alpha[:, :, None] * cov * alpha[:, None] + jax.vmap(jnp.diag)(sigma**2)
        solved = jnp.linalg.solve(of_z, (z - alpha * mean)[..., None])[..., 0]
        return mean + (alpha * solved) @ cov

    return denoise


def rotated(gamma, denoise=None, levels=None, w=ROTATION, **fields):
    coefficients = Coefficients(levels, transforms.of_matrix(w))
    return VDM(denoise or exact(w), gamma, (4,), coefficients, "x", **fields)


# ---- the transforms ----


@pytest.mark.parametrize(
    ("transform", "event"),
    [
        (transforms.haar(1), (6,)),
        (transforms.haar(2), (4, 8, 3)),
        (transforms.dct(), (3, 5, 2)),
        (transforms.of_matrix(ROTATION), (2, 2)),
    ],
    ids=lambda of: getattr(of, "name", "")[:8],
)
def test_transforms_are_orthonormal_and_spread_by_their_squared_entries(x64, transform, event):
    dims = int(np.prod(event))
    every = np.eye(dims).reshape(dims, *event)
    w = np.asarray(jax.jit(transform.forward)(every)).reshape(dims, dims).T
    np.testing.assert_allclose(w @ w.T, np.eye(dims), atol=1e-14)
    back = np.asarray(transform.inverse(every)).reshape(dims, dims)
    np.testing.assert_allclose(back, w, atol=1e-14)
    v = RNG.uniform(0.1, 3.0, (2, *event))
    found = np.asarray(transform.spread(v)).reshape(2, dims)
    np.testing.assert_allclose(found, v.reshape(2, dims) @ w**2, rtol=1e-12)
    assert transform.forward(np.float32(every)).dtype == np.float32


def test_the_coefficients_are_those_of_haar_and_of_the_cosines():
    image = RNG.normal(size=(1, 4, 8, 1)).astype(np.float32)
    coarse = np.asarray(transforms.haar(2).forward(image))[0, :1, :2, 0]
    means = image.reshape(1, 4, 2, 4).mean((1, 3))  # of blocks of 4x4
    np.testing.assert_allclose(coarse, 4.0 * means, rtol=1e-5)
    expected = fft.dctn(image[0, ..., 0], norm="ortho")
    np.testing.assert_allclose(transforms.dct().forward(image)[0, ..., 0], expected, atol=1e-5)


def test_transforms_that_cannot_be_are_refused(x64):
    with pytest.raises(ValueError, match=r"2 levels of Haar need sizes that 2\^2 .* got \(6, 8\)"):
        transforms.haar(2).forward(np.zeros((1, 6, 8)))
    with pytest.raises(ValueError, match=r"differs from the identity by 0\.02,"):
        transforms.of_matrix(1.01 * np.eye(3))
    with pytest.raises(ValueError, match="is of 4 dimensions, the event has 3"):
        transforms.of_matrix(ROTATION).forward(np.zeros((1, 3)))
    masked = rotated(straight, mask=np.ones((1, 4)))
    for call in (lambda: masked.elbo_given(np.zeros((1, 4)), np.zeros((1, 4)), np.zeros(1)),
                 lambda: masked.sample(jax.random.key(0), 1, 2)):  # fmt: skip
        with pytest.raises(ValueError, match="can't have a mask"):
            call()
    for make, message in (
        (lambda: Coefficients((17,), DCT), r"levels of Coefficients must be .*, got \(17,\)"),
        (lambda: Coefficients(17, "haar"), "must be a Transform, as .*, got 'haar'"),
        (lambda: transforms.of_matrix(3.0), r"\[dims, dims\], and real, got float64 of shape \(\)"),
        (lambda: transforms.of_matrix(1j * np.eye(2)), "real, got complex128"),
        (lambda: transforms.denoiser(lambda z, _: (z, z), DCT)(np.zeros((1, 4)), np.zeros(1)),
         "learned variance can't be one of coefficients"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make()


def test_the_gradient_for_each_gamma_0_is_that_of_the_spread_also_where_all_are_equal(x64):
    gamma_0, direction = jnp.full((1, 2, 2), -2.0), RNG.normal(size=(1, 2, 2))
    for transform in (HAAR, DCT):
        of = lambda g: Coefficients(4, transform).gamma_of_pixels(g, IMAGES[:1])  # noqa: B023, E731
        np.testing.assert_array_equal(of(gamma_0), gamma_0)
        moved = jax.jvp(of, (gamma_0,), (direction,))[1]
        np.testing.assert_allclose(moved, transform.spread(direction), rtol=1e-12)


def test_a_schedule_that_falls_in_one_coefficient_has_no_bound():
    """Else a model that is wrong where the weight is negative would cost less than nothing."""
    falls = lambda t: jnp.stack([-8.0 + 13.0 * t, 5.0 - 13.0 * t], axis=-1)  # noqa: E731
    vdm = VDM(lambda z, _: z + 100.0, falls, (2,), 4)
    for num_steps in (None, 10):
        of = jax.jit(vdm._replace(num_steps=num_steps).elbo)
        assert np.all(np.isnan(of(jax.random.key(0), np.zeros((4, 2), int)).total))


# ---- one schedule for all: the VDM ----


def wavy(z, gamma_t):
    gamma = process.expand(gamma_t, z)
    return jnp.tanh(z + 0.3 * jnp.roll(z, 1, -1)) * jax.nn.sigmoid(gamma)


@pytest.mark.parametrize("num_steps", [None, 3])
def test_equal_schedules_are_the_vdm_bit_for_bit(num_steps):
    """Also in what a caller draws; op by op, as a compiler may contract either otherwise."""
    one = schedule.cosine(-13.3, 5.0)
    each = lambda t: jnp.broadcast_to(one(t)[:, None], (len(t), 4))  # noqa: E731
    images, key = RNG.integers(0, 256, (5, 4)), jax.random.key(1)

    def found(gamma):
        vdm = VDM(wavy, gamma, (4,), num_steps=num_steps)
        t = jnp.linspace(0.0, 1.0, 5)
        terms = *vdm.elbo(key, images), *vdm.elbo_given(images, jnp.sin(images), t)
        vdm = vdm._replace(levels=None)
        if num_steps is None:
            return [*terms, vdm.sample(key, 3, 3)]
        return [
            *terms,
            vdm.sample(key, 3, 3, "ddim", "time"),
            bounds.chain(vdm, key, images / 256.0),
        ]

    for scalar, vector in zip(found(one), found(each), strict=True):
        np.testing.assert_array_equal(scalar, vector)


# ---- Gaussian data: the path, and what a denoiser sees ----


def bound(vdm):
    """The three terms, averaged over the data, noise and times; exact for a linear denoiser."""
    points = MEAN + cubature(4) @ ROOT.T
    run = jax.jit(lambda x, eps, t: jnp.stack(vdm.elbo_given(x, eps, t)))
    return over_times_and_noise(run, points, vdm.num_steps).mean(1)


def differential_entropy(cov):
    return 0.5 * np.linalg.slogdet(2 * np.pi * np.e * cov)[1]


def test_the_bound_of_the_exact_denoiser_does_not_depend_on_the_path(x64):
    """It is the entropy of z_0 / alpha_0 and KL(q(z_1) || N(0, I)), of y ~ N(W m, W C W^T)."""
    mean, cov = ROTATION @ MEAN, ROTATION @ COV @ ROTATION.T
    alpha, sigma = alpha_sigma(LAST)
    last = alpha[:, None] * cov * alpha + np.diag(sigma**2)
    kl = 0.5 * (np.trace(last) + np.sum((alpha * mean) ** 2) - 4 - np.linalg.slogdet(last)[1])
    expected = differential_entropy(cov + np.diag(np.exp(FIRST))) + kl
    for gamma in (straight, bent):
        assert bound(rotated(gamma)).sum() == pytest.approx(expected, abs=1e-6)
    discrete = [bound(rotated(gamma, num_steps=5)).sum() for gamma in (straight, bent)]
    assert min(discrete) > expected + 0.01 and abs(discrete[0] - discrete[1]) > 0.01


def test_of_factorised_denoisers_only_that_of_the_coefficients_knows_no_path(x64):
    """E[y_i|z_i] costs an integral over gamma_i alone; E[x_j|(W^T z_t / alpha)_j] does not."""
    cov = ROTATION @ COV @ ROTATION.T
    by_coefficients = exact(np.eye(4), np.diag(np.diag(cov)))
    mean = ROTATION @ MEAN

    def coefficients(z, gamma_t):
        alpha, _ = scales(gamma_t)
        return by_coefficients(z + alpha * (MEAN - mean), gamma_t) + mean - MEAN

    def gain(gamma_t):  # of each pixel
        return np.diag(COV) / (np.diag(COV) + jnp.exp(gamma_t) @ ROTATION**2)

    def in_pixels(z, gamma_t):
        x = z / scales(gamma_t)[0] @ ROTATION - MEAN
        return (MEAN + gain(gamma_t) * x) @ ROTATION.T

    t, weights = gauss_legendre(40, 8)
    found = []
    for gamma in (straight, bent):
        alone = np.logaddexp(0.0, np.log(np.diag(cov)) - np.stack([FIRST, LAST]))
        expected = 0.5 * (alone[0] - alone[1]).sum()
        assert bound(rotated(gamma, coefficients))[2] == pytest.approx(expected, abs=1e-6)
        at, rate = jax.jvp(gamma, (jnp.asarray(t),), (jnp.ones(len(t)),))
        kept, noise = gain(at)[:, :, None], ROTATION.T * jnp.exp(at)[:, None] @ ROTATION
        left = (1 - kept) * COV * (1 - kept.mT) + kept * noise * kept.mT  # of x - x_hat
        error = jnp.exp(-at) * jnp.einsum("ij,njk,ik->ni", ROTATION, left, ROTATION)
        found.append(float(0.5 * weights @ (rate * error).sum(1)))
        assert bound(rotated(gamma, in_pixels))[2] == pytest.approx(found[-1], abs=1e-6)
    exactly = bound(rotated(straight))[2]
    assert min(found) > exactly + 0.1 and abs(found[0] - found[1]) > 0.1


def test_the_bound_of_a_mixture_does_not_depend_on_the_path_either(x64):
    """Of each x by itself: E[-log q(z_0 / alpha_0) + log q(z_1) / N(z_1; 0, I)] over q(.|x)."""
    w = np.array([[0.6, -0.8], [0.8, 0.6]])
    points, var, weights = np.array([[0.9, 0.1], [-0.6, 0.7], [-0.1, -0.9]]), 0.02, np.ones(3) / 3
    data = Mixture.of(weights, points @ w.T, var)

    def noised(gamma_t):
        alpha, sigma = scales(gamma_t)
        return Mixture(data.logits, alpha * data.means, (alpha**2 * var + sigma**2)[None])

    def denoise(z, gamma_t):
        """By Tweedie: alpha E[y|z_t] = z + sigma^2 score."""
        alpha, sigma = scales(gamma_t)
        score = jax.vmap(lambda z, gamma_t: noised(gamma_t).score(z))(z, gamma_t)
        return (z + sigma**2 * score) / alpha

    first, last = np.array([-7.0, -6.0]), np.array([4.0, 3.0])
    nodes, each = gauss_hermite(24)
    noise = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2), np.outer(each, each).ravel()
    x = np.array([[0.8, 0.2], [-0.3, -0.7], [-0.7, 0.5]])
    z_0, z_1 = (a * (x @ w.T)[:, None] + s * noise[0] for a, s in map(alpha_sigma, (first, last)))
    q_0, q_1 = (noised(jnp.asarray(gamma)).log_prob(z) for gamma, z in ((first, z_0), (last, z_1)))
    expected = (q_1 - stats.norm.logpdf(z_1).sum(-1) - q_0) @ noise[1]
    expected -= np.log(alpha_sigma(first)[0]).sum()
    for late in (0.0, 1.5):
        gamma = functools.partial(path, late=late, first=first, last=last)
        vdm = VDM(denoise, gamma, (2,), Coefficients(None, transforms.of_matrix(w)), "x")
        run = jax.jit(lambda x, eps, t, vdm=vdm: vdm.elbo_given(x, eps, t).total)
        np.testing.assert_allclose(over_times_and_noise(run, x, None, noise), expected, atol=1e-4)


def test_one_coefficient_after_another_is_the_chain_rule(x64):
    """With a denoiser of y_i that sees z_i and the coefficients that came before it alone."""
    cov, mean = ROTATION @ COV @ ROTATION.T, ROTATION @ MEAN
    lower = np.linalg.cholesky(cov)
    variances = np.diag(lower) ** 2  # of y_i given y_1, ..., y_{i-1}
    regression = np.eye(4) - np.linalg.inv(lower / np.diag(lower))  # strictly lower

    def sequential(z, gamma_t):
        alpha, sigma = scales(gamma_t)
        guess = mean + (z / alpha - mean) @ regression.T
        return guess + alpha * variances / (alpha**2 * variances + sigma**2) * (z - alpha * guess)

    def in_turn(t):
        """The last coefficient's noise rises first, while those before it are clean."""
        return -18.0 + 30.0 * jnp.clip(4.0 * t[:, None] - jnp.arange(3.0, -1.0, -1.0), 0.0, 1.0)

    together = lambda t: -18.0 + 30.0 * jnp.repeat(t[:, None], 4, 1)  # noqa: E731
    chain_rule = 0.5 * np.log(2 * np.pi * np.e * variances).sum()
    assert chain_rule == pytest.approx(differential_entropy(COV))
    assert bound(rotated(in_turn, sequential)).sum() == pytest.approx(chain_rule, abs=1e-4)
    assert bound(rotated(together, sequential)).sum() > chain_rule + 0.1


@pytest.mark.parametrize("late", [0.0, 0.4])
def test_samples_have_the_data_s_distribution_whatever_the_path(x64, late):
    gamma = functools.partial(path, late=late)
    vdm = rotated(gamma)
    drawn = jax.jit(lambda key: vdm.sample(key, 10_000, 100))(jax.random.key(0))
    np.testing.assert_allclose(np.cov(drawn, rowvar=False), COV, atol=0.06)
    units = np.concatenate([np.zeros((1, 4)), np.eye(4)])  # DDIM is affine in z_1
    z_0 = jax.jit(lambda z: sampling.solve(z, vdm, Rule("ddim", 400)))(units)
    x = np.asarray(sampling.to_images(z_0, gamma(jnp.zeros(1)), vdm.levels))
    np.testing.assert_allclose((x[1:] - x[0]).T @ (x[1:] - x[0]), COV, atol=0.05)


def test_the_density_of_the_ode_is_that_of_the_gaussian(x64):
    x = RNG.normal(size=(3, 4))
    noise = ROTATION.T * np.exp(FIRST) @ ROTATION
    expected = stats.multivariate_normal(MEAN, COV + noise).logpdf(x)
    for late in (0.0, 1.5):
        vdm = rotated(functools.partial(path, late=late, last=LAST + 20.0))
        found = jax.jit(lambda x, vdm=vdm: vdm.log_prob(KEY, x, rtol=1e-7, atol=1e-7))(x)
        np.testing.assert_allclose(found, expected, atol=1e-4)


# ---- images that can be listed: nothing is had for free ----

IMAGES = np.array(list(itertools.product(range(4), repeat=4))).reshape(-1, 2, 2)
TABLE = RNG.dirichlet(np.full(256, 0.3))
ENTROPY = -np.sum(TABLE * np.log(TABLE))
HAAR, DCT = transforms.haar(1), transforms.dct()


def of_table(transform, gamma, denoise=None, **fields):
    """The VDM of TABLE's images with their exact denoiser."""
    coefficients = Coefficients(4, transform)

    def posterior_mean(z, gamma_t):
        y = loss.to_data(IMAGES, coefficients)
        alpha, sigma = scales(gamma_t)
        far = (z[:, None] - alpha[:, None] * y) / sigma[:, None]
        odds = jax.nn.softmax(jnp.log(TABLE) - 0.5 * jnp.sum(far**2, (2, 3)))
        return jnp.tensordot(odds, y, 1)

    return VDM(denoise or posterior_mean, gamma, (2, 2), coefficients, "x", **fields)


def ends(seed, first=(-8.0, 1.0)):
    """Ends and powers of t at random: gamma_0, gamma_1 and power, [2, 2] each."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(*first, (2, 2))
    return np.stack([low, np.full((2, 2), 5.0), rng.uniform(0.3, 3.0, (2, 2))])


def between(values):
    low, high, power = values
    return lambda t: low + (high - low) * ((t[:, None, None] + 1e-3) / 1.001) ** power


def random_path(*of):
    return between(ends(*of))


@pytest.mark.parametrize("transform", [HAAR, DCT], ids=["haar", "dct"])
def test_the_decoder_of_pixels_is_a_distribution_whatever_gamma_0(x64, transform):
    """Summed over all images, at latents that are no image's and at unequal noise."""
    coefficients = Coefficients(4, transform)
    y = np.asarray(loss.to_data(IMAGES, coefficients))
    for gamma_0 in (RNG.uniform(-5.0, 2.0, (1, 2, 2)), np.float64(-1.0)):
        alpha, sigma = alpha_sigma(gamma_0)
        for z_0 in RNG.normal(size=(3, 2, 2)):
            nats = loss.reconstruction(IMAGES, (z_0 - alpha * y) / sigma, gamma_0, coefficients)
            assert np.sum(np.exp(-nats)) == pytest.approx(1.0, abs=1e-10)
            if gamma_0.ndim == 0:  # then it is the VDM's
                back = np.asarray(transform.inverse(z_0[None] / alpha))
                each = pixels.decode_log_probs(back, gamma_0, 4)[0]
                of_pixel = np.take_along_axis(each[None], IMAGES[..., None], -1).sum((1, 2, 3))
                np.testing.assert_allclose(nats, -of_pixel, atol=1e-9)


@pytest.mark.parametrize("num_steps", [None, 4])
@pytest.mark.parametrize("transform", [HAAR, DCT], ids=["haar", "dct"])
def test_no_path_costs_less_than_the_entropy(x64, transform, num_steps):
    """Of the exact denoiser, of others, and where the coarse coefficient is never hidden."""
    told = ends(7)  # gamma of the coarse one from -30 to -20: z_1 still says it
    told[:2, 0, 0] = -30.0, -20.0
    paths = np.stack([*(ends(seed) for seed in range(3)), ends(5, (-9.0, -8.0)), told])
    hints = lambda z, gamma_t: jnp.tanh(z) * jax.nn.sigmoid(-gamma_t)  # noqa: E731

    def excess(denoise, draws=60):
        """The bound less the entropy, nats: its mean and standard error along each path."""

        def total(values, key):
            vdm = of_table(transform, between(values), denoise, num_steps=num_steps)
            return TABLE @ vdm.elbo(key, IMAGES).total

        keys = jax.random.split(jax.random.key(0), draws)
        run = jax.jit(jax.vmap(lambda values: jax.lax.map(lambda key: total(values, key), keys)))
        nats = np.asarray(run(paths))
        return nats.mean(1) - ENTROPY, nats.std(1, ddof=1) / draws**0.5

    exactly, error = excess(None)
    assert np.all(exactly > -3.0 * error)
    assert exactly[4] > 5.0  # as z_1 is no noise
    if num_steps is None:  # little noise at the end and much at the start: nothing is lost
        assert abs(exactly[3]) < 4.0 * error[3] + 0.02
    other, error = excess(hints)
    assert np.all(other > -3.0 * error)


def test_expectations_are_those_of_what_is_drawn(x64):
    """The reconstruction's over eps_0, and the chains' log weights, whose mean is the bound."""
    gamma, images = random_path(1, (-4.0, -1.0)), IMAGES[[3, 120]]
    vdm = of_table(HAAR, gamma, num_steps=3)
    keys = jax.random.split(jax.random.key(0), 4000)

    def draws(key):
        terms = vdm.elbo(key, images)
        return jnp.stack([terms.reconstruction, terms.total, -bounds.chain(vdm, key, images)])

    found = np.asarray(jax.jit(lambda keys: jax.lax.map(draws, keys, batch_size=400))(keys))
    error = found.std(0, ddof=1) / len(keys) ** 0.5
    (exactly, *_) = vdm.elbo_given(images, np.zeros((2, 2, 2)), jnp.zeros(2))
    assert np.all(np.abs(found[:, 0].mean(0) - exactly) < 4.0 * error[0])
    apart = np.abs(found[:, 1].mean(0) - found[:, 2].mean(0))
    assert np.all(apart < 4.0 * np.hypot(error[1], error[2]))


def test_samples_are_images_of_the_table_and_dequantised_ones_stay_in_their_bins(x64):
    few = np.flatnonzero(np.argsort(np.argsort(-TABLE)) < 8)
    gamma = random_path(2, (-9.0, -7.0))
    vdm = of_table(HAAR, gamma)
    y = loss.to_data(IMAGES[few], vdm.levels)

    def of_few(z, gamma_t):
        alpha, sigma = scales(gamma_t)
        far = (z[:, None] - alpha[:, None] * y) / sigma[:, None]
        return jnp.tensordot(jax.nn.softmax(-0.5 * jnp.sum(far**2, (2, 3))), y, 1)

    drawn = np.asarray(vdm._replace(denoise=of_few).sample(jax.random.key(0), 64, 50))
    assert (drawn[:, None] == IMAGES[few]).all((2, 3)).any(1).all()

    gamma_0 = np.asarray(random_path(4, (-3.0, -1.0))(jnp.zeros(1)))
    x = pixels.encode(IMAGES, 4)
    alpha, _ = alpha_sigma(gamma_0)
    spread = np.sqrt(np.asarray(HAAR.spread(np.exp(gamma_0))))
    for method in ("uniform", "truncated_normal"):
        args = jax.random.key(1), IMAGES, jnp.asarray(gamma_0), vdm.levels, method
        z_0, log_q = flow._dequantized(*args)
        u = np.asarray(HAAR.inverse(z_0 / alpha) - x)
        assert np.all(np.abs(u) < 0.25) and np.abs(u).max() > 0.2
        within = stats.truncnorm(-0.25 / spread, 0.25 / spread, scale=spread).logpdf(u)
        of_u = np.full(u.shape, np.log(2.0)) if method == "uniform" else within
        expected = of_u.sum((1, 2)) - np.log(alpha).sum()  # |dz_0 / dx| = prod alpha_0
        np.testing.assert_allclose(log_q.sum((1, 2)), expected, rtol=1e-8)
