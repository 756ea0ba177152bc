"""Programs for accelerators that aren't here: they lower, and their text is read right."""

import functools
from importlib import metadata

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding, PartitionSpec

from experiments.benchmarks import compile as benchmark
from experiments.benchmarks import hlo, targets
from experiments.configs import cifar10
from vdm_jax.errors import UserError
from vdm_jax.train import sharding

LOOP = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%fused_conv (param_0.1: f32[4]) -> f32[4] {
  %param_0.1 = f32[4]{0} parameter(0)
  ROOT %conv.1 = f32[4]{0:T(8,128)} convolution(%param_0.1, %param_0.1), dim_labels=b_i->b
}

%all-reduce-scatter.1 (input: f32[8]) -> f32[2] {
  %input = f32[8]{0} parameter(0)
  %whole = f32[8]{0} all-reduce(%input), to_apply=%add
  ROOT %share = f32[2]{0} dynamic-slice(%whole), dynamic_slice_sizes={2}
}

%fused_slice (param_0.2: f32[4]) -> f32[4] {
  %param_0.2 = f32[4]{0} parameter(0)
  ROOT %slice.1 = f32[4]{0} dynamic-slice(%param_0.2), dynamic_slice_sizes={4}
}

%body (arg.1: (f32[4], s32[])) -> (f32[4], s32[]) {
  %arg.1 = (f32[4]{0}, s32[]{:T(128)}) parameter(0)
  %gte.1 = f32[4]{0} get-tuple-element(%arg.1), index=0
  %gte.2 = s32[] get-tuple-element(%arg.1), index=1
  %copy.1 = s32[]{:T(128)S(6)} copy(%gte.2)
  %three = s32[] constant(3)
  %add.1 = s32[] add(%copy.1, %three)
  %conv_fusion = f32[4]{0} fusion(%gte.1), calls=%fused_conv, x={"estimated_cycles":"100"}
  %gather = (f32[4]{0}, bf16[8,2]{1,0}) all-gather-start(%conv_fusion), dimensions={0}
  %gathered = bf16[8,2]{1,0} all-gather-done(%gather)
  ROOT %tuple.1 = (f32[4]{0}, s32[]) tuple(%conv_fusion, %add.1)
}

%condition (arg.2: (f32[4], s32[])) -> pred[] {
  %arg.2 = (f32[4]{0}, s32[]) parameter(0)
  %end = s32[] constant(17)
  %gte.3 = s32[] get-tuple-element(%arg.2), index=1
  ROOT %lt = pred[] compare(%gte.3, %end), direction=LT
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %start = s32[] constant(2)
  %init = (f32[4]{0}, s32[]) tuple(%x, %start)
  %while.1 = (f32[4]{0}, /*index=1*/s32[]{:T(128)}) while(%init), condition=%condition, body=%body
  %gte.4 = f32[4]{0} get-tuple-element(%while.1), index=0
  %sum = (f32[4]{0}, f32[3,2]{1,0}) all-reduce(%gte.4, %gte.4), to_apply=%add
  %scatter = f32[2]{0} fusion(%gte.4), kind=kCustom, calls=%all-reduce-scatter.1
  %move = f32[4]{0} fusion(%gte.4), calls=%fused_slice, x={"estimated_cycles":"7"}
  %attend = f32[4]{0} exponential(%move), x={op_name="f/attn/exp" "estimated_cycles":"11"}
  %odd = f32[4]{0} tanh(%attend), x={"estimated_cycles":"9000000000000"}
  ROOT %out = f32[4]{0} tanh(%odd), x={"estimated_cycles":"13"}
}
"""


def test_a_program_s_text_is_read_with_its_loops_counted():
    """(17 - 2) / 3 = 5 turns; a start counts what its end gives; 9e12 cycles are no estimate."""
    found = hlo.summarise(LOOP)
    products, with_bits, attention, _, moves, rest = hlo.KINDS
    assert found.cycles == {products: 500, attention: 11, moves: 7, rest: 13}
    bits = "\n".join(f"  %x.{i} = u32[4]{{0}} xor(%y, %y)" for i in range(11))
    drawn = hlo.summarise(LOOP.replace("  ROOT %conv.1", f"{bits}\n  ROOT %conv.1"))
    assert drawn.cycles == {with_bits: 500, attention: 11, moves: 7, rest: 13}
    sums = {"all-reduce": (1, 4 * (4 + 6)), "reduce-scatter": (1, 4 * 2)}
    assert found.collectives == {"all-gather": (5, 5 * 32), **sums}
    assert found.unknown_loops == 0


def test_a_loop_of_unknown_length_is_counted_once_and_told():
    found = hlo.summarise(LOOP.replace("constant(17)", "parameter(1)"))
    assert found.unknown_loops == 1 and found.collectives["all-gather"][0] == 1


def test_the_loops_and_sums_of_a_compiled_program_are_found():
    """A CPU's compiler says itself how often a loop runs."""
    mesh = sharding.make_mesh(jax.devices()[:2])
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))

    def f(x):
        def body(total, _):
            # As every turn's sum depends on the turn before, none can leave the loop.
            return jax.lax.with_sharding_constraint((x * total).sum(axis=0), whole), None

        return jax.lax.scan(body, jnp.ones(5), length=7)[0]

    compiled = jax.jit(f, in_shardings=split, out_shardings=whole)
    text = compiled.lower(jax.ShapeDtypeStruct((4, 5), jnp.float32)).compile().as_text()
    assert hlo.summarise(text) == hlo.Summary({}, {"all-reduce": (7, 7 * 5 * 4)}, 0)


