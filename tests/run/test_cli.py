"""The command line: what is no command gets one line that names it; each end has its exit code."""

import errno
import importlib.util
import io
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import flags

from vdm_jax.errors import UserError
from vdm_jax.run import cli, compilation_cache, config, distributed
from vdm_jax.run.cli import Options
from vdm_jax.train.interrupts import Stopped

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"
FILE = """from vdm_jax.run import defaults
def get_config():
    c = defaults.get_config()
    with c.ignore_type():
        {}
    return c
"""
FILES = {
    "SYNTAX": "def get_config(:",
    "BROKEN": FILE.format("c.train.steps = 'ten'"),
    "LACKING": FILE.format("del c.eval"),
    "EXTRA": FILE.format("c.train.more = 1"),
}


def parsed(*arguments, file="digits"):
    sys.modules.pop("config_config", None)  # a file is loaded into what is left of the last one
    return cli._parse(["x", *map(str, arguments)], CONFIGS / f"{file}.py")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.train.stepz=3", "stepz=3: there is no setting stepz; did you mean steps?"),
        ("--config.train.steps=many", "--config.train.steps=many: wanted a whole number"),
        ("--config.model.fourier_features=2", "wanted True or False"),
        ("extra", "unexpected argument 'extra'; settings are given as --config.NAME=..."),
        ("--workdir=", "--workdir=DIR is missing"),
        ("--hang_timeout=nan", "--hang_timeout=nan: wanted a number"),
        ("--config=none.py", f"can't be loaded: there is no file 'none.py'; {CONFIGS} has "),
        ("--config=SYNTAX", "can't be loaded: invalid syntax"),
        ("--config=BROKEN", "config.train.steps must be int, got 'ten'"),
        ("--config=LACKING", "config.eval is missing; start from defaults.get_config()"),
        ("--config=EXTRA", "config.train.more is no setting; see vdm_jax/run/defaults.py"),
        (f"--config={CONFIGS / 'digits.py'}:tiny", "loaded: that file has no variants"),
        (f"--config={CONFIGS / 'cifar10.py'}:augg", "unknown variant 'augg'; there are aug,"),
    ],
)  # fmt: skip
def test_what_is_no_command_gets_one_line_that_names_it(argument, message, tmp_path):
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
        argument = argument.replace(f"={name}", f"={tmp_path / name}.py")
    with pytest.raises(UserError) as error:
        config.check_config(parsed("--workdir=W", argument)[0])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_settings_and_options_are_as_given(monkeypatch):
    given, workdir, options = parsed(
        "--workdir=W", "--config.train.steps=7", "--config.model.num_steps=10", "--allow_fallback"
    )
    assert (given.train.steps, given.model.num_steps, workdir) == (7, 10, Path("W"))
    assert options == Options(allow_fallback=True, allow_config_change=False)
    assert parsed("--workdir=W", "--allow_config_change")[2] == Options(allow_config_change=True)
    seen = []
    monkeypatch.setattr(sys, "argv", ["digits", "--workdir=W", "--config.seed=3"])
    cli.main(lambda *given: seen.append(given), str(CONFIGS.parent / "digits.py"))
    assert (seen[0][0].seed, seen[0][0].data.name) == (3, "digits")


def test_help_shows_the_command_and_every_setting(capsys):
    with pytest.raises(SystemExit) as end:
        parsed("--help", "--config.train.steps=77")
    out = capsys.readouterr().out
    assert not end.value.code
    for part in (
        "python -m experiments.digits --workdir=DIR", "ema_rate=0.998,", "none, shift, flip",
        "--config.train.NAME=VALUE", "steps=77", "--allow_fallback: move", "--peer_timeout",
    ):  # fmt: skip
        assert part in out


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("[!_]*.py")), ids=lambda file: file.stem)
def test_help_is_short_and_has_each_setting_once_with_its_own_value(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = module.get_config()
    lines = cli.usage(file, settings, {"flag": "what it does"}).splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 100
    parts = "\n".join(lines).split("--config.")
    for group in ("data", "model", "hierarchy", "optimizer", "train", "eval", "sample"):
        (said,) = [part for part in parts if part.startswith(f"{group}.NAME=VALUE")]
        for name, value in settings[group].items():
            assert len(re.findall(rf"[\n ]{name}={re.escape(str(value))}[\n ,]", f"{said} ")) == 1


def test_the_folder_lists_its_commands_with_a_line_each(capsys):
    runpy.run_module("experiments", run_name="__main__")
    lines = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()[2:]]
    names = {name.removeprefix("experiments.") for _, _, name, about in lines if about}
    training = {path.stem for path in CONFIGS.glob("[!_]*.py")}
    assert training | {"evaluate", "sample", "compress", "benchmarks.speed"} < names
    assert not names & {"tables", "trainings", "configs"}


