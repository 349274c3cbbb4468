"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

ENDPOINT_OPTION = click.option(
    "--endpoint",
    envvar="DATACACHE_ENDPOINT",
    required=True,
    help="socket of the plugin, as unix:///...",
)
TOKEN_OPTION = click.option(
    "--token-file", type=click.Path(path_type=Path, exists=True), help="file that holds the hub's token"
)


def parse_pairs(words: tuple[str, ...]) -> dict[str, str]:
    """Parse key=value arguments into a mapping; raises click.BadParameter naming a malformed one."""
    for word in words:
        if "=" not in word:
            raise click.BadParameter(f"{word!r} is not key=value")
    return dict(word.split("=", 1) for word in words)


def read_token_file(token_file: Path | None) -> dict[str, str]:
    """Read a token file into a volume's Secret.

    A token is never taken from the command line, where others could see it.
    """
    return {"token": token_file.read_text().strip()} if token_file else {}