@functools.cache
def experiment(platform="gpu", num_blocks=0):
    """CIFAR-10's network of few blocks, for images of 8x8, on one device."""
    device = AbstractDevice("any", None, platform)
    mesh = AbstractMesh((1, 1), ("data", "fsdp"), abstract_device=device)
    config = cifar10.get_config()
    config.model.update(channels=64, num_blocks=num_blocks)
    config.train.batch_size = config.eval.batch_size = config.sample.count = 2
    return benchmark.described(config, mesh, (8, 8, 3), 256, 0)


@pytest.mark.parametrize("name", benchmark.PROGRAMS)
def test_each_program_lowers_for_a_tpu_and_for_a_gpu(name):
    traced = benchmark.program(experiment(), name)
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") >= 8  # two a block, the first and the last
        assert "xf64>" not in text and "callback" not in text  # nothing is left to the host


def test_a_tpu_s_step_computes_no_block_anew():
    def anew(platform):
        return str(benchmark.program(experiment(platform, 1), "step").jaxpr).count("remat2[")

    assert anew("tpu") == 0 < anew("gpu")


def test_the_tables_tell_what_is_estimated_and_compare_with_the_published_step():
    products = {hlo.KINDS[0]: 3.5e6}
    rows = [
        benchmark.Row("step", 9.0, 19 << 30, 50 << 20, hlo.Summary(products, {}, 1)),
        benchmark.Row(
            "published step", 90.0, 38 << 30, 500 << 20,
            hlo.Summary({hlo.KINDS[0]: 7e6}, {"all-reduce": (3, 3 << 20)}, 0),
        ),
    ]  # fmt: skip
    target = targets.Target("v5p:1x1x1", targets.CHIPS["v5p"], ())
    sizes, times = benchmark.tables(rows, target)
    head, _, step, published = (line.split(" | ") for line in sizes.splitlines())
    assert "compiled estimate, ms" in head and times.startswith("| compiled estimate, ms |")
    assert step[1:] == [
        "19,456 (0.50)", "20.0%", "50.0 (0.10)", "none", "2.00 (0.50), 1 loop(s) counted once",
        "9 |",
    ]  # fmt: skip
    assert published[4:6] == ["3 all-reduce (3.0)", "4.00"]
    assert times.splitlines()[2] == "| step | 2.00 | - | - | - | - | - |"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--target=v7:2x2", r"^--target=v7:2x2: wanted one such as v5p:1x1x1"),
        ("--target=v5p:2x", "^--target=v5p:2x: wanted one"),
        ("--target=h100:2x2", "^--target=h100:2x2: wanted one"),
        ("--target=", "^--target=: wanted one"),
        ("--programs=step,stop", "^--programs=step,stop: wanted such as step,evaluation,sampler"),
        ("--image=32", "^--image=32: wanted such as 32x32x3"),
        ("--image=0x32x3", "^--image=0x32x3: wanted such as 32x32x3"),
        ("--config.data.name=arrays", "^--image=: wanted such as 32x32x3"),
        ("--config=nowhere.py", r"^--config=nowhere\.py can't be loaded: there is no file"),
        ("--config.model.width=3", "there is no setting width"),
    ],
)
def test_what_is_no_target_is_refused_in_one_line(argument, said):
    with pytest.raises(UserError, match=said) as refused:
        benchmark.run(["compile", "--target=v5p:1x1x1", argument])
    assert "\n" not in str(refused.value)


def test_a_compiler_that_is_missing_or_another_is_told(monkeypatch):
    def absent(_):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", lambda _: ['libtpu==0.0.9.*; extra == "tpu"'])
    for version, said in (
        (absent, r"needs libtpu 0\.0\.9\.\*: make compile TARGET=v5e:2x2 installs"),
        (lambda _: "0.0.91.2", r"libtpu is 0\.0\.91\.2, but jax .* wants 0\.0\.9\.\*"),
    ):
        monkeypatch.setattr(metadata, "version", version)
        with pytest.raises(UserError, match=rf"^--target=v5e:2x2:? {said}"):
            targets.find("v5e:2x2")
    asked = 'jax-cuda12-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == "cuda12"'
    assert targets.asked([asked], "jax-cuda12-plugin", "cuda12") == "0.10.2"
