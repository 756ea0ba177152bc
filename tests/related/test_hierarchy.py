import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vdm_jax import VDM, bounds, loss, pixels, schedule
from vdm_jax.gaussian import Gaussian
from vdm_jax.related import hierarchy

LEVELS = 5


def network(z_t, gamma_t):
    """An arbitrary denoiser that mixes the elements of an event and knows gamma."""
    shifted = jnp.roll(z_t, 1, axis=-1)
    return jnp.tanh(0.8 * z_t - 0.3 * shifted + 0.2 * gamma_t[:, None])


def learned(z_t, gamma_t):
    return network(z_t, gamma_t), jax.nn.sigmoid(z_t + gamma_t[:, None])


VDM_OF_3 = VDM(network, schedule.linear(-5.0, 2.0), (3,), LEVELS, "v", 3, timesteps="uniform")


# ---- linear Gaussian hierarchies: all is known ----


def linear_hierarchy(depth, dims=3, seed=0):
    """x = W_0 z_1 + noise, z_i = W_i z_{i+1} + noise, z_L ~ N(0, I): and its exact marginals."""
    rng = np.random.default_rng(seed)
    maps = [rng.normal(size=(dims, dims)) / dims**0.5 for _ in range(depth)]
    noise = rng.uniform(0.3, 0.8, depth)
    cov = [np.eye(dims)]  # of z_L, z_{L-1}, ..., x
    for w, s in zip(reversed(maps), reversed(noise), strict=True):
        cov.append(w @ cov[-1] @ w.T + s * np.eye(dims))
    return maps, noise, cov[::-1]  # cov[0] of x, cov[i] of z_i


def conditional(gain, var):
    return lambda z: Gaussian(z @ gain.T, jnp.broadcast_to(var, (len(z), len(gain))))


def test_with_the_exact_posteriors_every_draw_gives_the_exact_likelihood(x64):
    """One dimension, where diagonal encoders can be exact: the weight is p(x) whatever is drawn."""
    for depth in (1, 3):
        maps, noise, cov = linear_hierarchy(depth, dims=1, seed=depth)
        likelihood, *decoders = map(conditional, maps, noise)
        encoders = []
        for w, s, c in zip(maps, noise, cov[1:], strict=True):
            precision = 1 / c + w**2 / s
            encoders.append(conditional(w / s / precision, 1 / precision[0]))
        x = jnp.array([[-1.3], [0.2], [2.0]])
        log_likelihood = lambda z, p=likelihood, x=x: loss.sum_event(p(z).log_prob(x))  # noqa: E731
        latents = hierarchy.sample_latents(jax.random.key(depth), x, encoders)
        args = (x, latents, encoders, decoders, log_likelihood)
        prior = None if depth == 1 else Gaussian(jnp.zeros((3, 1)), jnp.ones((3, 1)))
        terms = hierarchy.elbo(*args, prior, closed_form=False)
        exact = -stats.norm(0.0, cov[0][0, 0] ** 0.5).logpdf(np.asarray(x)[:, 0])
        np.testing.assert_allclose(terms.total, exact, rtol=1e-12)
        assert terms.levels.shape == (depth, 3)
        # The closed form takes the place of the last difference, whatever the prior.
        before = latents[-2] if depth > 1 else x
        prior = Gaussian(jnp.full((3, 1), 0.3), jnp.full((3, 1), 1.4))
        closed = hierarchy.elbo(*args, prior).levels[-1]
        np.testing.assert_allclose(closed, encoders[-1](before).kl(prior)[:, 0], rtol=1e-12)


def test_samples_of_the_hierarchy_have_the_moments_of_the_chain():
    maps, noise, cov = linear_hierarchy(4, dims=2, seed=3)
    _, *decoders = map(conditional, maps, noise)
    z_last = jax.random.normal(jax.random.key(0), (100_000, 2))
    z_1 = np.asarray(hierarchy.ancestral(jax.random.key(1), z_last, decoders))
    white = np.linalg.solve(np.linalg.cholesky(cov[1]), z_1.T)
    np.testing.assert_allclose(np.cov(white), np.eye(2), atol=5 * (2 / 1e5) ** 0.5)
    np.testing.assert_allclose(white.mean(1), 0.0, atol=5 / 1e5**0.5)
    assert hierarchy.ancestral(jax.random.key(1), z_last, []) is z_last


# ---- the VDM as a hierarchy ----


def vdm_lists(vdm):
    encode, decode = hierarchy.of_diffusion(vdm)
    encoders = [partial(encode, i) for i in range(vdm.num_steps + 1)]
    return encoders, [partial(decode, i) for i in range(vdm.num_steps)]


def log_likelihood(vdm, images):
    gamma_0 = vdm.gamma(0.0)

    def of(z_0):
        rescaled = z_0 / schedule.alpha(gamma_0)
        return loss.sum_event(pixels.log_prob(images, rescaled, gamma_0, LEVELS))

    return of


@pytest.mark.parametrize("reverse_var", ["posterior", "transition", "learned"])
def test_latent_for_latent_it_is_the_weight_of_a_chain(x64, monkeypatch, reverse_var):
    """`bounds.chain` draws z_T first and works with noise; at its latents the weights agree."""
    vdm = VDM_OF_3._replace(reverse_var=reverse_var)
    if reverse_var == "learned":
        vdm = vdm._replace(denoise=learned)
    images = jnp.array([[0, 3, 4], [2, 2, 1]])
    x, noise, normal = pixels.encode(images, LEVELS), [], jax.random.normal

    def recorded(*args, **kwargs):
        noise.append(normal(*args, **kwargs))
        return noise[-1]

    monkeypatch.setattr(jax.random, "normal", recorded)
    with jax.disable_jit():
        weight = bounds.chain(vdm, jax.random.key(4), images)
    gammas = vdm.gamma(jnp.arange(3, -1, -1) / 3)
    assert len(noise) == 4
    e, latents = noise[0], []
    for i, eps in enumerate(noise):
        if i:
            r2 = jnp.exp(gammas[i] - gammas[i - 1])
            e = jnp.sqrt(r2) * e + jnp.sqrt(1.0 - r2) * eps
        latents.append(schedule.alpha(gammas[i]) * x + schedule.sigma(gammas[i]) * e)
    of = log_likelihood(vdm, images)
    terms = hierarchy.elbo(x, latents[::-1], *vdm_lists(vdm), of, closed_form=False)
    np.testing.assert_allclose(-terms.total, weight, rtol=1e-10)


def test_mistakes_are_named():
    encode = lambda z: Gaussian(z, jnp.ones_like(z))  # noqa: E731
    x, zero = jnp.zeros((1, 2)), lambda z: jnp.zeros(len(z))
    for encoders, decoders, of, message in (
        ([encode], [encode], zero, "L - 1 decoders and L latents, got 1, 1 and 1."),
        ([encode, encode], [], zero, "L - 1 decoders and L latents, got 2, 0 and 2."),
        ([encode], [], lambda z: z, "one number per example, [1], got shape (1, 2): sum over"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            hierarchy.elbo(x, [x] * len(encoders), encoders, decoders, of)
    for num_steps in (0, None):
        with pytest.raises(ValueError, match="num_steps must be an integer of at least 1, got 0"):
            hierarchy.of_diffusion(VDM_OF_3._replace(num_steps=num_steps))
    with pytest.raises(ValueError, match="a hierarchy knows no padding"):
        hierarchy.of_diffusion(VDM_OF_3._replace(mask=jnp.ones((1, 2))))
