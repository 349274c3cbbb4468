"""Generates docs/parameters.md and docs/flags.md from the tables and parsers of the code."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click

from controller_plugin.__main__ import build_parser as controller_parser
from controller_plugin.operator.__main__ import build_parser as operator_parser
from csi.parameters.dialects.keys import Key, KeySetter, SecretKey
from csi.parameters.dialects.table import DIALECTS
from csi.parameters.performance_keys import KEY_TABLE
from csi.parameters.volume_parameters import VOLUME_KEYS
from datacache.__main__ import cli
from node_plugin.__main__ import build_parser as node_parser

FOLDER = Path(__file__).resolve().parent

_PARAMETERS = """# Parameters

Use this page to look up a key: what it means, its default, who may set it, and which keys a source reads
from its Secret. It is generated from the code by `make docs`; do not edit it.

A StorageClass gives keys as `parameters`, a static PV or an inline volume as `volumeAttributes`. Upper
and lower case make no difference. An unknown key is refused, and the message names the nearest known
one.

"Who may set it": a StorageClass and a PV are written by an administrator, an inline volume by the author
of a pod. A key that only an administrator may set is refused in an inline volume.

With `--registry kubernetes` on the controller and `--extra-create-metadata` on external-provisioner, a
PVC may give keys as well, in annotations `datacache.csi.io/KEY`. They override those of the
StorageClass, whose `pvcAnnotations` lists the keys that are allowed: any that all may set, except
`writerAccessModes`. If such a key names the source, the source is checked as that of an inline volume
is, against the controller's `--allow-origins` and `--allow-inline-nas`.

None of these keys is secret. A key that is a credential is refused, with a pointer to Secrets; so is a
URL with a login, or with a query parameter whose name is that of a signature, key or token. The keys
that a source reads from its Secret have a table of their own. Their values are all secret, and are never
written to a volume, a log, an error or a file.
"""
_FLAGS = """# Flags

Use this page to look up a flag of one of the four programs: its environment variable, default and
meaning. It is generated from the code by `make docs`; do not edit it.

Each flag of the three daemons can be given as an environment variable instead; the command line wins
over the environment. Durations are written `90s`, `10m`, `24h` or `7d`, sizes as Kubernetes quantities
(`500Gi`). In the chart, `extraArgs` takes flags and `extraEnv` takes variables.

The daemons and the command also read these variables, which belong to others:

