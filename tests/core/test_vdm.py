"""The record: each of its methods is the function beneath, with the values of a closed form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import alpha_sigma

import vdm_jax
from vdm_jax import VDM, loss, process, sampling, schedule
from vdm_jax.rule import SAMPLERS, Rule

LEVELS, STEPS = 8, 5
GAMMA = schedule.linear(-5.0, 4.0)
KEY = jax.random.key(0)
IMAGES = np.array([[0, 3, 7], [1, 2, 6]])


def wavy(z, gamma_t):
    """Some prediction of v and its share, that couples the elements of an example."""
    g = process.expand(gamma_t, z)
    return jnp.tanh(z + 0.3 * g) + 0.2 * jnp.roll(z, 1, -1), jax.nn.sigmoid(2.0 * z - 0.4 * g)


VDM_OF_ALL = VDM(wavy, GAMMA, (3,), LEVELS, "v", STEPS, "learned", "uniform")


def test_the_terms_are_those_of_the_loss():
    @jax.jit
    def pairs(key):
        eps_0, eps, t = loss.draw(key, IMAGES.shape, "uniform")
        by_hand = loss.elbo(key, IMAGES, wavy, GAMMA, LEVELS, STEPS, "v", "uniform", "learned")
        keys = jax.random.split(key, 2)
        x, without = loss.to_data(IMAGES, LEVELS), VDM_OF_ALL.elbo_given(IMAGES, eps, t)
        steps = loss.diffusion(x, eps, t, wavy, GAMMA, STEPS, "v", "learned")
        read = loss.expected_reconstruction(IMAGES, -5.0, LEVELS)
        of_noise = VDM_OF_ALL.elbo_given(IMAGES, loss.noise(keys, (3,)), t)
        return [
            (VDM_OF_ALL.elbo(key, IMAGES), by_hand),
            (VDM_OF_ALL.elbo_given(IMAGES, eps, t, eps_0), by_hand),
            (tuple(without), (read, loss.prior(x, 4.0), steps)),
            (VDM_OF_ALL.elbo_by_keys(IMAGES, t, keys), of_noise),
        ]

    for found, expected in pairs(KEY):
        chex.assert_trees_all_close(found, expected, rtol=1e-5)
    assert VDM_OF_ALL.words == "T = 5"
    assert VDM_OF_ALL._replace(num_steps=None).words == "continuous time"


def test_data_of_another_event_are_refused():
    """Their bits per dimension would be of the wrong number of dimensions."""
    vdm = VDM(lambda z_t, gamma_t: z_t, schedule.linear(-5.0, 5.0), (4, 2), None)
    x, key, half = jnp.ones((3, 5, 2)), jax.random.key(0), jnp.full(3, 0.5)
    for use in (
        lambda: vdm.elbo(key, x),
        lambda: vdm.elbo_given(x, x, half),
        lambda: vdm.log_prob(key, x),
    ):
        with pytest.raises(ValueError, match=r"event_shape \(4, 2\), got \(3, 5, 2\)"):
            use()
    with pytest.raises(ValueError, match="both models must be of the same event"):
        sampling.guided(vdm, vdm._replace(event_shape=(2, 2)), 1.0)


def test_single_numbers_and_half_precision():
    """Numbers [n] have the event (); a network may compute in less than the latents have."""
    half = VDM(lambda z, _: (0.5 * z).astype(jnp.bfloat16), GAMMA, (), None, "x")
    for sampler in SAMPLERS:
        found = half.sample(KEY, 5, 3, sampler)
        assert found.shape == (5,) and found.dtype == jnp.float32
    x = jnp.asarray([0.3, -0.7, 0.1], jnp.bfloat16)
    for given in (half.elbo(KEY, x), half.elbo_given(x, jnp.ones(3), jnp.full(3, 0.5))):
        assert all(term.dtype == jnp.float32 for term in given)
    both = (half.elbo(KEY, of).total for of in (x, x.astype(jnp.float32)))
    np.testing.assert_array_equal(*both)


def test_sample_is_the_ancestral_chain_and_reaches_every_sampler():
    plain = VDM_OF_ALL._replace(levels=None, num_steps=None)

    @jax.jit
    def all_of_them(key):
        z_0 = sampling.ancestral(key, wavy, GAMMA, (4, 3), STEPS, "v", "learned")
        images = sampling.to_images(z_0, -5.0, LEVELS)
        drawn = [VDM_OF_ALL.sample(key, 4), vdm_jax.sample(key, VDM_OF_ALL, 4)]
        return drawn, images, plain.sample(key, 4, STEPS), z_0

    drawn, images, x, z_0 = all_of_them(KEY)
    np.testing.assert_array_equal(drawn[0], images)
    np.testing.assert_array_equal(drawn[1], images)
    np.testing.assert_allclose(x, z_0 / alpha_sigma(-5.0)[0], rtol=1e-5)
    assert sampling.default_steps(plain) == 1000

    @jax.jit
    def by_rule(key):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(4))
        rule = Rule("ddim", 3, "angle", 0.5)
        z_0 = sampling.solve(sampling.initial(keys, (3,)), plain, rule, keys)
        return plain.sample(key, 4, 3, "ddim", "angle", 0.5), z_0

    x, z_0 = by_rule(KEY)
    np.testing.assert_allclose(x, z_0 / alpha_sigma(-5.0)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 1, got 0"):
        plain.sample(KEY, 4, 0)
