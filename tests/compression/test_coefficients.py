"""Files of models with a schedule of each element, of pixels or of coefficients of a transform."""

import jax
import jax.numpy as jnp
import known
import numpy as np
import pytest

from vdm_jax import VDM, compression, pixels, schedule, transforms
from vdm_jax.compression import chain, steps
from vdm_jax.transforms import Coefficients

HAAR = transforms.haar(1)
MEAN = known.probabilities() @ np.asarray(pixels.level_values(known.LEVELS))
VAR = known.probabilities() @ np.square(np.asarray(pixels.level_values(known.LEVELS)) - MEAN)
BANDS = np.kron([[0.0, 1.0], [1.5, 0.5]], np.ones((2, 2)))[..., None]


def each(t):
    """Four schedules, one for each band of one level of Haar."""
    return -8.0 + BANDS + (13.0 - BANDS) * t[:, None, None, None] ** (1.0 + 0.5 * BANDS)


def of(levels, gamma=each, **fields) -> known.Known:
    """Returns the model with the best linear denoiser, of the coefficients if there are any."""

    def bind(mean):
        def denoise(z, gamma_t):
            gamma_t = gamma_t.reshape(*gamma_t.shape, *(1,) * (z.ndim - gamma_t.ndim))
            alpha, var = schedule.alpha(gamma_t), schedule.variance(gamma_t)
            x = jnp.broadcast_to(mean, z.shape)
            x = levels.transform.forward(x) if isinstance(levels, Coefficients) else x
            x = x + alpha * VAR / (alpha**2 * VAR + var) * (z - alpha * x)
            return (x, jax.nn.sigmoid(z)) if "reverse_var" in fields else x

        return VDM(denoise, gamma, known.SHAPE, levels, "x", **fields)

    return known.Known(bind, np.asarray(MEAN), {})


@pytest.mark.parametrize(
    ("model", "placed"),
    [
        (of(Coefficients(known.LEVELS, HAAR)), True),
        (of(Coefficients(known.LEVELS, HAAR), reverse_var="learned"), False),
        (of(Coefficients(known.LEVELS, HAAR), schedule.linear(-8.0, 5.0)), True),
        (of(known.LEVELS), False),
    ],
    ids=["bands", "learned", "one_schedule", "pixels"],
)
def test_images_come_back_and_cost_the_bound(model, placed):
    images = known.images(240)
    content, summary = model.compress(images, 20, blocks=60, placed=placed)
    back, _ = model.decompress(content)
    np.testing.assert_array_equal(back, images)
    assert abs(summary.coding_loss) < 3e-3  # also of the rounding of W^T z_0
    assert abs(summary.net - summary.bound) < 4 * summary.excess_error + 2e-3 * summary.bound


def test_the_digests_tell_transforms_and_paths_apart():
    haar, dct = (of(Coefficients(known.LEVELS, w)) for w in (HAAR, transforms.dct()))
    digests = {compression.network.digest(m.vdm, m.params) for m in (haar, dct, of(known.LEVELS))}
    assert len(digests) == 3
    content, _ = haar.compress(known.images(4), 4)
    with pytest.raises(compression.VdmzError, match="was made with another model"):
        dct.decompress(content)

    def made(gamma, levels=haar.vdm.levels):
        with jax.enable_x64(True):
            return chain.make(steps.equal(gamma, 4), levels, 2, known.SHAPE).digest

    assert len({made(each), made(lambda t: each(t)[:, ::-1]), made(each, known.LEVELS)}) == 3


def test_too_many_schedules_are_refused():
    many = lambda t: t[:, None] + jnp.arange(100.0)  # noqa: E731
    with pytest.raises(ValueError, match="100 different schedules, of which 64 are coded at most"):
        chain.make(steps.equal(many, 2), 4, 2, (100,))
    some = lambda t: t[:, None] + jnp.arange(40.0) / 1000  # noqa: E731
    said = "num_steps times grid times the 40 schedules of gamma is 160000, may be 131072"
    with pytest.raises(ValueError, match=said):
        chain.make(steps.equal(some, 2000), 4, 2, (40,))
