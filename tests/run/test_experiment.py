"""What a run is made of, by its configuration."""

import jax
import numpy as np
import pytest

from vdm_jax.errors import UserError
from vdm_jax.run import defaults, experiment


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