| Variable | Meaning |
| --- | --- |
| `HF_ENDPOINT`, `MODELSCOPE_ENDPOINT` | the hubs that `repoId` is looked up on, instead of the public ones |
| `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY` | proxies, as most programs read them |
| `REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE` | a file or folder of CA certificates, instead of the system's |
| `KUBECONFIG` | the cluster, outside of a pod |
"""
_PROGRAMS: tuple[tuple[str, Callable[[], argparse.ArgumentParser]], ...] = (
    ("One on each node; kubelet calls it.", node_parser),
    ("Beside external-provisioner and external-resizer, which call it.", controller_parser),
    ("Makes DataCaches Available; optional.", operator_parser),
)


def parameters() -> str:
    """Return the text of docs/parameters.md."""
    parts = [_PARAMETERS, "## Every volume\n", _key_table(VOLUME_KEYS)]
    parts += [
        "## Performance\n",
        "[Performance](performance.md) explains how they combine. "
        "All of them can be changed on a live volume.\n",
        _key_table(KEY_TABLE),
    ]
    for dialect in DIALECTS:
        types = " or ".join(f"`{name}`" for name in dialect.types)
        parts += [f"## {dialect.title}\n", f"`type`: {types}.\n", _key_table(dialect.keys)]
        if dialect.secrets:
            parts += ["In its Secret:\n", _secret_table(dialect.secrets)]
        if dialect.name == "several":
            parts += [_keys_within_sources()]
    return "\n".join(parts)


def flags() -> str:
    """Return the text of docs/flags.md."""
    parts = [_FLAGS]
    for what, make in _PROGRAMS:
        parser = make()
        parts += [f"## {parser.prog}\n", f"{parser.description} {what}\n", _flag_table(parser)]
    parts += [
        "## datacache\n",
        "What people type. A subcommand that fails prints one line on standard error and exits with 1.\n",
    ]
    for path, command in _commands("datacache", cli):
        parts += [f"### {path}\n", _command(path, command)]
    return "\n".join(parts)


def _keys_within_sources() -> str:
    """Who may set the keys of the sources within `sources`."""
    refused = dict.fromkeys(
        f"`{key.name}`"
        for dialect in DIALECTS
        for key in dialect.keys
        if key.setter is KeySetter.ADMINISTRATOR
    )
    return (
        "Within `sources` a source has the keys of its own table, and whom that table names may set them: "
        f"in an inline volume,\nall but {', '.join(refused)}. "
        "The keys of every volume and of performance stand beside `sources`.\n"
    )


def _key_table(keys: Iterable[Key]) -> str:
    head = ("Key", "Meaning", "Default", "Who may set it", "Secret")
    return _table(
        head, ((_names(key), key.meaning, _key_default(key), key.setter.value, "no") for key in keys)
    )


def _secret_table(keys: Iterable[SecretKey]) -> str:
    return _table(
        ("Key of the Secret", "Meaning", "Secret"), ((f"`{key.name}`", key.meaning, "yes") for key in keys)
    )


def _names(key: Key) -> str:
    return ", ".join(f"`{name}`" for name in (key.name, *key.aliases))


def _key_default(key: Key) -> str:
    if key.setter is KeySetter.CONTROLLER:
        return "written by the controller"
    return key.default or ("required" if key.is_required else "")


def _flag_table(parser: argparse.ArgumentParser) -> str:
    # The help ends with the variable in brackets, as people see it with --help.
    rows = []
    for action in parser._actions:
        meaning, bracket, rest = (action.help or "").replace("%%", "%").rpartition(" [DATACACHE_")
        if bracket:
            variable = f"`DATACACHE_{rest.removesuffix(']')}`"
            choices = f": {', '.join(f'`{choice}`' for choice in action.choices)}" if action.choices else ""
            default = "required" if action.required else _default(action.default)
            rows.append((f"`{action.option_strings[0]}`", variable, default, _escaped(meaning) + choices))
    return _table(("Flag", "Environment", "Default", "Meaning"), rows)


def _commands(path: str, group: click.Group) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(f"{path} {name}", command)
        else:
            yield f"{path} {name}", command


def _command(path: str, command: click.Command) -> str:
    context = click.Context(command, info_name=path)
    usage = " ".join(command.collect_usage_pieces(context))
    text = "\n\n".join(
        textwrap.fill(_escaped(part), 130, break_on_hyphens=False)
        for part in (command.help or "").split("\n\n")
    )
    rows = [_option(option, context) for option in command.params if isinstance(option, click.Option)]
    return f"```\n{path} {usage}\n```\n\n{text}\n" + (
        "\n" + _table(("Option", "Environment", "Default", "Meaning"), rows) if rows else ""
    )


def _option(option: click.Option, context: click.Context) -> tuple[str, ...]:
    names = ", ".join(f"`{name}`" for name in option.opts)
    choices = (
        f": {', '.join(f'`{choice}`' for choice in option.type.choices)}"
        if isinstance(option.type, click.Choice)
        else ""
    )
    default = option.get_default(context, call=False)
    # What has no default has a marker of click's own.
    known = default if isinstance(default, (str, int, float, Path)) and not option.is_flag else ""
    shown = "required" if option.required else _default(known)
    return names, f"`{option.envvar}`" if option.envvar else "", shown, _escaped(option.help or "") + choices


def _default(value: object) -> str:
    return f"`{value}`" if str(value or "") else ""


def _escaped(text: str) -> str:
    """Plain text as Markdown: what would be emphasis or a tag is shown as it is."""
    return text.replace("*", "\\*").replace("<", "&lt;")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [
        head,
        tuple("---" for _ in head),
        *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    """Write the generated pages, or check that they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is stale")
    check = parser.parse_args().check
    # The defaults are those of the code, whatever this shell has set.
    for name in [name for name in os.environ if name.startswith("DATACACHE_")]:
        del os.environ[name]
    pages = {FOLDER / "parameters.md": parameters(), FOLDER / "flags.md": flags()}
    if not check:
        for path, text in pages.items():
            path.write_text(text)
    elif stale := [
        path.name for path, text in pages.items() if not path.exists() or path.read_text() != text
    ]:
        sys.exit(
            f"stale: {', '.join(f'docs/{name}' for name in stale)}; run `make docs` and commit the result"
        )


if __name__ == "__main__":
    main()
