"""Arguments at the edge of sense: a ValueError that names the argument, or lists for arrays."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import bounds, flow, loss, pixels, process, sampling, schedule, timestep
from vdm_jax.vdm import VDM

KEY = jax.random.key(0)
LINE = schedule.linear(-8.0, 5.0)
ONES, ZEROS, HALF = np.ones((2, 3), np.float32), np.zeros((2, 3), int), np.full(2, 0.5)


def twice(z_t, gamma_t):
    """Some denoiser."""
    return 2.0 * z_t


def test_lists_are_taken_for_arrays():
    def all_of_them(x, n, t):
        return [
            process.marginal(x, t),
            process.transition(x, -1.0, 1.0),
            loss.reconstruction(n, x, -5.0, 4),
            loss.diffusion(x, x, t, twice, LINE),
            timestep.grid(t, 4),
            timestep.proposal([1.0, 2.0]).at(t),
            schedule.cosine()(t),
            sampling.to_images(x, -5.0, 4),
        ]

    lists = [[1.0, 2.0]], [[1, 2]], [0.5]
    listed, arrays = all_of_them(*lists), all_of_them(*map(jnp.array, lists))
    for one, other in zip(jax.tree.leaves(listed), jax.tree.leaves(arrays), strict=True):
        np.testing.assert_array_equal(one, other)


def elbo(images=ZEROS, denoise=twice, gamma=LINE, **options):
    return lambda: loss.elbo(KEY, images, denoise, gamma, **options)


def diffusion(x=ONES, eps=ONES, t=HALF, denoise=twice, gamma=LINE, **options):
    return lambda: loss.diffusion(x, eps, t, denoise, gamma, **options)


def ancestral(shape=(2, 3), num_steps=2):
    return lambda: sampling.ancestral(KEY, twice, LINE, shape, num_steps)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        # the bound
        *[(elbo(levels=n), "levels must be an integer of at") for n in (0, True, "256")],
        (elbo(levels=2**17), "levels must be at most 65536"),
        *[(elbo(num_steps=n), "num_steps must be an integer .*; cont.*None") for n in (0, 1.5)],
        (elbo(num_steps=2**24), "num_steps = 16777216 is lost in the rounding of float32"),
        (elbo(3), "the shape of images must be a tuple of at least one size, got"),
        (elbo(ZEROS + 0j), "images must be integers .* complex"),
        (elbo(denoise=lambda z, g: None), "the prediction has shape NoneType"),
        (elbo(denoise=lambda z, g: z[:, 0]), r"prediction has shape \(2,\), but z_t has \(2, 3\)"),
        (elbo(gamma=lambda t: t.sum()), r"gamma must map \(1,\) to \(1,\), but returned \(\)"),
        (elbo(gamma=lambda t: 5 - 9 * t), "gamma must rise with t"),
        (
            elbo(gamma=schedule.linear(-80.0, 80.0), num_steps=1),
            "gamma must rise with t, and by so little in a step that exp of it is a float32",
        ),
        (elbo(timesteps="x"), "timesteps must be one of uniform, antithetic, got 'x'"),
        (lambda: loss.to_data(3, 4), r"images must be \[batch, \*event\], got one number, 3"),
        (diffusion(eps=ONES[:, :1]), r"x \(2, 3\) and eps \(2, 1\) differ in shape"),
        (diffusion(t=HALF[:, None]), r"t must be \[2\], one time per example, got shape \(2, 1\)"),
        (diffusion(t=np.array([0.5, 1.5])), "t must lie in .*1.5"),
        (
            lambda: loss.reconstruction(ZEROS, ONES[:1], 0.0, 4),
            r"images \(2, 3\) and eps_0 \(1, 3\) differ in shape",
        ),
        (lambda: loss.bits_per_dim(1.0, 3), "event_shape must be a tuple of at least one size"),
        (lambda: loss.bits_per_dim(1.0, (3, 0)), "each size of event_shape must be an integer"),
        # the process, and samples
        (lambda: process.transition(ONES, 1.0, -1.0), "gamma_s must not be above gamma_t"),
        (lambda: process.reverse(ONES, ONES, np.nan, 1.0), "gamma_s must not be above gamma_t"),
        (lambda: process.simulate(KEY, ONES, []), r"gammas must be \[num\], at least one"),
        (lambda: sampling.ancestral_step(ONES, ONES, twice, 1.0, 0.0), "gamma_s must not be above"),
        (ancestral(num_steps=0), "num_steps must be an integer of"),
        (ancestral(3), "shape must be a tuple of at least one size"),
        (ancestral((-1, 2)), "each size of shape must be an integer of at least 0"),
        # pixels
        (lambda: pixels.log_prob(ZEROS, ONES[:1], -5.0, 4), "images .* and z_0_rescaled .* differ"),
        (
            lambda: pixels.log_prob(ZEROS, ONES, np.zeros(3), 4),
            r"gamma of shape \(3,\) does not go",
        ),
        (lambda: pixels.expected_log_prob(ZEROS, np.zeros(3), 8), r"gamma_0 of shape \(3,\) does"),
        # schedules
        (lambda: schedule.linear(5.0, -13.3), "gamma_min must be below gamma_max .*got gamma_min"),
        (lambda: schedule.linear(-np.inf, 5.0), "gamma_min must be finite"),
        (lambda: schedule.cosine(s=-0.1), r"s must be at least 0, got -0\.1"),
        (lambda: schedule.beta_linear(beta_max=np.inf), "need 0 <= beta_min < beta_max < inf, got"),
        (
            lambda: schedule.beta_linear(-13.3, 11.0),
            r"gamma_max = 11\.0 is beyond .* gamma\(1\) = 10\.0500",
        ),
        (lambda: schedule.ddpm_betas(-1), "num_latents must be an integer of at least 1"),
        (lambda: schedule.from_betas([0.5]), r"a table \[N\] with N >= 2, got shape"),
        *[
            (
                lambda bad=bad: schedule.from_betas([0.1, bad, 0.2]),
                rf"betas must lie strictly .* got betas\[1\] = {bad}",
            )
            for bad in (0.0, 1.0, math.nan)
        ],
        (
            lambda: schedule.from_alpha_bar([0.9, 0.5, 0.6]),
            r"alpha_bar\[1\] = 0\.5 and alpha_bar\[2\] = 0\.6; is the table reversed",
        ),
    ],
)
def test_what_would_give_a_wrong_number_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)


FINE = VDM(twice, LINE, (3,), 256, num_steps=2)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: pixels.encode(x, 256),
        lambda x: pixels.log_prob(x, ONES, -5.0, 256),
        lambda x: pixels.expected_log_prob(x, -5.0, 256),
        lambda x: pixels.dequantize(KEY, x, 256, -5.0),
        lambda x: loss.to_data(x, 256),
        lambda x: loss.reconstruction(x, ONES, -5.0, 256),
        lambda x: loss.expected_reconstruction(x, -5.0, 256),
        lambda x: loss.elbo(KEY, x, twice, LINE),
        lambda x: FINE.elbo(KEY, x),
        lambda x: FINE.elbo_given(x, ONES, HALF),
        lambda x: bounds.chain(FINE, KEY, x),
        lambda x: bounds.consistency(FINE, KEY, x),
        lambda x: flow.dequantized_nats(FINE, KEY, x),
    ],
)
def test_floats_for_integers_are_refused_also_inside_jit(call):
    """Also where they are whole: of data in [0, 1] or [-1, 1] some are."""
    for x in (0.3 * ONES, 0.0 * ONES, jnp.asarray(ONES, jnp.bfloat16)):
        for run in (call, jax.jit(call)):
            with pytest.raises(ValueError, match=r"must be integers .*float.* or levels=None for"):
                run(x)


def test_inside_jit_nothing_is_looked_at():
    """The values are not known there; at the same good ones the numbers are the same."""
    call = jax.jit(lambda t: loss.diffusion(ONES, ONES, t, twice, LINE, 4))
    expected = loss.diffusion(ONES, ONES, HALF, twice, LINE, 4)
    np.testing.assert_allclose(call(HALF), expected, rtol=1e-6)
    assert np.shape(call(HALF * 4)) == (2,)
