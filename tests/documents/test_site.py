"""The site of docs/: it builds without a warning, loads nothing from the network, and no page is left out
of it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.documents.blocks import DOCS, NOT_RUN, blocks, prose

ROOT = DOCS.parent
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
MAX_LINE = 160
# What a browser fetches by itself, and from whom: a link to click is none.
_LOADED = re.compile(
    r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)"
)


def nav_pages(nav: list[Any]) -> Iterator[str]:
    """The pages of a navigation, at any depth."""
    for entry in nav:
        for item in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(item, str):
                yield item
            else:
                yield from nav_pages(item)


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(nav_pages(nav)) == PAGES


def test_the_site_builds_and_loads_nothing_from_the_network(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("MkDocs is not installed; `make docs` installs it and builds the site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    # With --quiet MkDocs counts no warning, and --strict finds nothing to fail for.
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("INFO ")] == []
    made = sorted(tmp_path.rglob("*.html"))
    assert len(made) == len(PAGES) + 1, "each page, and 404.html"
    assert {url for page in made for url in _LOADED.findall(page.read_text())} == set()
    assert [path.name for path in tmp_path.rglob("*.py")] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_line_of_prose_is_too_long(page: str) -> None:
    assert [line for line in prose((DOCS / page).read_text()) if len(line) > MAX_LINE] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_begins_with_a_title_and_text(page: str) -> None:
    title, empty, first, *_ = (DOCS / page).read_text().splitlines()
    assert title.startswith("# ")
    assert empty == ""
    assert re.match(r"\S", first)
    assert not first.startswith(("#", "|", "```", "- "))


@pytest.mark.parametrize("page", ["quick-start.md", "install.md"])
def test_a_block_that_no_test_runs_says_why(page: str) -> None:
    titled = [block.title for block in blocks(page) if block.title]
    assert [title for title in titled if not title.startswith(NOT_RUN)] == []


def test_the_cluster_tests_run_every_part_of_the_installation() -> None:
    """They take a part's blocks one by one; here it is seen that they know every part that has commands."""
    runner = (ROOT / "tests/cluster/test_install_document.py").read_text()
    parts = re.split(r"^## ", (DOCS / "install.md").read_text(), flags=re.MULTILINE)[1:]
    with_commands = [
        part.partition("\n")[0] for part in parts if re.search(r"^```$\n.*?^```$", part, re.M | re.S)
    ]
    assert len(with_commands) >= 7
    assert [heading for heading in with_commands if f'"{heading}"' not in runner] == []
