"""Any value of any setting, and any bytes as a file of settings: one clear line, or it is taken."""

import contextlib
import json
import math
import sys
from pathlib import Path

import jax
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from experiments.configs import binomial, cifar10, digits, mhvae, vae
from vdm_jax.nn import published as official
from vdm_jax.run import build as setup
from vdm_jax.run import cli
from vdm_jax.run import config as check
from vdm_jax.run import defaults as base
from vdm_jax.run import restore as trained
from vdm_jax.run import training as run
from vdm_jax.run.cli import UserError
from vdm_jax.train import report, sharding

ROOT = Path(__file__).parents[2]
EXPERIMENTS = {"digits": digits, "vae": vae, "mhvae": mhvae, "binomial": binomial}


def quick(examples: int):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@contextlib.contextmanager
def taken_or_refused(error: type[Exception] = UserError):
    """What is inside works, or raises `error` with one line: anything else fails the test."""
    said = "nothing"
    try:
        yield
    except error as refused:
        said = str(refused)
    assert said and "\n" not in said, said


class Accepted(Exception):
    """All that a run checks before it makes its folder went well."""


@pytest.fixture(autouse=True)
def _one_device_and_no_folder(monkeypatch):
    monkeypatch.setattr(setup, "make_mesh", lambda *_: sharding.make_mesh(jax.devices()[:1]))

    def stop(*_):
        raise Accepted

    monkeypatch.setattr(setup, "make_workdir", stop)


def accepted(config: ConfigDict) -> bool:
    """Whether a run would begin. Raises UserError as it would."""
    try:
        run.train(config, Path("nowhere"))
    except Accepted:
        return True
    raise AssertionError("the run went on without its folder")


def fields(config: ConfigDict, above: str = ""):
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{above}{name}.")
        else:
            yield above + name


def put(config: ConfigDict, name: str, value: object) -> None:
    *parts, last = name.split(".")
    for part in parts:
        config = config[part]
    with config.ignore_type():
        config[last] = value


WORDS = ["", "none", "all", "learned", "variance", "logits", "64x", "~nobody/x", "a\nb", "a\0b"]
VALUES = st.one_of(
    st.integers(-2, 3),
    st.sampled_from([2**31 - 1, 2**31, 2**63, -(2**63), 10**30]),
    st.floats(),
    st.sampled_from([0.0, 1.0, -1.0, 1e-50, 1 - 1e-12, 39.0, 1e300, math.nan, math.inf]),
    st.sampled_from(WORDS),
    st.text(max_size=4),
    st.none() | st.booleans(),
    st.sampled_from([[1], {"a": 1}, (1, 2), b"x", "n" * 300, [None]]),
)


@quick(200)
@given(
    experiment=st.sampled_from(sorted(EXPERIMENTS)),
    changes=st.dictionaries(st.sampled_from(sorted(fields(base.get_config()))), VALUES, max_size=2),
)
def test_any_value_of_any_setting(experiment, changes):
    config = EXPERIMENTS[experiment].get_config()
    for name, value in changes.items():
        put(config, name, value)
    with taken_or_refused():
        assert accepted(config)


