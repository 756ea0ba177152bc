"""The command line that all experiments share."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

__all__ = ["CONFIGS", "UserError", "main"]

CONFIGS = Path(__file__).parent / "configs"


class UserError(ValueError):
    """Something the user can mend; the message is one line."""


def main(run: Callable[[ConfigDict, Path], object], config_file: Path, doc: str | None) -> None:
    """Parse the command line, call `run(config, workdir)`, and exit.

    Flags: --workdir=DIR, --config=FILE.py[:VARIANT], and --config.NAME=VALUE for any field of the
    configuration. A user's mistake ends in one line on stderr and exit code 2; Ctrl-C in 130.
    """
    try:
        config, workdir = _parse(sys.argv, config_file, doc or "")
        run(config, workdir)
    except UserError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from the last checkpoint", 130)


def _parse(argv: list[str], config_file: Path, doc: str) -> tuple[ConfigDict, Path]:
    values = flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_file(
            "config", str(config_file), "configuration file", flag_values=values, sys_argv=argv
        )
        flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
        flags.DEFINE_bool("help", False, "show this", flag_values=values)
        rest = values(argv)[1:]
        config = ConfigDict(holder.value)  # raises if the file could not be loaded
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(_one_line(error, argv)) from error
    if values.help:
        print(f"{doc.strip()}\n\nSettings (--config.NAME=VALUE) and their values now:\n\n{config}")
        raise SystemExit(0)
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; settings are given as --config.NAME=...")
    if not values.workdir:
        raise UserError(
            "--workdir=DIR is missing: the folder for checkpoints, metrics and pictures"
        )
    return config, Path(values.workdir)


def _one_line(error: Exception, argv: list[str]) -> str:
    """The telling part of an error of the flag parser, on one line."""
    text = str(error)
    unknown = re.search(r"""'(\w+)\\*'(?:.*Did you mean "(\w+)")?""", text, re.DOTALL)
    if isinstance(error, AttributeError | KeyError) and unknown:
        name, guess = unknown.groups()
        flag = next((arg for arg in argv if re.match(rf"--?config\b.*\.{name}\b", arg)), name)
        return f"{flag}: there is no setting {name}" + (f"; did you mean {guess}?" if guess else "")
    if "Traceback" in text or isinstance(error, OSError):  # its last line says what happened
        text = text.strip().splitlines()[-1].strip()
    return " ".join(text.split())


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(code)
