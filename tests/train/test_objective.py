"""Training on a weighted loss, and at times that adapt, against their parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import assert_close, assert_equal, batches, mlp_model, one_batch

from vdm_jax import loss, timestep, weighting
from vdm_jax.train import objective, schedule_variance, sharding, step
from vdm_jax.train.checkpoint import Checkpoints

KEY = jax.random.key(5)
MLP = mlp_model()


def terms_and_weight(params, batch, key, weight):
    """The bound's terms with the keys of a step, and w at its times."""
    key_elbo, key_dropout = jax.random.split(jax.random.fold_in(key, 0))
    vdm = MLP.bind(params, batch["conditioning"], key_dropout)
    _, _, t = loss.draw(key_elbo, batch["images"].shape)
    return vdm.elbo(key_elbo, batch["images"]), weight(vdm.gamma(t))


def test_a_step_descends_the_weighted_loss_and_reports_the_bound():
    batch, weight = one_batch(), weighting.sigmoid()
    training = step.Training(MLP._replace(weight=weight), optax.sgd(0.1), 0.9, KEY)
    state = jax.jit(lambda: step.init_state(training.model, training.optimizer, KEY))()
    new, metrics = jax.jit(lambda *args: step.update(*args, training))(state, batch)

    def objective_of(params):
        terms, factor = terms_and_weight(params, batch, KEY, weight)
        nats = terms.reconstruction + terms.prior + factor * terms.diffusion
        return loss.bits_per_dim(nats.mean(), (2, 2, 1)), terms

    grads, terms = jax.jit(jax.grad(objective_of, has_aux=True))(state.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
    assert_close(new.params, expected, 1e-4, 1e-5)
    bpd = loss.bits_per_dim(terms.total.mean(), (2, 2, 1))
    np.testing.assert_allclose(metrics["bpd"], bpd, rtol=1e-5)


def test_the_density_is_in_proportion_to_the_deviation_of_the_losses_in_each_bin():
    seen, bins = objective.nothing_seen(), objective.BINS
    np.testing.assert_allclose(seen.proposal.density, 1.0, rtol=1e-5)
    deviation = 1.0 + 9.0 * (np.arange(bins) >= bins // 2)
    t = jnp.asarray((np.arange(200 * bins) + 0.5) / (200 * bins), jnp.float32)
    k = np.arange(200 * bins) // 200
    for _ in range(60):
        losses = 300.0 + deviation[k] * (-1.0) ** np.arange(k.size)
        seen = seen.then(objective.Seen.of(t, jnp.asarray(losses, jnp.float32)))
    expected = timestep.proposal(deviation, 0.1).density
    np.testing.assert_allclose(seen.proposal.density, expected, rtol=0.02)


def test_times_that_adapt_leave_the_gradient_s_expectation_and_see_the_loss_itself():
    """By the midpoint rule over u, with one noise: against the same over uniform times."""
    count, batch = 4000, {k: np.repeat(v[:1], 4000, axis=0) for k, v in one_batch(1).items()}
    model = MLP._replace(bind=lambda params, given=None, _=None: MLP.bind(params, given, None))
    params = jax.jit(MLP.init)(KEY)
    drawn = loss.draw(KEY, (1, 2, 2, 1))[:2]
    u = (jnp.arange(count) + 0.5) / count
    rising = jnp.linspace(0.0, 50.0, objective.BINS)
    rising = objective.Seen(jnp.full(objective.BINS, 30.0), 0.0 * rising, 30.0 * rising**2)
    found = []
    for seen in (objective.nothing_seen(), rising):
        of = objective.gradient(model, seen)
        original, loss.draw = (
            loss.draw,
            lambda *_: (*(jnp.tile(e, (count, 1, 1, 1)) for e in drawn), u),
        )
        try:
            found.append(jax.jit(of)(params, batch, KEY))
        finally:
            loss.draw = original
    (plain, (terms, flat)), (grads, (importance, steep)) = found
    assert_close(grads, plain, 2e-2, 2e-3)
    for a, b in zip(terms, importance, strict=True):
        np.testing.assert_allclose(a.mean(), b.mean(), rtol=1e-3)
    np.testing.assert_allclose(flat.draws, count / objective.BINS, atol=1.0)
    np.testing.assert_allclose(
        steep.draws, count / objective.BINS * rising.proposal.density, atol=2
    )
    np.testing.assert_allclose(steep.sums / steep.draws, flat.sums / flat.draws, rtol=0.05)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_run_at_times_that_adapt_goes_on_bit_for_bit_from_its_checkpoint(tmp_path, accumulate):
    model, data = MLP._replace(adaptive=True), batches(6, 8)
    mesh = sharding.make_mesh(jax.devices()[:1])
    training = step.Training(model, optax.adam(1e-2), 0.9, KEY, accumulate, 6)
    call = step.make_step(training, mesh)
    chunk = sharding.put(data, mesh, axis=1)

    def start():
        return step.start(model, training.optimizer, KEY, mesh)

    whole, _ = call(start(), chunk, 0, 6)
    half, _ = call(start(), chunk, 0, 3)
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(3, half)
        back = checkpoints.restore(step.abstract_state(model, training.optimizer, mesh))
    assert_equal(call(back, chunk, 3, 6)[0], whole)
    seen = whole.opt_state[1]
    kept = objective.KEPT ** np.arange(6)
    np.testing.assert_allclose(seen.draws.sum(), 8.0 * kept.sum(), rtol=1e-5)
    density = seen.proposal.density
    assert density.max() > 1.05 > density.min()


def test_a_schedule_of_least_variance_goes_with_neither():
    for other in ({"weight": weighting.v()}, {"adaptive": True}):
        with pytest.raises(ValueError, match="no weight, and no times that adapt"):
            schedule_variance.schedule_values(MLP._replace(**other), {}, jnp.zeros(1))
