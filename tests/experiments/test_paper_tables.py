"""docs/results.md: its runs can be built."""

from experiments import paper_tables, trainings
from experiments.configs import digits
from vdm_jax.run.config import check_config
from vdm_jax.run.models import make_model

SWEEP = [(10, 10), (100, 100), *((None, num_steps) for num_steps in paper_tables.SWEEP)]


def test_every_run_can_be_built_and_is_what_the_page_says():
    assert set(paper_tables.PAPER_SWEEP) == set(SWEEP)
    kinds = {"eps": "eps", "eps, Fourier features": "eps", "v": "v"}
    for name, changes in paper_tables.RUNS.items():
        config = trainings.make_config(digits.get_config(), changes, 0.01)
        check_config(config)
        assert config.train.steps == changes["train.steps"] // 100
        assert config.optimizer.warmup_steps == config.train.steps // 2
        model = make_model(config, (8, 8, 1), 17)
        bound = model.facts()
        assert bound.num_steps == {"T=10": 10, "T=100": 100}.get(name)
        assert bound.kind == kinds.get(name, "x")
        assert (model.end_points is not None) == (name == "learned")
