"""Blocks of Markdown documents, as tests run and read them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
# A fence, its language, and what else is said of it, which Material shows as the block's title.
_FENCED = re.compile(r'^```(\w*)(?: title="([^"\n]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
NOT_RUN = "Not run by the tests: "
# What a script of a page's blocks begins with: it stops at the first command that fails, and leaves no
# program behind.
STRICT_SHELL = "set -e\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n"


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, "" for none, its title and its text."""

    language: str
    title: str
    text: str

    @property
    def is_run(self) -> bool:
        """Whether the page promises that a test runs it; its title says why where it does not."""
        return not self.title.startswith(NOT_RUN)


def blocks(page: str, language: str | None = None) -> list[Block]:
    """All blocks of a page of docs/, in order; of one language where that is given."""
    text = (DOCS / page).read_text()
    found = [Block(*groups) for groups in _FENCED.findall(text)]
    assert 2 * len(found) == len(re.findall(r"^```", text, re.MULTILINE)), (
        f"{page} has a fence that is not understood"
    )
    return [block for block in found if language in (None, block.language)]


def prose(text: str) -> list[str]:
    """The lines of a document that are no code and no row of a table."""
    return [
        line
        for line in re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).splitlines()
        if not line.startswith("|")
    ]
