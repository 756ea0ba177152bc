"""Pages written by hand: a command replaces their tables and nothing else."""

import re
from pathlib import Path

import pytest

from experiments import ladder_tables, paper_tables, tables, trainings
from experiments.benchmarks import compression, speed
from vdm_jax.errors import UserError

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    "ladder.md": ladder_tables.TABLES,
    "results.md": paper_tables.TABLES,
    "benchmarks.md": speed.TABLES,
    "compression.md": compression.TABLES,
}


@pytest.mark.parametrize("page", PAGES)
def test_a_committed_page_has_all_its_tables_and_pictures_and_no_others(page):
    text = (DOCS / page).read_text()
    assert re.findall(r"<!-- table: (.*) -->", text) == [*PAGES[page]]
    tables.check(DOCS / page, PAGES[page])
    linked = set(re.findall(r"\]\((\w+/[\w.-]+\.png)\)", text))
    folder = (DOCS / page).with_suffix("")
    assert linked == {str(file.relative_to(DOCS)) for file in folder.glob("*.png")}


PAGE = """Words.
<!-- table: one -->
| old |
<!-- end -->
More words: \\1.
<!-- table: two -->
<!-- end -->
The end."""


def test_tables_are_replaced_and_words_stay(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    tables.replace(page, {"two": "| b |\n| \\g<1> |", "one": "| a |"})
    expected = PAGE.replace("| old |", "| a |").replace("two -->\n", "two -->\n| b |\n| \\g<1> |\n")
    assert page.read_text() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no page"),
        (PAGE.replace("one", "three"), "0 places for the table 'one'"),
        (PAGE.replace("two", "one"), "2 places for the table 'one'"),
    ],
)
def test_a_page_without_the_place_is_refused_and_left_alone(tmp_path, text, message):
    page = tmp_path / "page.md"
    if text is not None:
        page.write_text(text)
    with pytest.raises(UserError, match=message):
        tables.replace(page, {"one": "| a |"})
    assert (page.read_text() if text is not None else None) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir=DIR is missing"),
        (["--workdir=W", "--scale=nan"], "--scale=nan: wanted a number"),
        (["--workdir=W", "--scale=0.1"], "--scale=0.1 needs --out=DIR"),
        (["--workdir=W", "--out=nowhere"], "there is no page nowhere/results.md"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(arguments, message):
    with pytest.raises(UserError, match=message):
        trainings.parse(["study", *arguments], "", "results.md", paper_tables.TABLES)
