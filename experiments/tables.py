"""The tables and plots of pages that are written by hand.

A page in docs/ has each table of measured numbers between two lines, `<!-- table: NAME -->` and
`<!-- end -->`. The command that measures replaces what lies between them, and nothing else.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.evaluation.bound import TERMS
from vdm_jax.run import build


def check(page: Path, names: Iterable[str]) -> None:
    """Raises UserError unless the page is there and has one place for each table."""
    if not page.is_file():
        raise UserError(f"there is no page {page}: copy it from docs/, whose tables are replaced")
    for name in names:
        count = len(_place(name).findall(page.read_text(encoding="utf-8")))
        if count != 1:
            ends = f"<!-- table: {name} --> and <!-- end -->"
            raise UserError(f"{page} has {count} places for the table {name!r}; wanted one: {ends}")


def places(options: Mapping[str, Any], name: str, tables: Iterable[str]) -> tuple[Path, Path]:
    """Returns the folder --workdir, and the page of a name in --out, which `check` has passed."""
    if not options["workdir"]:
        raise UserError("--workdir=DIR is missing: the folder for what is trained or measured")
    page = Path(options["out"]) / name
    check(page, tables)
    return build.make_workdir(Path(options["workdir"])), page


def replace(page: Path, tables: Mapping[str, str]) -> None:
    """Puts each table between its two lines. Raises UserError, and writes nothing, as `check`."""
    check(page, tables)
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        before, start, end, after = _place(name).split(text)
        text = f"{before}{start}{table}\n{end}{after}"
    files.write(page, text)


def by_name(*makers: Callable[[Any], str]) -> dict[str, Callable]:
    """Returns the functions that make tables by the names of the tables, which are theirs."""
    return {make.__name__.strip("_"): make for make in makers}


def _place(name: str) -> re.Pattern[str]:
    start, end = f"<!-- table: {re.escape(name)} -->\n", "<!-- end -->"
    return re.compile(f"^({start})(?:(?!<!--).)*^({end})$", re.DOTALL | re.MULTILINE)


def terms(row: Mapping[str, Any]) -> list[str]:
    """Returns the means of the three terms of a row's bound."""
    return [f"{row['terms'][name]['mean']:.4f}" for name in TERMS]
