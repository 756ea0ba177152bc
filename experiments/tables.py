"""The tables and plots of pages that are written by hand.

A page in docs/ has each table of measured numbers between two lines, `<!-- table: NAME -->` and
`<!-- end -->`. The command that measures replaces what lies between them, and nothing else.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.evaluation.bound import TERMS
from vdm_jax.evaluation.report import value


def check(page: Path, names: Iterable[str]) -> None:
    """Raises UserError unless the page is there and has one place for each table."""
    if not page.is_file():
        raise UserError(f"there is no page {page}: copy it from docs/, whose tables are replaced")
    for name in names:
        count = len(_place(name).findall(page.read_text(encoding="utf-8")))
        if count != 1:
            ends = f"<!-- table: {name} --> and <!-- end -->"
            raise UserError(f"{page} has {count} places for the table {name!r}; wanted one: {ends}")


def replace(page: Path, tables: Mapping[str, str]) -> None:
    """Puts each table between its two lines. Raises UserError, and writes nothing, as `check`."""
    check(page, tables)
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        before, start, end, after = _place(name).split(text)
        text = f"{before}{start}{table}\n{end}{after}"
    files.write(page, text)


def by_name(*makers: Callable[[Mapping[str, Any]], str]) -> dict[str, Callable]:
    """Returns the functions that make tables by the names of the tables, which are theirs."""
    return {make.__name__.strip("_"): make for make in makers}


def _place(name: str) -> re.Pattern[str]:
    start, end = f"<!-- table: {re.escape(name)} -->\n", "<!-- end -->"
    return re.compile(f"^({start})(?:(?!<!--).)*^({end})$", re.DOTALL | re.MULTILINE)


def estimate(row: Mapping[str, Any]) -> str:
    """Returns the number of a row and its standard error, as in 1.2345 ± 0.0067."""
    return f"{value(row):.4f} ± {row['standard_error']:.4f}"


def terms(row: Mapping[str, Any]) -> list[str]:
    """Returns the means of the three terms of a row's bound."""
    return [f"{row['terms'][name]['mean']:.4f}" for name in TERMS]


@contextlib.contextmanager
def figure(
    path: Path, title: str, size: tuple[float, float] = (6.5, 4.0), shape: tuple[int, int] = (1, 1)
) -> Iterator[list[Axes]]:
    """Gives the axes of a figure of rows and columns; saves it with title, grids and a legend."""
    drawn = Figure(figsize=size, layout="constrained")
    axes = list(drawn.subplots(*shape, sharex="col", squeeze=False).flat)
    yield axes
    drawn.suptitle(title)
    axes[0].legend()
    for one in axes:
        one.grid(alpha=0.3)
    with files.whole(path) as file:
        drawn.savefig(file, dpi=110)
