"""Any value of any setting, and any bytes as a file of settings: one clear line, or it is taken."""

import contextlib
import json
import math
import sys
from pathlib import Path
from unittest import mock

import jax
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from experiments.configs import binomial, digits, mhvae, vae
from vdm_jax.errors import UserError
from vdm_jax.nn import published, published_configs
from vdm_jax.run import build, cli, config, defaults, restore, training
from vdm_jax.train import sharding

ROOT = Path(__file__).parents[2]
EXPERIMENTS = {"digits": digits, "vae": vae, "mhvae": mhvae, "binomial": binomial}
DIGITS = ROOT / "experiments" / "configs" / "digits.py"
GOLDEN = ROOT / "tests" / "data" / "scalar_gamma" / "model_config.json"
PARTS = {part: fields for part, fields in defaults.DEFAULTS.items() if part != "seed"}
FIELDS = ["seed", *(f"{part}.{name}" for part, fields in PARTS.items() for name in fields)]


def quick(examples: int):
    ignored = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=ignored
    )


@contextlib.contextmanager
def taken_or_refused(*others: type[Exception]):
    """What is inside works, or raises UserError with one line: anything else fails the test."""
    said = "nothing"
    try:
        yield
    except (UserError, *others) as refused:
        said = str(refused)
    assert said and "\n" not in said, said


class Accepted(Exception):
    """All that a run checks before it makes its folder went well."""


@pytest.fixture(autouse=True)
def _one_device_and_no_folder(monkeypatch):
    monkeypatch.setattr(build, "make_mesh", lambda *_: sharding.make_mesh(jax.devices()[:1]))

    def stop(*_):
        raise Accepted

    monkeypatch.setattr(build, "make_workdir", stop)


WORDS = [
    *("path", "conditional_path", "haar-1", "dct", "adaptive", "simple", "none", "all", "learned"),
    *("variance", "logits", "64x", "", "~nobody/x", "a\nb", "a\0b"),
]
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
    changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=2),
)
def test_any_value_of_any_setting(experiment, changes):
    made: ConfigDict = EXPERIMENTS[experiment].get_config()
    for name, value in changes.items():
        *part, last = name.split(".")
        group = made[part[0]] if part else made
        with group.ignore_type():
            group[last] = value
    with taken_or_refused(), pytest.raises(Accepted):
        training.train(made, Path("nowhere"))


def parsed(*arguments: str) -> None:
    sys.modules.pop("config_config", None)  # a file is loaded into what is left of the last one
    with taken_or_refused(), contextlib.suppress(SystemExit):  # of --help
        config.check_config(cli._parse(["x", "--workdir=W", *arguments], DIGITS)[0])


ARGUMENT = st.builds(
    "--config.{}={}".format,
    st.sampled_from([*FIELDS, "", ".", "train", "train.steps.x"]),
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
@example(arguments=["--workdir"])
@example(arguments=["--config="])
@example(arguments=["--flagfile=/nowhere"])
def test_any_command_line(arguments, capsys):
    parsed(*arguments)


def cut_and_changed(whole: bytes):
    return st.builds(
        lambda at, much, put: whole[:at] + put + whole[at + much :],
        st.integers(0, len(whole)),
        st.integers(0, 40),
        st.binary(max_size=4) | st.sampled_from([b"null", b"1e999", b"{}", b"[]", b'"x"', b"-1"]),
    )


WORDS_OF_RUNS = st.sampled_from(["config", "data", "levels", "train"]) | st.text(max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS_OF_RUNS, inner, max_size=3),
    max_leaves=10,
).map(lambda value: json.dumps(value).encode())
SAVED = json.dumps({"config": digits.get_config().to_dict(), "data": {"levels": 17}}).encode()


@quick(250)
@given(content=st.binary(max_size=40) | JSON | cut_and_changed(SAVED))
@example(content=b'{"config": ' + b"9" * 5000 + b"}")
@example(content=b"[[1, 2]]")
def test_any_bytes_as_the_configuration_of_a_run(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    sealed = mock.patch.object(restore, "load_settings", return_value=(1, json.loads(SAVED)))
    with sealed:  # what counts is sealed in the checkpoint, so that nothing in the copy is refused
        of = restore.saved(tmp_path, "1")
    assert of.config == digits.get_config() and of.data == {"levels": 17}


@quick(200)
@given(content=st.binary(max_size=40) | JSON | cut_and_changed(GOLDEN.read_bytes()))
def test_any_bytes_as_the_configuration_of_a_published_model(tmp_path, content):
    (tmp_path / "model_config.json").write_bytes(content)
    with taken_or_refused(ValueError):
        published.modules(published_configs.find(tmp_path, None)[0]["model"])
