import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vdm_jax.errors import UserError
from vdm_jax.train import optimizer


def test_published_schedule_warms_up_and_stays():
    rate = optimizer.learning_rate(2e-4, 100)
    np.testing.assert_allclose([rate(0), rate(1), rate(50), rate(100), rate(10**6)],
                               [0, 2e-6, 1e-4, 2e-4, 2e-4], rtol=1e-6)  # fmt: skip


def test_decays_reach_zero_at_the_given_step_and_no_warm_up_starts_at_the_peak():
    for decay, quarter in (("linear", 0.75), ("cosine", 0.853553)):
        rate = optimizer.learning_rate(1.0, 10, decay, 110)
        found = [rate(at) for at in (10, 35, 60, 110, 200)]
        np.testing.assert_allclose(found, [1, quarter, 0.5, 0, 0], atol=1e-6)
    assert float(optimizer.learning_rate(0.5, 0)(0)) == 0.5


def test_weight_decay_spares_biases_and_a_schedule_learned_for_its_shape():
    params = {"gamma": {"w": jnp.ones(2)}, "a": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
    for decay_gamma, expected in ((True, -0.05), (False, 0.0)):
        adamw = optimizer.make(0.1, weight_decay=0.5, decay_gamma=decay_gamma)
        zero = {"gamma": {"w": jnp.zeros(2)}, "a": {"kernel": jnp.zeros(2), "bias": jnp.zeros(2)}}
        updates, _ = adamw.update(zero, adamw.init(params), params)
        np.testing.assert_allclose(updates["a"]["kernel"], -0.05, rtol=1e-6)
        np.testing.assert_allclose(updates["gamma"]["w"], expected, rtol=1e-6)
        np.testing.assert_array_equal(updates["a"]["bias"], 0.0)


def test_muon_steps_as_far_in_every_direction_of_a_kernel():
    """The singular values of an update are nearly equal, whatever those of the gradient.

    Its root mean square is AdamW's, 0.2 of the rate; what is no kernel goes by Adam, and each layer
    of a stack that is scanned goes as it would alone.
    """
    rng = np.random.default_rng(0)
    falling = np.linspace(1.0, 0.05, 16)
    conv, dense = (jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)
                   for shape in ((3, 3, 8, 16), (16, 40)))  # fmt: skip
    conv, dense = conv * falling, dense * falling[:, None]
    by_adam = {
        "stacked": {"bias": rng.normal(size=(2, 5))},
        "gamma": {"kernel": rng.normal(size=(3, 4))},
        "query": {"kernel": rng.normal(size=(8, 2, 4))},  # of attention, with an axis of heads
    }
    grads = {"down": {"conv": {"kernel": conv}, "dense": {"kernel": dense}},
             "conv": {"kernel": conv[1]}, "dense": {"kernel": dense[1]},
             **jax.tree.map(jnp.float32, by_adam)}  # fmt: skip
    params = jax.tree.map(jnp.ones_like, grads)
    muon = optimizer.make(0.1, weight_decay=0.0, name="muon")
    updates, _ = muon.update(grads, muon.init(params), params)
    first = 1.0 + 0.9 * 0.1 / (1.0 - 0.9**2)  # of Nesterov's momentum, and one gradient
    for name in by_adam:
        (update,), (gradient,) = updates[name].values(), grads[name].values()
        np.testing.assert_allclose(update, -0.1 * first * np.sign(gradient), rtol=1e-4)
    for name in ("conv", "dense"):
        alone, gradient = updates[name]["kernel"], grads[name]["kernel"]
        stacked = updates["down"][name]["kernel"]
        np.testing.assert_allclose(stacked[1], alone, rtol=1e-4, atol=1e-7)
        update, gradient = (np.reshape(of, (-1, of.shape[-1])) for of in (alone, gradient))
        values, before = (np.linalg.svd(of, compute_uv=False) for of in (update, gradient))
        assert values[0] / values[-1] < 0.3 * before[0] / before[-1]
        assert 0.7 * 0.02 < np.sqrt(np.mean(update**2)) < 1.3 * 0.02
        assert np.vdot(update, gradient) < 0.0


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(UserError, match=r"optimizer\.name must be one of adamw, muon, got 'sgd'"):
        optimizer.make(0.1, name="sgd")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """A network's own layer, a pytree with attributes, as Equinox has it."""

    weight: Any
    bias: Any


class Params(NamedTuple):
    gamma: Any
    layers: Any


def test_weight_decay_finds_names_in_any_pytree():
    ones = jnp.ones(2)
    adamw = optimizer.make(0.1, weight_decay=0.5, decay_gamma=False)

    def decayed(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jax.jit(adamw.update)(zeros, adamw.init(params), params)[0]

    found = decayed(Params(ones, [Layer(ones, ones)]))
    np.testing.assert_allclose(found.layers[0].weight, -0.05, rtol=1e-6)
    np.testing.assert_array_equal([found.layers[0].bias, found.gamma], 0.0)
    np.testing.assert_allclose(decayed(ones), -0.05, rtol=1e-6)  # without any name
    state = nnx.state(nnx.Linear(2, 2, bias_init=nnx.initializers.ones, rngs=nnx.Rngs(0)))
    found = nnx.to_pure_dict(decayed(state))
    assert np.abs(found["kernel"]).max() > 0.0
    np.testing.assert_array_equal(found["bias"], 0.0)


def test_clipping_bounds_what_adam_sees():
    # With b1 = b2 = 0 Adam's step is grad / (|grad| + eps): eps = 1 shows the size of grad.
    params = {"w": jnp.zeros(4)}
    big = {"w": jnp.full(4, 100.0)}
    clipped = optimizer.make(1.0, (0.0, 0.0), eps=1.0, weight_decay=0.0, clip_norm=2.0)
    updates, _ = clipped.update(big, clipped.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.5, rtol=1e-5)
    plain = optimizer.make(1.0, (0.0, 0.0), eps=1.0, weight_decay=0.0)
    updates, _ = plain.update(big, plain.init(params), params)
    np.testing.assert_allclose(updates["w"], -100 / 101, rtol=1e-5)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="one of none, linear, cosine, got 'step'"):
        optimizer.learning_rate(1.0, 10, "step")
    with pytest.raises(
        ValueError, match=r"decay ends at step 10 .* within the warm-up of 10 steps"
    ):
        optimizer.learning_rate(1.0, 10, "cosine", 10)
