"""The ladder: its runs can be built and are of one size."""

import jax
import numpy as np

from experiments import ladder, trainings
from vdm_jax.run.config import check_config
from vdm_jax.run.models import make_model


def test_every_run_can_be_built_and_has_about_the_same_size():
    bounds, shapes, configs = {}, {}, {}
    for group, runs in ladder.RUNS.items():
        for name, (base, changes) in runs.items():
            configs[name] = config = trainings.make_config(base(), changes, 0.001)
            check_config(config)
            assert (config.train.steps, config.optimizer.warmup_steps) == (10, 5)
            model = make_model(config, (8, 8, 1), 2 if config.data.name == "digits_binary" else 17)
            shapes[name] = jax.eval_shape(model.init, jax.random.key(0))
            count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes[name]))
            assert 0.34e6 < count < 0.42e6, name
            bounds[group, name] = model.facts()
            assert (bounds[group, name].levels is None) == (group == "density"), name
    rungs = [bounds["rung", name] for name in ladder.RUNS["rung"]]
    assert [len(rung.encoders) for rung in rungs[:4]] == [1, 2, 4, 8]
    assert [rung.num_steps for rung in rungs[4:]] == [10, 100, None]
    heads = ladder.RUNS["objective"]
    assert [bounds["objective", head].kind for head in heads] == ["x", "eps", "score", "v"]
    # Restrictions are turned on one after the other, up to the VDM's own network.
    restricted = [configs[name].hierarchy for name in [ladder.FOUR, *ladder.RUNS["restriction"]]]
    found = [(c.depth, c.data_size, c.fixed_encoder, c.ends_at_normal) for c in restricted[:4]]
    assert found == [(4, *[True] * k, *[False] * (3 - k)) for k in range(4)]
    *_, chain, one = ladder.RUNS["restriction"]
    assert jax.tree.structure(shapes[chain]) == jax.tree.structure(shapes[one])
    assert bounds["restriction", one].num_steps == 3


def test_the_histogram_is_its_definition():
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 3, (50, 2, 2, 1)), rng.integers(0, 3, (7, 2, 2, 1))
    counts = np.sum(train[:, None] == test, axis=0)
    expected = -np.log2((counts + 0.5) / (50 + 1.5)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(ladder.histogram(train, test, 3), expected, rtol=1e-6)
