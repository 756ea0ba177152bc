import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc

from vdm_jax.nn import gamma as monotone


def shaken(module, key, scale=1.0):
    """Parameters far from their initial values, of either sign."""
    params = module.init(jax.random.key(0), jnp.zeros(3))["params"]
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + scale * jax.random.normal(k, leaf.shape)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, noisy)


@settings(max_examples=9, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), kind=st.sampled_from(["scalar", "monotone", "unpinned"]))
def test_increases_with_t_whatever_the_parameters(seed, kind):
    module = monotone.make(kind.replace("unpinned", "monotone"), -13.3, 5.0, kind != "unpinned")
    params = shaken(module, jax.random.key(seed), 5.0)
    gamma = module.apply({"params": params}, jnp.linspace(0.0, 1.0, 101))
    assert np.all(np.diff(gamma) > -1e-5 * np.abs(gamma).max())
    assert gamma[-1] > gamma[0]


@pytest.mark.parametrize("learn", [True, False])
def test_the_pinned_network_starts_and_ends_where_it_should(learn):
    module = monotone.MonotoneGamma(-13.3, 5.0, learn_end_points=learn)
    params = shaken(module, jax.random.key(1), 3.0)
    ends = module.apply({"params": params}, jnp.array([0.0, 1.0]))
    wanted = [-13.3, 5.0]
    if learn:
        start = params["l1"]["bias"][0]
        wanted = [start, start + abs(params["l1"]["kernel"][0, 0])]
    np.testing.assert_allclose(ends, wanted, rtol=1e-6)


def test_end_points_that_are_not_learned_get_no_gradient_and_the_curve_does():
    module = monotone.MonotoneGamma(-8.0, 5.0, learn_end_points=False)
    params = shaken(module, jax.random.key(2), 1.0)

    def at(t):
        return lambda p: module.apply({"params": p}, jnp.array([t]))[0]

    for t in (0.0, 1.0):
        for leaf in jax.tree.leaves(jax.grad(at(t))(params)):
            np.testing.assert_allclose(leaf, 0.0, atol=1e-5)
    assert np.abs(jax.grad(at(0.3))(params)["l3"]["kernel"]).max() > 1e-6


def test_derivative_in_t_against_finite_differences():
    with jax.enable_x64(True):
        module = monotone.MonotoneGamma(-13.3, 5.0)
        params = jax.tree.map(lambda p: p.astype(jnp.float64), shaken(module, jax.random.key(3)))
        t = jnp.linspace(0.05, 0.95, 7)

        def gamma(t):
            return module.apply({"params": params}, t)

        _, derivative = jax.jvp(gamma, (t,), (jnp.ones_like(t),))
        numeric = (gamma(t + 1e-5) - gamma(t - 1e-5)) / 2e-5
        assert derivative.dtype == jnp.float64
        np.testing.assert_allclose(derivative, numeric, rtol=1e-7)


@pytest.mark.parametrize("kind", ["fixed", "scalar", "monotone"])
def test_starts_linear_between_the_configured_end_points_and_keeps_any_shape(kind):
    module = monotone.make(kind, -13.3, 5.0)
    t = jnp.array([[0.0, 0.25, 1.0]])
    variables = module.init(jax.random.key(0), t)
    gamma = module.apply(variables, t)
    assert gamma.shape == t.shape
    np.testing.assert_allclose(gamma[0, [0, 2]], [-13.3, 5.0], rtol=1e-5)
    # The network's share is small before training.
    np.testing.assert_allclose(gamma[0, 1], -13.3 + 0.25 * 18.3, atol=0.05)
    assert module.apply(variables, jnp.asarray(0.25)).shape == ()