@pytest.mark.parametrize(
    ("name", "good", "bad", "message"),
    [
        ("seed", [0, 2**32 - 1], [-1, 2**32, None, 1.0], "config.seed must"),
        ("optimizer.learning_rate", [1e-30], [0.0, -1.0, math.nan, math.inf, 1e-50, 1e300], "must"),
        ("optimizer.b1", [0.0, 0.5], [1.0, 1 - 1e-9, -0.1, math.nan], "must lie in [0, 1)"),
        ("optimizer.ema_rate", [0.0, 0.99999], [1.0, 1 - 1e-9], "must lie in [0, 1)"),
        ("optimizer.eps", [1e-30], [0.0, 1e-46], "be finite and above 0"),
        ("optimizer.clip_norm", [None, 1e-9], [0.0, math.inf, math.nan], "above 0, or None"),
        ("optimizer.decay_steps", [None, 300], [0, -1, 2**31], "config.optimizer.decay_steps must"),
        ("optimizer.warmup_steps", [0], [-1, 2**31], "config.optimizer.warmup_steps must"),
        ("model.dropout", [0.0, 0.9], [1.0, -0.5, math.nan], "must lie in [0, 1)"),
        ("model.gamma_min", [-40.0], [-40.1, 5.0, 6.0, math.nan, -math.inf], "below gamma_max"),
        ("model.gamma_max", [40.0], [40.1, -8.0, math.nan, math.inf], "both in [-40, 40]"),
        ("model.num_steps", [None, 1, 2**23], [0, -1, 2**23 + 1], "config.model.num_steps must"),
        ("model.num_blocks", [1, 2], [0, 1001, 10**9], "config.model.num_blocks must"),
        ("model.channels", [16], [0, -1, 2**16 + 1, 10**18], "config.model.channels must"),
        ("train.steps", [300, 2**31 - 1], [0, -5, 2**31, 10**30, None], "config.train.steps must"),
        ("train.batch_size", [1, 3], [0, 10**6 + 1, 2**40], "config.train.batch_size must"),
        ("eval.batch_size", [1, 10**6], [0, 10**6 + 1], "config.eval.batch_size must"),
        ("eval.final_repeats", [1, 10**7], [0, 10**7 + 1], "config.eval.final_repeats must"),
        ("sample.count", [1, 10**5], [0, 10**5 + 1], "config.sample.count must"),
        ("data.levels", [17, 256], [0, -1, 257, 10**30], "levels"),
        ("data.name", [], ["", "nothing", "cifar\n10", None], "data"),
        ("data.validation", [0, 1], [-1, 1437, 2**31], "validation"),
        ("data.path", [None, ""], ["x.npz", 5, {"a": 1}], "path"),
    ],
)
def test_where_the_bounds_of_a_setting_lie(name, good, bad, message):
    for value in good:
        config = digits.get_config()
        put(config, name, value)
        assert accepted(config), value
    for value in bad:
        config = digits.get_config()
        put(config, name, value)
        with pytest.raises(UserError) as refused:
            accepted(config)
        assert message in str(refused.value) and "\n" not in str(refused.value), value


def test_a_group_of_settings_that_is_none_and_a_setting_that_is_a_group():
    config = digits.get_config().to_dict()
    for change, message in (
        ({"train": 3}, "config.train must be a group of settings, got 3"),
        ({"seed": {"a": 1}}, "config.seed must be int, got a: 1"),
        ({"more": {}}, "config.more is no setting"),
        ({"train": {**config["train"], "more": 1}}, "config.train.more is no setting"),
    ):
        with pytest.raises(UserError, match=message):
            check.config(ConfigDict(config | change))


# ---- the command line ----


def parsed(*arguments: str, file: Path = ROOT / "experiments/configs/digits.py") -> None:
    sys.modules.pop("config_config", None)  # a file is loaded into what is left of the last one
    with taken_or_refused(), contextlib.suppress(SystemExit):  # of --help
        config, _, _ = cli._parse(["x", "--workdir=W", *arguments], file, "What it does.")
        check.config(config)


ARGUMENT = st.builds(
    "--config.{}={}".format,
    st.sampled_from([*fields(base.get_config()), "", ".", "train", "train.steps.x"]),
    st.one_of(
        st.integers().map(str),
        st.floats().map(str),
        st.sampled_from(["", "None", "nan", "1e3", "True", "[1]", "(1,)", "{}", "0x10", "\u0661"]),
        st.text(max_size=4),
    ),
)


@quick(250)
@given(arguments=st.lists(ARGUMENT | st.text(max_size=6) | st.just("--config"), max_size=2))
@example(arguments=["--config.train.steps=" + "9" * 5000])
@example(arguments=["--config.data.size=" + "[" * 5000])
@example(arguments=["--workdir"])
@example(arguments=["--config="])
@example(arguments=["--flagfile=/nowhere"])
def test_any_command_line(arguments, capsys):
    parsed(*arguments)


