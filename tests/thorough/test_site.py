"""The built site: every link leads somewhere, and a browser without a network draws all of it."""

import functools
import http.server
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from commands import ROOT

CHROMIUM = shutil.which("chromium")
# Pictures that the browser didn't get, and formulas that MathJax left undrawn or couldn't read.
PROBE = b"""<script>addEventListener("load", () => MathJax.startup.promise.then(() => {
  const broken = [...document.images].filter(image => !image.naturalWidth).map(image => image.src);
  const plain = [...document.querySelectorAll(".arithmatex")]
    .filter(formula => !formula.querySelector("mjx-container svg path, mjx-container svg rect")
      || formula.querySelector("[data-mjx-error]")).map(formula => formula.textContent);
  document.body.dataset.found = JSON.stringify([broken, plain]);
}))</script></body>"""

if importlib.util.find_spec("mkdocs") is None:
    pytest.skip("MkDocs isn't installed: `make docs` does it", allow_module_level=True)


class Page(HTMLParser):
    """The ids of a page, what it links to, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.formulas = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given["id"]} if "id" in given else set()
        self.formulas += "arithmatex" in given.get("class", "").split()
        found = {given[name] for name in ("src", "href") if name in given}
        if tag == "a":
            self.links |= found
        elif tag in ("script", "img", "link", "iframe"):
            self.loads |= found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, its notebooks run."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NOTEBOOKS": "yes"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """The pages by their address in the site."""
    return {str(path.relative_to(site)): Page(path) for path in site.rglob("*.html")}


def test_every_link_leads_to_a_file_and_to_a_place_in_it(site, pages):
    broken = []
    for address, page in pages.items():
        for link in page.links | page.loads:
            if re.match(r"https?://|mailto:|data:", link) or address == "404.html":
                continue
            target, place = map(unquote, urldefrag(urljoin(address, link)))
            there = pages[target].ids | {""} if target in pages else {""}
            if not (site / target).is_file() or place not in there:
                broken.append(f"{address}: {link}")
    assert broken == []
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_nothing_is_loaded_from_elsewhere(pages):
    outside = {load for page in pages.values() for load in page.loads if "//" in load}
    assert outside == set()


def test_functions_of_the_map_and_of_the_ladder_lead_to_the_reference(pages):
    for name, least in (("equations.html", 80), ("ladder.html", 15)):
        leads = {link for link in pages[name].links if link.startswith("api/")}
        assert len(leads) > least, name
    for rung in range(1, 7):
        assert any(
            f"notebooks/ladder.html#rung-{rung}-" in link for link in pages["ladder.html"].links
        )


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[str]:
    """Serves the site, each page with the probe."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            path = site / self.path.lstrip("/")
            if path.suffix != ".html":
                return super().do_GET()
            content = path.read_bytes().replace(b"</body>", PROBE)
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(content)
            return None

        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium isn't installed")
def test_a_browser_without_a_network_draws_formulas_and_pictures(server, pages, tmp_path):
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")
    rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    shown = sorted(set(pages) - {"404.html"})
    for address in shown:
        done = subprocess.run(
            [CHROMIUM, *options, rules, f"--user-data-dir={tmp_path}",
             "--virtual-time-budget=60000", "--dump-dom", f"{server}/{address}"],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert said == [], address
        assert 'data-found="[[],[]]"' in done.stdout, (
            address, re.search(r'data-found="[^"]*"', done.stdout)
        )  # fmt: skip
    assert sum(pages[address].formulas for address in shown) > 150