@pytest.mark.parametrize("learn", [True, False])
def test_a_path_rises_from_one_end_to_the_other_in_each_coefficient(learn):
    module = monotone.make("path", -13.3, 5.0, learn_end_points=learn, event_shape=(3, 2))
    t = jnp.linspace(0.0, 1.0, 101)
    first = module.apply(module.init(jax.random.key(0), t), t)
    np.testing.assert_array_equal(first, jnp.broadcast_to(first[:, :1, :1], (101, 3, 2)))
    params = shaken(module, jax.random.key(5), 4.0)
    gamma = module.apply({"params": params}, t)
    ends = [-13.3, 5.0]
    if learn:
        ends = [params["l1"]["b"][0], params["l1"]["b"][0] + abs(params["l1"]["w"][0])]
    np.testing.assert_allclose(gamma[jnp.array([0, -1])].min((1, 2)), ends, rtol=2e-6)
    np.testing.assert_allclose(gamma[jnp.array([0, -1])].max((1, 2)), ends, rtol=2e-6)
    assert np.all(np.diff(gamma, axis=0) > -1e-5)
    assert np.ptp(gamma[50]) > 1.0
    with jax.enable_x64(True):  # without rounding, which is what may fall
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        exact = module.apply({"params": wide}, jnp.linspace(0.0, 1.0, 1001))
        assert np.all(np.diff(exact, axis=0) > 0.0)


def test_the_curves_of_a_path_are_sums_of_beta_distributions_and_mix_in_the_given_parts():
    with jax.enable_x64(True):
        module = monotone.PathGamma(-13.3, 5.0, (2,), 2, learn_end_points=False, degree=5)
        rises = np.array([[0.1, 0.4, 0.2, 0.05, 0.25], [0.5, 0.1, 0.1, 0.1, 0.2]])
        parts = np.array([[0.3, 0.7], [0.9, 0.1]])
        params = {"curves": jnp.log(rises), "mixture": jnp.log(parts)}
        t = jnp.linspace(0.0, 1.0, 7)
        gamma = lambda t: module.apply({"params": params}, t)  # noqa: E731
        # The k-th of n ordered uniform numbers is below t with probability I_t(k, n - k + 1).
        curves = sum(rises[:, [k - 1]] * betainc(k, 6 - k, t) for k in range(1, 6))
        np.testing.assert_allclose(gamma(t), -13.3 + 18.3 * (parts @ curves).T, rtol=1e-12)
        _, slope = jax.jvp(gamma, (t[1:-1],), (jnp.ones(5),))
        numeric = (gamma(t[1:-1] + 1e-6) - gamma(t[1:-1] - 1e-6)) / 2e-6
        np.testing.assert_allclose(slope, numeric, rtol=1e-7)


CONDITION = np.random.default_rng(1).normal(size=(4, 5))


def conditional(seed, scale=1.5, learn=True):
    """A path of an event [3, 2] and conditions of five numbers, of any parameters."""
    module = monotone.PathGamma(-13.3, 5.0, (3, 2), learn_end_points=learn, conditions=5)
    return module, shaken(module, jax.random.key(seed), scale)


def test_a_condition_moves_the_logits_of_the_weights_by_a_linear_map(x64):
    module, params = conditional(0)
    t = jnp.linspace(0.1, 0.7, 4)
    plain = monotone.PathGamma(-13.3, 5.0, (3, 2))
    moves = CONDITION @ params["of_condition"] @ params["moves"].reshape(4, -1)
    found = module.apply({"params": params}, t, CONDITION)
    for b, moved in enumerate(np.asarray(moves).reshape(4, 3, 2, 4)):
        own = {name: params[name] for name in ("curves", "l1")}
        own["mixture"] = params["mixture"] + moved
        alone = plain.apply({"params": own}, t)
        np.testing.assert_allclose(found[b], alone[b], rtol=1e-12)
    assert np.ptp(module.apply({"params": params}, t[:1], CONDITION), axis=0).max() > 0.5


