"""The command line that all experiments share."""

import ast
import contextlib
import inspect
import io
import math
import os
import re
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.run import compilation_cache, defaults, distributed
from vdm_jax.train.interrupts import Stopped

MOST = 10_000_000  # of anything that is counted
_leave = os._exit


class Options(NamedTuple):
    """Choices of a training command besides its settings; each is a flag of its name."""

    allow_fallback: bool = False
    allow_config_change: bool = False
    hang_timeout: float | None = None
    init_from: str | None = None


_OPTIONS = {
    "allow_fallback": "move damaged checkpoints to WORKDIR/damaged; one process only",
    "allow_config_change": "go on with other settings than the run in WORKDIR was started with",
    "init_from": "start from the parameters (EMA) of another run's folder, or of a model's file",
    "hang_timeout": "most seconds that a step and its batch may take, 0: any; default any in one "
    "process, in several ten times the median, a minute at least",
}


def main(run: Callable[[ConfigDict, Path, Options], object], file: str) -> None:
    """Parses the command line and calls `run(config, workdir, options)` under `guard`.

    `file` is the command's own; its configuration is the file of that name in configs/ beside it.
    """
    config_file = Path(file).parent / "configs" / Path(file).name
    guard(lambda: run(*_parse(sys.argv, config_file)))


def guard(command: Callable[[], object]) -> None:
    """Runs `command`; a user's mistake ends in one line and exit code 2, Ctrl-C in 130.

    SIGTERM and its like end in 0, the loss of another process in `distributed.LOST`. All leave at
    once, past what JAX or a checkpoint does in the background.
    """
    try:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a name that its encoding lacks stops nobody
                stream.reconfigure(errors="replace")
        compilation_cache.switch_on()
        jax.config.update("jax_enable_x64", False)  # runs are float32, whatever JAX_ENABLE_X64 says
        command()
        distributed.finish()
    except Stopped as stopped:
        distributed.part()
        if stopped.number == signal.SIGINT:
            _fail(f"interrupted; {stopped}", 130)
        print(f"terminated ({signal.Signals(stopped.number).name}); {stopped}", flush=True)
        _leave(0)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:  # whoever read the output has gone
        _leave(1)
    except Exception as error:
        lost = distributed.lost(error) if distributed.joined() else None
        full = files.full(error, Path(getattr(error, "filename", None) or "a file"))
        if lost:
            _fail(lost, distributed.LOST)
        if full or isinstance(error, UserError):
            again = "make space there, then give the command again"
            _fail(f"{full}; {again}" if full else str(error), 2)
        if isinstance(error, OSError) and error.filename:
            _fail(f"{error.filename}: {error.strerror}", 2)
        if not distributed.joined():
            raise
        traceback.print_exception(error)
        _fail(f"{type(error).__name__}: {error}", 1)


def _at_home(argv: list[str]) -> list[str]:
    """Returns the arguments with a ~ that the shell has left, as in --workdir=~/a, expanded."""
    expanded = list(argv)
    for i, argument in enumerate(argv):
        if found := re.fullmatch(r"(--?[\w.-]+=)?(~.*)", argument, re.DOTALL):
            path = os.path.expanduser(found[2])
            if path.startswith("~"):
                raise UserError(f"{argument}: there is no such home; name the folder in full")
            expanded[i] = (found[1] or "") + path
    return expanded


def _parse(argv: list[str], config_file: Path) -> tuple[ConfigDict, Path, Options]:
    values, argv = flags.FlagValues(), _at_home(argv)
    try:
        holder = config_flags.DEFINE_config_file(
            "config", str(config_file), "configuration file", flag_values=values, sys_argv=argv
        )
        flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
        for name in ("allow_fallback", "allow_config_change"):
            flags.DEFINE_bool(name, False, _OPTIONS[name], flag_values=values)
        flags.DEFINE_float("hang_timeout", None, _OPTIONS["hang_timeout"], 0.0, flag_values=values)
        flags.DEFINE_string("init_from", None, _OPTIONS["init_from"], flag_values=values)
        flags.DEFINE_bool("help", False, "show this", flag_values=values)
        distributed.define_flags(values)
        rest = values(argv)[1:]
        config = ConfigDict(holder.value)  # raises if the file could not be loaded
    except (Exception, SystemExit) as error:  # a configuration file is a program: it may do this
        said = one_line(error, argv)
        if "there is no file" in said:
            known = ", ".join(sorted(path.name for path in config_file.parent.glob("[!_]*.py")))
            said += f"; {config_file.parent} has {known}"
        raise UserError(said) from error
    if values.help:
        print(usage(config_file, config, _OPTIONS))
        raise SystemExit(0)
    _check_numbers(values)
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; settings are given as --config.NAME=...")
    if not values.workdir:
        raise UserError("--workdir=DIR is missing: the folder for checkpoints, metrics, pictures")
    distributed.start(values)
    options = Options._make(values[name].value for name in Options._fields)
    return config, Path(values.workdir), options


