"""docs/scale.md: what it counts is what programs do, and what it says is what is counted."""

import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from toy import batches, mlp_model

from experiments import bench, chips, collectives, cost, plans, scale, scale_measure, scale_report
from experiments.cli import UserError
from experiments.configs import cifar10
from experiments.models import make_model
from vdm_jax.train import optimizer, sharding, step

ROOT = Path(__file__).parents[2]
SHAPE = (32, 32, 3)
SCALARS = 256  # bytes of a step's sums of single numbers: the loss, its terms, the norm


def small(batch=16, **model):
    config = cifar10.get_config()
    config.model.update({"channels": 64, "num_blocks": 2, **model})
    return plans.Case("small", config, SHAPE, batch, 1)


# ---- state ----


@pytest.mark.parametrize("shard_params", [1, 2, 8])
def test_state_bytes_are_those_that_the_devices_of_a_mesh_hold(shard_params):
    mesh = sharding.make_mesh(jax.devices()[:8], shard_params)
    found = plans.plan(small(), 8, shard_params)
    adamw = optimizer.make(optimizer.learning_rate(2e-4, warmup_steps=100))
    real = step.abstract_state(make_model(small().config, SHAPE, 256), adamw, mesh)
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(real)
    )
    assert found.state == held
    parameters = sum(4 * leaf.size for leaf in jax.tree.leaves(real.params))
    assert found.parameters == parameters
    # Four copies, a few counters, and less of them where they are split.
    if shard_params == 1:
        assert 0 < held - 4 * parameters < 64
        assert found.gathered == 0
    else:
        assert 4 * parameters / shard_params < held < 4 * parameters
        assert 0.9 * parameters < found.gathered < parameters


# ---- exchanges ----


@functools.cache
def compiled(shard_params, accumulate=1):
    """The step of an MLP on eight devices, its mesh, and its parameters' bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "SMALL", 64)
        mesh = sharding.make_mesh(jax.devices()[:8], shard_params)
        adamw = optimizer.make(1e-2)
        template = step.abstract_state(mlp_model(), adamw, mesh)
        step_fn = step.make_step(mlp_model(), adamw, 0.9, jax.random.key(5), mesh, accumulate)
        chunk = {
            name: jax.ShapeDtypeStruct(of.shape, of.dtype) for name, of in batches(1, 16).items()
        }
        program = step_fn.lower(template, chunk, 0, 1).compile()
        return program, template, mesh, collectives.shares(template.params, mesh)


@pytest.mark.parametrize(("shard_params", "accumulate"), [(1, 1), (2, 1), (8, 1), (1, 2)])
def test_exchanges_are_those_that_the_compiler_makes(shard_params, accumulate):
    program, _, _, of = compiled(shard_params, accumulate)
    found = collectives.compiled(program.as_text())
    wanted = collectives.expected(of, 8 // shard_params, shard_params, accumulate)
    assert found["all-gather"] == wanted.gathered
    # A CPU has no reduce-scatter: both sums are all-reduces.
    sums = found["all-reduce"] - wanted.scattered - wanted.reduced
    assert 0 <= sums <= SCALARS
    assert found["reduce-scatter"] == found["all-to-all"] == found["collective-permute"] == 0
    assert wanted.scattered + wanted.reduced > 20 * SCALARS


def test_the_measurement_compares_the_same_bytes():
    program, template, mesh, of = compiled(2, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "SMALL", 64)
        row = scale_measure.exchanges(program, template, mesh)
    assert (row["data"], row["fsdp"]) == (4, 2)
    assert row["expected"]["all-gather"] == row["compiled"]["all-gather"] == of.split > 0


PROGRAM = """HloModule m
%body.1 (p: (f32[4])) -> (f32[4]) {
  %all-reduce.3 = (f32[4]{0}, bf16[2,3]{1,0}) all-reduce(%a, %b), to_apply=%add
}
%outer (p: (f32[4])) -> (f32[4]) {
  %while.2 = (f32[4]) while(%t), condition=%c, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
  %all-gather-start.1 = f32[8]{0} all-gather-start(%x), dimensions={0}
}
ENTRY %main (p: (f32[4])) -> f32[] {
  %while.9 = (f32[4]) while(%t), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %all-reduce.7 = f32[] all-reduce(%y), to_apply=%add
}
"""  # noqa: E501


def test_loops_within_loops_count_as_often_as_they_run():
    found = collectives.compiled(PROGRAM)
    assert found["all-reduce"] == 5 * 3 * (16 + 12) + 4
    assert found["all-gather"] == 5 * 32
    assert found["all-to-all"] == 0


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match=r"a loop of unknown length: %while\.2"):
        collectives.compiled(PROGRAM.replace('backend_config={"known_trip_count":{"n":"3"}}', ""))


def test_what_is_sent_does_not_depend_on_how_parameters_are_split():
    of = collectives.Shares(split=8_000_000, copied=1_000)
    sent = [collectives.sent(of, 64 // s, s) for s in (1, 8, 64)]
    assert sent == pytest.approx([2 * 63 / 64 * 8_001_000] * 3)
    # With micro-batches gradients are summed for each, parameters gathered once.
    assert collectives.sent(of, 8, 8, 3) == pytest.approx(3 * sent[1] - 2 * 7 / 8 * 8_000_000)
    assert collectives.sent(of, 1, 1) == 0.0


# ---- operations and memory ----


def test_operations_of_products_loops_and_convolutions():
    def function(x, kernel):
        y, _ = jax.lax.scan(lambda c, _: (c @ c, None), x, length=7)
        z = jax.lax.conv_general_dilated(
            y.reshape(1, 8, 8, 4),
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jax.jit(lambda: z.reshape(64, 5).T @ z.reshape(64, 5))()

    jaxpr = jax.make_jaxpr(function)(jnp.zeros((16, 16)), jnp.zeros((3, 3, 4, 5))).jaxpr
    assert cost.operations(jaxpr) == 7 * 2 * 16**3 + 2 * 64 * 5 * 3 * 3 * 4 + 2 * 64 * 5 * 5


def test_a_result_is_alive_to_its_last_use_and_loops_stack_theirs():
    def chain(x):
        a = x + 1.0  # 400 bytes each
        b = a * 2.0
        c = jnp.sin(b)
        return c + a

    assert cost.peak(jax.make_jaxpr(chain)(jnp.zeros(100)).jaxpr) == 3 * 400

    def stacked(x):
        return jax.lax.scan(lambda c, _: (c * 2.0, c), x, length=10)

    # The carry, ten copies of it, and the body's own results of which one is the carry's next.
    assert cost.peak(jax.make_jaxpr(stacked)(jnp.zeros(100)).jaxpr) == 400 + 10 * 400


def test_the_gradient_has_three_times_the_operations_of_the_network_and_remat_adds_some():
    plain = plans.counted_cost(small()).flops
    assert plain == pytest.approx(3 * bench.forward_flops(small().config), rel=1e-3)
    # Once more the first convolution of each block, of which there are two, and the projections.
    assert 1.1 < plans.counted_cost(small(remat="blocks")).flops / plain < 4 / 3


def test_a_pair_of_blocks_more_keeps_six_maps_more_of_each_image():
    """Two inputs, two results of a first convolution, a skip, and the skip's gradient."""
    some, more = (plans.counted_cost(small(num_blocks=n)).image for n in (64, 65))
    assert more - some == pytest.approx(6 * math.prod(SHAPE[:2]) * 64 * 4, rel=0.02)