def test_without_weights_or_without_a_condition_it_is_the_path_to_the_bit():
    module, params = conditional(1)
    plain = monotone.PathGamma(-13.3, 5.0, (3, 2))
    own = {name: params[name] for name in ("curves", "l1", "mixture")}
    t = jnp.linspace(0.0, 1.0, 4)
    wanted = plain.apply({"params": own}, t)
    np.testing.assert_array_equal(module.apply({"params": params}, t), wanted)
    np.testing.assert_array_equal(module.apply({"params": params}, t, 0.0 * CONDITION), wanted)
    deaf = params | {"moves": jnp.zeros_like(params["moves"])}
    np.testing.assert_array_equal(module.apply({"params": deaf}, t, CONDITION), wanted)
    started = module.init(jax.random.key(0), t)["params"]
    assert not np.any(started["moves"]) and np.all(started["of_condition"] != 0.0)


@pytest.mark.parametrize("learn", [True, False])
def test_all_conditions_have_the_same_ends_to_the_bit_and_rise_between_them(learn):
    for seed in range(3):
        module, params = conditional(seed, 4.0, learn)
        at = lambda t, params=params, module=module: module.apply(  # noqa: E731
            {"params": params}, jnp.asarray([t]), 3.0 * CONDITION
        )
        for t in (0.0, 1.0):
            first = module.apply({"params": params}, jnp.asarray([t]))[0, 0, 0]
            np.testing.assert_array_equal(at(t), jnp.full((4, 3, 2), first))
        with jax.enable_x64(True):  # without rounding, which is what may fall
            wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
            times = jnp.linspace(0.0, 1.0, 201)[:, None]
            one = lambda t: module.apply({"params": wide}, t, CONDITION)  # noqa: B023, E731
            assert np.all(np.diff(jax.vmap(one)(times), axis=0) > 0.0)


def test_the_gradient_for_the_map_of_the_condition_against_finite_differences(x64):
    module, params = conditional(2)
    rng = np.random.default_rng(0)
    part, t = rng.normal(size=(4, 3, 2)), jnp.array([0.1, 0.4, 0.6, 0.9])

    def value(params):
        gamma = lambda t: module.apply({"params": params}, t, CONDITION)  # noqa: E731
        at, slope = jax.jvp(gamma, (t,), (jnp.ones(4),))
        return jnp.sum(part * at) + jnp.sum(jnp.square(slope))  # as in the bound

    found = jax.grad(value)(params)
    for name in ("of_condition", "moves"):
        step = 1e-5 * rng.normal(size=params[name].shape)
        ahead, back = (value(params | {name: params[name] + s * step}) for s in (1.0, -1.0))
        assert 2.0 * np.sum(found[name] * step) == pytest.approx(float(ahead - back), rel=1e-6)
        assert abs(ahead - back) > 1e-5


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="conditional_path, got 'cosine'"):
        monotone.make("cosine", -13.3, 5.0)
    with pytest.raises(
        ValueError,
        match=r"gamma_min must be below gamma_max .*got gamma_min = 5.0 and gamma_max = -13.3",
    ):
        monotone.make("fixed", 5.0, -13.3)
    module = monotone.MonotoneGamma(-1.0, 1.0, pinned=False, learn_end_points=False)
    with pytest.raises(ValueError, match="needs pinned=True"):
        module.init(jax.random.key(0), jnp.zeros(2))
    for kind, conditions in (("path", 2), ("conditional_path", 0)):
        with pytest.raises(ValueError, match=f"is of conditions, got {kind} of {conditions}"):
            monotone.make(kind, -1.0, 1.0, event_shape=(3,), conditions=conditions)
    path = monotone.make("conditional_path", -1.0, 1.0, event_shape=(3,), conditions=2)
    for shape, times in (((2,), 1), ((4, 3), 1), ((4, 2), 5)):
        with pytest.raises(ValueError, match=r"the condition must be \[batch, 2\] for the times"):
            path.init(jax.random.key(0), jnp.zeros(times), jnp.zeros(shape))