def definers(values: flags.FlagValues) -> tuple[Callable, Callable, Callable]:
    """Returns what defines flags in `values`: of text, a whole number, one of several words.

    All take (name, about, …, default), the second also bounds, the third before it the words.
    """

    def text(name: str, about: str, default: str | None = None) -> None:
        flags.DEFINE_string(name, default, about, flag_values=values)

    def number(
        name: str, about: str, default: int | None = None, low: int = 1, high: int = MOST
    ) -> None:
        flags.DEFINE_integer(name, default, about, low, high, flag_values=values)

    def choice(name: str, about: str, known: tuple[str, ...], default: str | None) -> None:
        flags.DEFINE_enum(name, default, known, f"{about}: {', '.join(known)}", flag_values=values)

    return text, number, choice


def parse_flags(
    values: flags.FlagValues, argv: list[str], doc: str | None, most: int = 0
) -> tuple[dict[str, Any], list[str]]:
    """Parses `argv` into `values`; returns them by name, and the arguments left, up to `most`.

    With --help, prints `doc` and the flags, and exits. Raises UserError for what isn't a flag.
    """
    flags.DEFINE_bool("help", False, "show this", flag_values=values)
    values.set_gnu_getopt(True)
    try:
        rest = values(_at_home(argv))[1:]
    except flags.Error as error:
        raise UserError(one_line(error, argv)) from error
    if values.help:
        print((doc or "").strip() + "\n\nFlags:")
        for name in values:
            print(f"  --{name}: {values[name].help} (default: {values[name].default})")
        raise SystemExit(0)
    if len(rest) > most:
        raise UserError(f"unexpected argument {rest[most]!r}; --help lists the flags")
    _check_numbers(values)
    return {name: values[name].value for name in values if name != "help"}, rest


def _check_numbers(values: flags.FlagValues) -> None:
    for name in values:
        value = values[name].value
        if isinstance(value, float) and math.isnan(value):  # which is within all bounds
            raise UserError(f"--{name}={value}: wanted a number")


def one_line(error: BaseException, argv: list[str]) -> str:
    """Returns the telling part of an error of the flag parser, on one line."""
    text = str(error)
    unknown = re.search(r"""'(\w+)\\*'(?:.*Did you mean "(\w+)")?""", text, re.DOTALL)
    if isinstance(error, AttributeError | KeyError) and unknown:
        name, guess = unknown.groups()
        flag = next((arg for arg in argv if re.match(rf"--?config\b.*\.{name}\b", arg)), None)
        if flag:
            hint = f"; did you mean {guess}?" if guess else ""
            return f"{flag}: there is no setting {name}{hint}"
    if isinstance(error, flags.Error) and "Traceback" not in text:
        text = re.sub(r"invalid literal for int\(\).*", "wanted a whole number", text)
        text = re.sub(r"could not convert string to float.*", "wanted a number", text)
        text = re.sub(r"\('Non-boolean argument.*", "wanted True or False", text)
        return " ".join(text.split())
    given = next((arg for arg in argv if re.match(r"--?config(=|$)", arg)), "the configuration")
    reason = " ".join((text.strip().splitlines() or [type(error).__name__])[-1].split())
    if "positional argument" in reason:
        reason = "that file has no variants"
    elif isinstance(error, AttributeError):
        reason = "that file has no function get_config"
    reason = reason.replace("[Errno 2] No such file or directory:", "there is no file")
    return f"{given} can't be loaded: {reason}"


def usage(config_file: Path, config: ConfigDict, options: Mapping[str, str]) -> str:
    """Returns what the command does, its flags, and its settings with their values as given."""
    doc = ast.get_docstring(ast.parse(config_file.read_text(encoding="utf-8")))
    lines = [f"{doc}\n", "To go on with a run that was stopped, or from another's parameters:"]
    lines += [f"  --{name}: {about}" for name, about in options.items()]
    lines += ["On several machines (docs/many_devices.md):"]
    lines += ["  " + ", ".join(f"--{name}" for name in distributed.FLAGS)]
    lines += ["Settings, and their values for this command:"]
    return "\n".join([*lines, *_settings(config)])


def _settings(config: ConfigDict) -> Iterator[str]:
    """Gives the settings by group: a line for each with a comment, the others side by side."""
    comments = _comments()
    for group, fields in config.items():
        if not isinstance(fields, ConfigDict):
            yield f"--config.{group}={fields}"
            continue
        yield _wrapped(f"--config.{group}.NAME=VALUE", comments.get(group, ""))
        about = {f"{name}={fields[name]}": comments.get(f"{group}.{name}", "") for name in fields}
        if plain := [said for said, comment in about.items() if not comment]:
            yield _wrapped("  " + ", ".join(plain), "", "  ")
        yield from (_wrapped(f"  {said}", comment) for said, comment in about.items() if comment)


def _wrapped(name: str, about: str, indent: str = " " * 28) -> str:
    return textwrap.fill(f"{name:<27} {about}", 100, subsequent_indent=indent)


def _comments() -> dict[str, str]:
    """Returns the comments of defaults.py above and beside each group and GROUP.SETTING."""
    found, group, above = dict[str, str](), "", ""
    for line in inspect.getsource(defaults).splitlines():
        if comment := re.fullmatch(r" +# (.*)", line):
            above += comment[1] + " "
        elif setting := re.fullmatch(r' +"(\w+)": (.*)', line):
            name, value = setting.groups()
            group, key = (name, name) if value == "{" else (group, f"{group}.{name}")
            found[key], above = above + value.partition("  # ")[2], ""
    return found


def _fail(message: str, code: int) -> None:
    with contextlib.suppress(OSError):  # where nobody can be told, the code still tells
        print(f"error: {message}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    _leave(code)