WHOLE = (ROOT / "experiments/configs/digits.py").read_bytes()


@quick(150)
@given(
    content=st.binary(max_size=60)
    | st.builds(
        lambda at, much, put: WHOLE[:at] + put + WHOLE[at + much :],
        st.integers(0, len(WHOLE)),
        st.integers(0, 30),
        st.binary(max_size=4),
    )
)
@example(content=b"import sys\nsys.exit('no')")
@example(content=b"def get_config():\n  raise SystemExit")
@example(content=b"def get_config():\n  return get_config()")
@example(content=b"def get_config():\n  return None")
@example(content=b"def get_config():\n  return {'train': 3}")
@example(content=b"def get_config():\n  raise ValueError('a\\nb')")
@example(content=b"def get_config(a, b): pass")
@example(content=b"get_config = 3")
def test_any_bytes_as_a_configuration_file(tmp_path, content, capsys):
    file = tmp_path / "mine.py"
    file.write_bytes(content)
    parsed(f"--config={file}")


# ---- files that a run leaves, damaged ----

NAMES = ["config", "data", "levels", "minutes", "step", "split", "train", "steps", "bits_per_dim"]
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
).map(lambda value: json.dumps(value).encode())
DEEP = b"[" * 100_000
SAVED = json.dumps({"config": digits.get_config().to_dict(), "data": {"levels": 17}}).encode()


def cut_and_changed(whole: bytes):
    return st.builds(
        lambda at, much, put: whole[:at] + put + whole[at + much :],
        st.integers(0, len(whole)),
        st.integers(0, 40),
        st.binary(max_size=4) | st.sampled_from([b"null", b"1e999", b"{}", b"[]", b'"x"', b"-1"]),
    )


@quick(250)
@given(content=st.binary(max_size=40) | JSON | cut_and_changed(SAVED))
@example(content=DEEP)
@example(content=b'{"config": ' + b"9" * 5000 + b"}")
@example(content=b'{"config": {}, "data": 3}')
def test_any_bytes_as_the_configuration_of_a_run(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with taken_or_refused():
        config, data = trained.saved_config(tmp_path)
        config = trained.with_data(config, {}, data.get("levels"))
        check.config(config)


GOLDEN = ROOT / "tests/data/scalar_gamma/model_config.json"


@quick(200)
@given(content=st.binary(max_size=40) | JSON | cut_and_changed(GOLDEN.read_bytes()))
@example(content=DEEP)
def test_any_bytes_as_the_configuration_of_a_published_model(tmp_path, content):
    (tmp_path / "model_config.json").write_bytes(content)
    with taken_or_refused((UserError, ValueError)):
        found, _ = trained._official_config(tmp_path, None)
        official.modules(found["model"])


LINES = (
    b'{"step": 10, "split": "train", "bits_per_dim": 3.5}\n'
    b'{"step": 20, "split": "test", "bits_per_dim": 2.5, "bits_per_dim_standard_error": 0.5}\n'
)


@quick(15)
@given(content=st.binary(max_size=40) | st.lists(JSON).map(b"\n".join) | cut_and_changed(LINES))
@example(content=DEEP)
@example(content=LINES.replace(b"3.5", b"NaN").replace(b"2.5", b"1e999"))
def test_any_bytes_as_the_metrics_of_a_run(tmp_path, content):
    """What can be read is kept, plotted, and gone on with."""
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(content + b"\n" + LINES)
    before = report.read_metrics(file)
    assert before[-2:] == [json.loads(line) for line in LINES.splitlines()]
    report.plot_losses(before, tmp_path / "loss.png")
    log = report.MetricsLog(tmp_path, 30)
    log.write(30, "train", {"bits_per_dim": 1.0})
    log.close()
    steps = [line["step"] for line in report.read_metrics(file)]
    assert steps[-3:] == [10, 20, 30]


def test_the_papers_own_configurations_are_accepted():
    for variant in (None, "aug", "aug_paper", "tiny"):
        check.config(cifar10.get_config(variant) if variant else cifar10.get_config())
