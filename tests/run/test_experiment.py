"""What a run is made of, by its configuration."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_vdm

from vdm_jax.errors import UserError
from vdm_jax.run import defaults, experiment
from vdm_jax.train import optimizer
from vdm_jax.train.interrupts import Stop
from vdm_jax.train.step import TrainState


def config(**changes):
    """The defaults with changes as train__steps=3."""
    found = defaults.get_config()
    found.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return found


def test_the_plan_has_each_number_in_its_place():
    given = config(eval__every=4, sample__every=5, train__checkpoint_every=6, train__max_skipped=7)
    given.train.update(steps=1, steps_per_call=2, log_every=3)
    made = experiment.plan(given)
    assert made == (1, 2, 3, 4, 5, 6, 7)
    assert (made.eval_every, made.sample_every, made.checkpoint_every) == (4, 5, 6)


def test_each_purpose_has_a_key_of_its_own_which_the_seed_settles():
    """Of old runs too: the order is theirs."""
    keys = experiment.keys_of(config(seed=3))
    wanted = jax.random.key_data(jax.random.split(jax.random.key(3), 4))
    assert list(keys) == ["init", "train", "eval", "sample"]
    np.testing.assert_array_equal([jax.random.key_data(key) for key in keys.values()], wanted)


def test_the_decay_ends_with_the_run_or_where_that_is_given():
    assert experiment.decay_steps(config(train__steps=50, optimizer__decay="none")) == 0
    cosine = config(train__steps=50, optimizer__decay="cosine")
    assert experiment.decay_steps(cosine) == 50
    cosine.optimizer.decay_steps = 30
    assert experiment.decay_steps(cosine) == 30
    cosine.optimizer.update(decay="linear", warmup_steps=30)
    with pytest.raises(UserError, match=r"ends at step 30 .* warm-up of 30 steps"):
        experiment.make_optimizer(cosine)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_optimiser_has_each_number_in_its_place(name):
    given = config(optimizer__name=name, optimizer__learning_rate=0.1, optimizer__warmup_steps=0)
    given.optimizer.update(b1=0.5, b2=0.7, eps=0.3, weight_decay=0.2, clip_norm=1.5)
    params = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([1.0, -1.0])}
    if name == "adamw":
        decays = {"kernel": True, "bias": False}
        of = optax.adamw(0.1, 0.5, 0.7, 0.3, weight_decay=0.2, mask=decays)
        expected = optax.chain(optax.clip_by_global_norm(1.5), of)
    else:
        numbers = {"eps": 0.3, "weight_decay": 0.2, "clip_norm": 1.5}
        expected = optimizer.make(0.1, (0.5, 0.7), name="muon", **numbers)
    states = [of.init(params) for of in (experiment.make_optimizer(given), expected)]
    for grads in (params, jax.tree.map(lambda p: 1.0 - p, params)):
        (one, states[0]), (two, states[1]) = (
            of.update(grads, state, params)
            for of, state in zip((experiment.make_optimizer(given), expected), states, strict=True)
        )
        jax.tree.map(np.testing.assert_allclose, one, two)


def test_a_run_is_evaluated_and_sampled_with_the_average_of_its_parameters(tmp_path):
    subject = toy_vdm.subject(toy_vdm.curved)
    given = config(sample__count=4, sample__num_steps=3, eval__batch_size=60)
    stop = Stop(subject.mesh)
    of = experiment.Experiment(
        given, subject.images, subject.mesh, subject.model, None, tmp_path, stop
    )
    zeros, nan = subject.params, jax.tree.map(lambda leaf: leaf + jnp.nan, subject.params)
    ones = jax.tree.map(lambda leaf: leaf + 1.0, zeros)

    def state(params, ema_params):
        return TrainState(jnp.int32(1), params, ema_params, (), jnp.int32(0))

    evaluate = experiment.evaluator(of, jax.random.key(1))
    draw = experiment.sampler(of, jax.random.key(2))
    assert np.isfinite(evaluate(state(nan, zeros), False).total.mean)
    pictures = [draw(state(*each)) for each in ((nan, zeros), (ones, zeros), (zeros, ones))]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert np.any(pictures[0] != pictures[2])
