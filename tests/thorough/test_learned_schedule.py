"""The schedule that `experiments.pictures` learns for a trained network."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import pictures
from vdm_jax.run import build, restore


def test_a_few_steps_lower_the_mean_square_towards_the_least(digits_run, monkeypatch):
    monkeypatch.setattr(pictures, "STEPS", 60)
    of = restore.from_workdir(digits_run, build.make_mesh())
    learned, costs = pictures.learn_schedule(of), pictures.measure(of, jax.random.key(1))
    t = np.linspace(0.0, 1.0, 101)
    line, shape = (np.asarray(gamma(jnp.asarray(t))) for gamma in (of.vdm.gamma, learned))
    np.testing.assert_allclose(shape[[0, -1]], line[[0, -1]], rtol=1e-5)
    (before, least), (after, _) = (pictures.spread(costs, gamma, t) for gamma in (line, shape))
    excess = [np.trapezoid(rms**2, t) - least**2 for rms in (before, after)]
    assert -0.02 * least**2 < excess[1] < 0.6 * excess[0]
