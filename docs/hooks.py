"""What MkDocs does beside its plugins: MathJax, the notebooks, and links to the reference."""

import os
import pydoc
import re
import time
from importlib.resources import files as resources
from inspect import ismodule
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor, ExecutePreprocessor

_FENCES = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
_TESTS = re.compile(r"`([\w/]+\.py)::test_(\w+)`")
_NAMES = re.compile(r"(?<!\[)`((?:\w+\.)+\w+)`")


def on_files(files: Any, config: Any) -> Any:
    """Adds MathJax, and a page for each notebook, which is run unless NOTEBOOKS=no."""
    from mkdocs.structure.files import File

    script = (resources("mathjax") / "static/mathjax/es5/tex-svg.js").read_bytes()
    files.append(File.generated(config, "mathjax/tex-svg.js", content=script))
    for path in sorted(Path(config.docs_dir, "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if os.environ.get("NOTEBOOKS") != "no":
            at = {"metadata": {"path": str(Path(config.docs_dir).parent)}}
            began = time.monotonic()
            ExecutePreprocessor(timeout=180, kernel_name="python3").preprocess(notebook, at)
            print(f"{path.name}: {time.monotonic() - began:.0f} s")
            CoalesceStreamsPreprocessor().preprocess(notebook, {})
        text, found = MarkdownExporter().from_notebook_node(notebook)
        for name, content in found["outputs"].items():
            picture = f"{path.stem}-{name}"
            text = text.replace(f"({name})", f"({picture})")
            files.append(File.generated(config, f"notebooks/{picture}", content=content))
        text = f"---\nhide: [toc]\n---\n{text}\n\n[This page as a notebook]({path.name})\n"
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Returns a page whose functions are linked to the reference, and notebooks to their pages.

    The start page has README's example in the place of a comment.
    """
    if page.file.src_uri.startswith("api/"):
        return markdown
    if page.is_homepage:
        readme = Path(config.docs_dir, "..", "README.md").read_text(encoding="utf-8")
        example = _FENCES.search(readme, readme.index("## As a library"))
        markdown = markdown.replace("<!-- the first example of README.md -->", example[0])
    if "/" not in page.file.src_uri:
        markdown = re.sub(r"\]\((notebooks/\w+)\.ipynb", r"](\1.md", markdown)
        # What lies outside docs/ is named, and not a part of the site.
        markdown = re.sub(r"\[([^]]*)\]\(\.\./[^)]*\)", r"\1", markdown)
    parts = _FENCES.split(markdown)
    return "".join(part if part.startswith("```") else _linked(part) for part in parts)


def _linked(text: str) -> str:
    """Returns text whose functions are links, and whose tests are told in words."""

    def link(match: re.Match[str]) -> str:
        found = pydoc.locate("vdm_jax." + match[1].removeprefix("vdm_jax."))
        if not hasattr(found, "__name__"):  # nothing, or a number or a table
            return match[0]
        parts = [found.__name__] if ismodule(found) else [found.__module__, found.__qualname__]
        return f"[{match[0]}][{'.'.join(parts)}]"

    words = lambda match: f'<span title="{match[1]}">{match[2].replace("_", " ")}</span>'  # noqa: E731
    return _NAMES.sub(link, _TESTS.sub(words, text))
