"""Printing of tables and facts; text from outside never reaches the terminal as control codes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

# Programs that read the output get unfolded rows; people get rows folded to their window.
CONSOLE = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 10_000)


def print_facts(facts: Mapping[str, object]) -> None:
    """Print a line for each fact, named by its key; a mapping is printed as key=value words."""
    for key, value in facts.items():
        CONSOLE.print(f"[bold]{key}[/bold]: {as_plain_text(_format_value(value))}", highlight=False)


def print_table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]], unfolded: int = 0) -> None:
    """Print rows below their titles.

    The first `unfolded` columns are never folded, so that names can be copied.
    """
    CONSOLE.print(build_table(titles, rows, unfolded))


def build_table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]], unfolded: int = 0) -> Table:
    """Build the table that `print_table` prints."""
    table = Table(
        *(Column(title, overflow="fold", no_wrap=index < unfolded) for index, title in enumerate(titles)),
        box=None,
    )
    for row in rows:
        table.add_row(*map(as_plain_text, row))
    return table


def as_plain_text(text: str) -> str:
    """Return `text` so that it prints literally.

    File names of a source must not control the terminal or rich.
    """
    return escape(escape_unprintable(text))


def escape_unprintable(text: str) -> str:
    """Return `text` with characters escaped that a terminal would interpret."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _format_value(value: object) -> str:
    return (
        " ".join(f"{key}={item}" for key, item in value.items()) if isinstance(value, Mapping) else str(value)
    )
