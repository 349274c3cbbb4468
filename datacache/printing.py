"""How the command prints: tables for people, whose words reach no terminal as a command."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

# Programs that read the output get whole rows; people get rows folded to their window.
CONSOLE = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 10_000)


def print_facts(facts: Mapping[str, object]) -> None:
    """Print a line for each fact, named by its key; a map is its key=value words."""
    for key, value in facts.items():
        CONSOLE.print(f"[bold]{key}[/bold]: {as_plain_text(_format_value(value))}", highlight=False)


def print_table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]], unfolded: int = 0) -> None:
    """Print rows below their titles; the first `unfolded` columns are never folded: names, which people copy."""
    CONSOLE.print(build_table(titles, rows, unfolded))


def build_table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]], unfolded: int = 0) -> Table:
    """What `print_table` prints."""
    made = Table(
        *(Column(title, overflow="fold", no_wrap=at < unfolded) for at, title in enumerate(titles)), box=None
    )
    for row in rows:
        made.add_row(*map(as_plain_text, row))
    return made


def as_plain_text(text: str) -> str:
    """`text` as it is: what a source calls its files must reach neither the terminal nor rich as a command."""
    return escape(escape_unprintable(text))


def escape_unprintable(text: str) -> str:
    """`text` with escapes in the place of what a terminal would obey."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _format_value(value: object) -> str:
    return (
        " ".join(f"{key}={item}" for key, item in value.items()) if isinstance(value, Mapping) else str(value)
    )
