"""The text that a training command shows with --help."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from vdm_jax.run import defaults, distributed


def of_training(config_file: Path, config: ConfigDict, options: Mapping[str, str]) -> str:
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
