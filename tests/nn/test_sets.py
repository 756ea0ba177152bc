"""The network for sets: what moves along with the points, and what changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import VDM, schedule
from vdm_jax.nn.sets import SetTransformer

ENDS = {"gamma_min": -6.0, "gamma_max": 4.0}
SMALL = ENDS | {"width": 16, "num_blocks": 1, "num_heads": 2}
THERE = np.array([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
GAMMA = jnp.array([-5.0, -1.0, 0.5, 3.0])
THETA = {"b": jnp.linspace(-1.0, 1.0, 4), "a": jnp.arange(8.0).reshape(4, 2, 1)}
Z = np.random.default_rng(0).normal(size=(4, 5, 2)).astype(np.float32)


@functools.cache
def applied(centred=False, periodic=None, head="eps"):
    """The network with parameters of which none is zero, as a function of its arguments."""
    network = SetTransformer(**SMALL, centred=centred, periodic=periodic, head=head)
    of = jax.eval_shape(network.init, jax.random.key(0), Z, GAMMA, THETA)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: 0.4 * rng.normal(size=p.shape).astype(np.float32), of)

    @jax.jit
    def apply(z_t, gamma_t=GAMMA, conditioning=THETA, mask=None):
        return network.apply({"params": params}, z_t, gamma_t, conditioning, mask)

    return apply


OPTIONS = [{}, {"centred": True}, {"periodic": 2.0, "head": "v"}]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_prediction_is_equivariant_and_padding_changes_nothing(options):
    apply = applied(**options)
    order = np.array([3, 0, 4, 2, 1])

    @jax.jit
    def with_slope(z_t, mask):
        predict = lambda z_t: (jnp.sum((out := apply(z_t, mask=mask)) ** 2), out)  # noqa: E731
        (_, out), slope = jax.value_and_grad(predict, has_aux=True)(z_t)
        return out, slope

    plain, _ = with_slope(Z, THERE)
    moved, _ = with_slope(Z[:, order], THERE[:, order])
    np.testing.assert_allclose(moved, plain[:, order], atol=1e-5)
    assert np.all(np.asarray(plain)[~THERE] == 0.0) and np.isfinite(plain).all()
    for fill in (np.nan, np.inf, 1e30):
        found, slope = with_slope(np.where(THERE[..., None], Z, np.float32(fill)), THERE)
        np.testing.assert_array_equal(found, plain)
        assert np.all(np.asarray(slope)[~THERE] == 0.0) and np.isfinite(slope).all()
    # The second set by itself, without padding.
    (alone,) = apply(Z[1:2][:, THERE[1]], GAMMA[1:2], jax.tree.map(lambda x: x[1:2], THETA))
    np.testing.assert_allclose(alone, plain[1][THERE[1]], atol=1e-5)


def test_a_mask_has_one_number_for_each_point_or_set():
    apply, whole = applied(), np.array([1, 0, 1, 1])[:, None]  # sets that are there or not
    each = np.repeat(whole, 5, axis=1)
    wanted = apply(Z, mask=each)
    for mask in (each[..., None], whole[..., None]):
        np.testing.assert_array_equal(apply(Z, mask=mask), wanted)
    with pytest.raises(ValueError, match=r"mask has shape \(4, 5, 2\); wanted one number for each"):
        apply(Z, mask=np.ones((4, 5, 2)))


@pytest.mark.parametrize("options", OPTIONS)
def test_the_prediction_depends_on_the_other_points_their_number_gamma_and_each_condition(options):
    apply = applied(**options)
    plain, moved = apply(Z), np.array(Z)
    moved[:, 0, 0] += 0.3
    # Each point twice: any mean over the points is the same, and their number tells.
    others = [apply(moved), apply(Z, GAMMA + 0.5), apply(np.concatenate([Z, Z], axis=1))]
    others += [apply(Z, conditioning=THETA | {name: THETA[name] + 0.5}) for name in THETA]
    for other in others:
        assert np.abs(plain[:, 1:] - other[:, 1:5]).max() > 0.01


def test_positions_on_a_torus_are_the_same_after_a_turn():
    apply = applied(periodic=2.0, head="v")
    turns = np.random.default_rng(2).integers(-2, 3, Z.shape)
    period = 2.0 * schedule.alpha(GAMMA)[:, None, None]
    np.testing.assert_allclose(apply(Z + turns * period), apply(Z), atol=3e-4)
    assert np.abs(apply(Z + 0.4 * period) - apply(Z)).max() > 0.01
    for options in ({"head": "eps"}, {"head": "v", "centred": True}):
        with pytest.raises(ValueError, match="a periodic set needs head='v' and no centre of mass"):
            applied(periodic=2.0, **options)


@pytest.mark.parametrize("head", ["eps", "x", "v", "score"])
def test_a_centred_prediction_has_mean_zero_and_ignores_translations(head):
    apply = applied(centred=True, head=head)
    plain = apply(Z, mask=THERE)
    np.testing.assert_allclose(np.sum(plain, axis=1), 0.0, atol=1e-5)
    moved = Z + np.float32([[[2.0, -1.0]]])
    np.testing.assert_allclose(apply(moved, mask=THERE), plain, atol=1e-5)


@pytest.mark.parametrize(("head", "gamma"), [("eps", 4.0), ("v", -6.0)])
def test_the_bound_of_the_centre_of_mass_of_a_centred_model(head, gamma):
    """A point alone is its centre: below log N(x; 0, 1 + e^gamma) by sigmoid(gamma) / 2."""
    denoise = lambda z_t, gamma_t: jnp.zeros_like(z_t)  # noqa: E731
    np.testing.assert_allclose(applied(centred=True, head=head)(Z[:, :1]), 0.0, atol=1e-6)
    vdm = VDM(denoise, schedule.linear(-6.0, 4.0), (1, 2), None, head)
    total = jax.jit(lambda key: vdm.elbo(key, jnp.full((40_000, 1, 2), 0.7)).total)
    nats = total(jax.random.key(0)) / 2
    var = 1.0 + np.exp(gamma)
    want = 0.5 * (np.log(2 * np.pi * var) + 0.7**2 / var + jax.nn.sigmoid(gamma))
    error = nats.std() / len(nats) ** 0.5
    assert abs(nats.mean() - want) < 4 * error < 0.11


def test_the_density_of_a_periodic_model_is_one_on_the_whole_space():
    """Of v = 0, which has every period, it is N(0, 1 + e^gamma_0)."""
    vdm = VDM(lambda z_t, gamma_t: 0.0 * z_t, schedule.linear(-9.0, 6.0), (1,), None, "v")
    x = 3.5 * (np.arange(100.0, dtype=np.float32)[:, None] + 0.5) / 100
    solver, key = {"trace": "exact", "rtol": 1e-4, "atol": 1e-4}, jax.random.key(0)
    log_prob = jax.jit(lambda x: vdm.log_prob(key, x, **solver))
    for start, nats in ((-1.75, 1.429), (0.0, 2.961)):  # of 3.5 values: log(3.5) = 1.253
        assert abs(-log_prob(x + start).mean() - nats) < 5e-3


@pytest.mark.parametrize("head", ["eps", "v"])
def test_a_fresh_network_predicts_z_t_as_eps_and_zero_as_v(head):
    network = SetTransformer(**SMALL, head=head)
    start = jax.jit(lambda key: network.init_with_output(key, Z, GAMMA, mask=THERE)[0])
    got = start(jax.random.key(0))
    want = Z * THERE[..., None] if head == "eps" else np.zeros_like(Z)
    np.testing.assert_array_equal(got, want)


def test_another_head_and_conditions_of_another_batch_are_refused():
    for options, given, said in (
        ({"head": "q"}, None, "SetTransformer head must be one of eps, x, v, score, got 'q'"),
        ({}, jnp.ones((len(Z) + 1, 2)), f"conditioning has {len(Z) + 1} rows for {len(Z)} sets"),
    ):
        with pytest.raises(ValueError, match=said):
            jax.eval_shape(
                SetTransformer(**SMALL, **options).init, jax.random.key(0), Z, GAMMA, given
            )
