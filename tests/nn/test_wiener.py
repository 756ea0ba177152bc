"""Wiener filters, against SciPy's cosine transform and the closed form of a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.fft import dctn, idctn

from vdm_jax.nn.pyramid import Pyramid
from vdm_jax.nn.wiener import WienerFilters

SHAPE, AXES = (4, 6, 3), (1, 2, 3)
CONTRASTS = (0.1, 2.0)
GAMMA = np.array([-6.0, -1.0, 3.0])
PARAMS = {
    "scale": np.log([0.02, 0.001, 0.0005]), "power": np.log([1.1, 1.2, 0.9]),
    "cutoff": np.log([0.03, 0.1, 0.2]), "floor": np.log([1e-4, 2e-4, 3e-4]),
}  # fmt: skip


def spectrum() -> np.ndarray:
    """lambda_f by its formula, written out."""
    found = np.zeros(SHAPE)
    for i, j, c in np.ndindex(SHAPE):
        a, p, f0, n = (np.exp(PARAMS[name][c]) for name in ("scale", "power", "cutoff", "floor"))
        found[i, j, c] = a / ((i / 4) ** 2 + (j / 6) ** 2 + f0**2) ** p + n
    return found


def filtered(z_t):
    """The filters of z_t in float64: the predictions of eps, and z_t whitened."""
    with jax.enable_x64(True):
        params = {name: jnp.asarray(value) for name, value in PARAMS.items()}
        return WienerFilters(CONTRASTS).apply({"params": params}, jnp.asarray(z_t), GAMMA)


def test_each_filter_weighs_each_cosine_by_its_formula():
    z_t = np.random.default_rng(0).normal(size=(3, *SHAPE))
    predictions, white = filtered(z_t)
    variance = (1 / (1 + np.exp(GAMMA)))[:, None, None, None]  # alpha^2; sigma^2 is the rest
    z_f = dctn(z_t, axes=AXES, norm="ortho")
    for k, contrast in enumerate(CONTRASTS):
        total = variance * contrast * spectrum() + 1 - variance
        expected = idctn(np.sqrt(1 - variance) * z_f / total, axes=AXES, norm="ortho")
        np.testing.assert_allclose(predictions[..., k], expected, rtol=1e-9, atol=1e-12)
    whitened = z_f / np.sqrt(variance * spectrum() + 1 - variance)
    np.testing.assert_allclose(dctn(white, axes=AXES, norm="ortho"), whitened, rtol=1e-8)


def test_a_pyramid_begins_as_the_mean_of_its_filters():
    sizes = {"channels": 8, "multipliers": (1,), "blocks": (1,)}
    network = Pyramid(-10.0, 5.0, **sizes, contrasts=CONTRASTS, on_levels=False)
    z_t = jax.random.normal(jax.random.key(0), (3, 4, 8, 3))
    gamma_t = jnp.asarray(GAMMA, jnp.float32)
    found, variables = jax.jit(network.init_with_output)(jax.random.key(1), z_t, gamma_t)
    filters = {"params": variables["params"]["filters"]}
    expected, _ = WienerFilters(CONTRASTS).apply(filters, z_t, gamma_t)
    np.testing.assert_allclose(found, expected.mean(axis=-1), rtol=1e-6, atol=1e-6)