def test_memory_is_a_line_in_the_images():
    of = small()
    counted = cost.of_gradient(of.config, of.event_shape, 16)
    assert plans.counted_of(of, 16) == pytest.approx(counted.peak, rel=0.02)


def test_memory_falls_with_chips_shares_micro_batches_remat_and_bfloat16():
    case = small(batch=512)
    memory = plans.plan(case, 8).memory
    assert plans.plan(case, 64).memory < memory
    assert plans.plan(case, 8, shard_params=8).memory < memory
    assert plans.plan(case, 8, accumulate=4).memory < memory
    assert plans.plan(case.with_settings(remat="blocks"), 8).memory < memory
    assert plans.plan(case.with_settings(dtype="bfloat16"), 8).memory < memory
    assert plans.fewest_parts(case, 8, memory) == 1
    assert plans.fewest_parts(case, 8, 0.6 * memory) in (2, 4)
    assert plans.fewest_parts(case, 8, 1.0) is None
    largest = plans.largest_batch(case, 1e9)
    assert plans.plan(case._replace(batch=largest), 1).memory <= 1e9
    assert plans.plan(case._replace(batch=largest + 1), 1).memory > 1e9
    assert plans.largest_batch(case, 1.0) == 0


def test_times_fall_with_chips_until_the_exchange_counts():
    chip, case = chips.CHIPS[1], small(batch=512)
    one, eight, many = (plans.seconds(case, n, chip) for n in (1, 8, 64))
    assert one.exchange == 0.0 < eight.exchange < many.exchange
    assert one.low < one.middle < one.high
    flops = plans.plan(case, 1).flops
    assert one.middle == pytest.approx(flops / (0.3 * 494e12))
    assert eight.middle - eight.exchange == pytest.approx(one.middle / 8)
    # 7/8 of the parameters twice over links of 450 GB/s, then over 50 GB/s between machines.
    parameters = plans.plan(case, 8).parameters
    assert eight.exchange == pytest.approx(2 * 7 / 8 * parameters / 450e9 / 0.7)
    between = 2 * 7 / 8 * parameters / 50e9 / 0.7
    assert many.exchange == pytest.approx(eight.exchange + between)
    images = plans.break_even(case, 64, chip)
    at = plans.seconds(case._replace(batch=64 * images), 64, chip)
    assert at.exchange == pytest.approx(at.middle / 2)
    assert plans.seconds(case, 64, chip, 4).exchange == pytest.approx(4 * many.exchange)


# ---- the page ----


def test_the_page_says_what_the_formula_gives_now():
    """Its row of one run is counted anew: a page that was not written again is found out."""
    text = (ROOT / "docs" / "scale.md").read_text()
    row = scale_report.needs_row(plans.CASES[0], 8)
    assert f"| {' | '.join(row)} |" in text
    assert "expected, not measured" in text


def test_the_command_writes_the_page_from_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(scale_report, "page", lambda found: f"page of {found}\n")
    monkeypatch.setattr(scale_measure, "measure", lambda rounds: {"rounds": rounds})
    flags = ["scale", f"--workdir={tmp_path}/w", f"--out={tmp_path}"]
    with pytest.raises(UserError, match=r"there is no .*scale\.json; measure first"):
        scale.scale([*flags, "--nomeasure"])
    scale.scale([*flags, "--rounds=2"])
    assert json.loads((tmp_path / "w" / "scale.json").read_text()) == {"rounds": 2}
    assert (tmp_path / "scale.md").read_text() == "page of {'rounds': 2}\n"
    assert scale.scale([*flags, "--nomeasure"]) == {"rounds": 2}
    with pytest.raises(UserError, match="--workdir=DIR is missing"):
        scale.scale(["scale"])
