"""Sets of points: what the ODE says of a centred network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import schedule
from vdm_jax.nn.sets import SetTransformer
from vdm_jax.vdm import VDM


@pytest.mark.parametrize(
    ("head", "variance"), [("eps", 1.0 + np.exp(3.0)), ("v", 1.0 + np.exp(-6.0))]
)
def test_the_density_of_the_centre_of_mass_of_a_centred_model(head, variance):
    """Of three points u = sum over sqrt(3) is N(0, variance) in each coordinate."""
    network = SetTransformer(
        -6.0, 3.0, width=16, num_blocks=1, num_heads=2, head=head, centred=True
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 3, 2)).astype(np.float32) + np.float32([[[0.0]], [[3.0]]])
    of = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(2))["params"]
    params = jax.tree.map(lambda p: 0.4 * rng.normal(size=p.shape).astype(np.float32), of)

    def denoise(z_t, gamma_t):
        return network.apply({"params": params}, z_t, gamma_t)

    vdm = VDM(denoise, schedule.linear(-6.0, 3.0), (3, 2), levels=None, kind=head)
    one, other = vdm.log_prob(x=jnp.asarray(x), rtol=1e-4, atol=1e-4)
    squares = x.sum(axis=1) ** 2 / 3.0
    want = -0.5 * (squares[1] - squares[0]).sum() / variance
    assert abs(want) > 0.5 and other - one == pytest.approx(want, abs=3e-3)