def test_the_flags_of_a_command_without_a_configuration(capsys):
    def command(*argv, most=0):
        values = flags.FlagValues()
        text, number, choice = cli.definers(values)
        text("out", "where to")
        number("n", "how many", 3)
        choice("kind", "of what", ("a", "b"), "a")
        return values, cli.parse_flags(values, ["x", *argv], "What it does.", most)[1]

    values, rest = command("in", "--n=5", "--kind=b", "--out=o", most=1)
    assert (values.n, values.kind, values.out, rest) == (5, "b", "o", ["in"])
    assert command()[0].n == 3
    for argv, message in (
        (["--n=0"], "--n=0"), (["--n=x"], "--n=x"), ([f"--n={cli.MOST + 1}"], "--n=100"),
        (["--kind=c"], "one of <a|b>"), (["--m"], "Unknown command line flag 'm'"),
        (["in"], "unexpected argument 'in'; --help lists the flags"),
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            command(*argv)
        assert message in str(error.value)
    command(f"--n={cli.MOST}")
    with pytest.raises(SystemExit):
        command("--help")
    out = capsys.readouterr().out
    assert out.startswith("What it does.") and "--kind: <a|b>: of what: a, b (default: a)" in out


GLOO = RuntimeError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")
ON = "the same command goes on at 5"
END_OF_DISK = OSError(errno.ENOSPC, "No space", "/tmp/x")


@pytest.mark.parametrize(
    ("raised", "several", "code", "out", "err"),
    [
        (UserError("a\nb"), False, 2, "", "error: a b\n"),
        (KeyboardInterrupt(), False, 130, "", "error: interrupted\n"),
        (Stopped(signal.SIGINT, ON), False, 130, "", f"error: interrupted; {ON}\n"),
        (Stopped(signal.SIGTERM, ON), False, 0,
         f"terminated (SIGTERM); {ON}\n", ""),
        (BrokenPipeError(), False, 1, "", ""),
        (END_OF_DISK, False, 2, "", "error: /tmp/x can't be written to: No space left on device"),
        (OSError(errno.EIO, "Input/output error", "/tmp/x"), False, 2, "",
         "error: /tmp/x: Input/output error\n"),
        (KeyError("bug"), False, None, "", ""),
        (GLOO, False, None, "", ""),
        (GLOO, True, 3, "",
         f"error: another process has ended or can't be reached ({GLOO}); {ON}\n"),
        (KeyError("bug"), True, 1, "", "Traceback"),
    ],
)  # fmt: skip
def test_each_end_has_its_exit_code(raised, several, code, out, err, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_leave", sys.exit)
    monkeypatch.setattr(compilation_cache, "switch_on", lambda: None)
    monkeypatch.setattr(distributed, "joined", lambda: several)
    monkeypatch.setattr(distributed, "_again", lambda: ON)

    def command():
        raise raised

    with pytest.raises((SystemExit, type(raised))) as end:
        cli.guard(command)
    assert getattr(end.value, "code", None) == code
    said = capsys.readouterr()
    assert said.out == out and said.err.startswith(err) and bool(said.err) == bool(err)
    assert err != "Traceback" or said.err.endswith("error: KeyError: 'bug'\n")


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("~/a", "HOME/a"),
        ("~", "HOME"),
        ("a~b", "a~b"),
        ("./~/a", "~/a"),
    ],
)
def test_a_tilde_that_the_shell_left_is_the_user_s_home(given, taken, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    wanted = taken.replace("HOME", str(tmp_path))
    c, workdir, _ = parsed(f"--workdir={given}", f"--config.data.path={given}")
    assert workdir == Path(wanted)
    assert Path(c.data.path) == Path(wanted)
    with pytest.raises(UserError, match="--workdir=~nobody_at_all/a: there is no such home"):
        parsed("--workdir=~nobody_at_all/a")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_what_is_written_to_a_closed_stream_goes_nowhere(closed, tmp_path):
    program = (
        "import experiments, sys\n"
        "with open('file', 'w') as file:\n"
        "    print('lost'); print('lost', file=sys.stderr)\n"
        "    sys.stdout.flush(); sys.stderr.flush()\n"
        "    sys.exit(5 if file.fileno() > 2 else 6)\n"
    )
    command = f'exec "$0" -c "$1" {closed}'
    root = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, program], cwd=tmp_path, env=os.environ | root,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 5
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("encoding", ["ascii", "koi8-r"])
def test_what_an_encoding_lacks_is_replaced(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(compilation_cache, "switch_on", lambda: None)
    monkeypatch.setattr(distributed, "finish", lambda: None)
    cli.guard(lambda: print("3.7 ± 0.1", flush=True))
    assert stream.buffer.getvalue() == b"3.7 ? 0.1\n"


def test_a_command_computes_in_float32_whatever_the_environment_says(monkeypatch):
    monkeypatch.setattr(compilation_cache, "switch_on", lambda: None)
    monkeypatch.setattr(distributed, "finish", lambda: None)
    before, seen = jax.config.jax_enable_x64, []
    try:
        jax.config.update("jax_enable_x64", True)
        cli.guard(lambda: seen.append(jax.numpy.zeros(()).dtype))
    finally:
        jax.config.update("jax_enable_x64", before)
    assert seen == [jax.numpy.float32]
