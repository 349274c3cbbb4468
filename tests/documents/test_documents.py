"""What the documents name is there: files, names in files, parameters, flags, make targets."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from controller_plugin.__main__ import build_parser as controller_flags
from controller_plugin.operator.__main__ import build_parser as operator_flags
from csi import __version__
from csi.images.fill.request_gate import MAX_RETRY_AFTER
from csi.images.fill.retrying_reader import MAX_ATTEMPTS, MAX_RETRY_PAUSE, MIN_RETRY_PAUSE
from csi.parameters import volume_parameters
from csi.parameters.dialects.keys import KeySetter
from csi.parameters.dialects.table import source_key_table
from csi.sources.http.file_urls import MAX_REDIRECTS
from datacache.__main__ import cli
from node_plugin.__main__ import build_parser as node_flags

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))),
)
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(
    r"(?:csi|controller_plugin|node_plugin|datacache|tests|deploy|docs|proto|requirements)/[\w./-]*|[A-Z]+(?:\.md)|setup\.cfg|Makefile|LICENSE"
)


def text(name: str) -> str:
    return (ROOT / name).read_text()


def paths_in(name: str) -> list[str]:
    return sorted({code for code in _CODE.findall(text(name)) if _PATH.fullmatch(code)})


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_that_a_document_names_exists(document: str) -> None:
    assert [path for path in paths_in(document) if not (ROOT / path).exists()] == []


def test_the_way_in_and_the_internals_name_many_files() -> None:
    assert len(paths_in("ARCHITECTURE.md")) > 30
    assert len(paths_in("docs/internals/node-publish.md")) > 15


@pytest.mark.parametrize(("document", "limit"), [("README.md", 800), ("ARCHITECTURE.md", 1500)])
def test_the_documents_that_everybody_reads_are_short(document: str, limit: int) -> None:
    assert len(text(document).split()) <= limit


def test_the_page_of_reliability_says_how_often_an_origin_is_asked() -> None:
    said = " ".join(text("docs/reliability.md").split())
    pauses = f"pauses from {MIN_RETRY_PAUSE:g} to {MAX_RETRY_PAUSE:g} s"
    assert f"{MAX_ATTEMPTS} attempts, with {pauses}; at most {MAX_RETRY_AFTER:g} s if the origin" in said
    assert f"{MAX_REDIRECTS} redirects at most, so it is {MAX_REDIRECTS + 1} requests" in said


def test_every_name_that_the_glossary_has_in_code_is_in_it() -> None:
    code = "\n".join(
        path.read_text() for folder in ("csi", "node_plugin") for path in (ROOT / folder).rglob("*.py")
    )
    rows = [
        line.split("|") for line in text("docs/internals/glossary.md").splitlines() if line.count("|") == 4
    ]
    named = {name for row in rows for name in _CODE.findall(row[3]) if "/" not in name}
    assert len(named) > 40
    assert {name for name in named if not re.search(rf"\b{name.split('.')[-1]}\b", code)} == set()


def _texts_of(source: str) -> Iterator[str]:
    """Every text that a module may print, with a NUL for each value in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)


def test_every_message_that_troubleshooting_explains_can_still_be_printed() -> None:
    folders = ("csi", "node_plugin", "controller_plugin", "datacache")
    printed = "\n".join(
        said
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        for said in _texts_of(path.read_text())
    )
    messages = [
        code for code in _CODE.findall(text("docs/troubleshooting.md")) if "…" in code and " " in code
    ]
    assert len(messages) > 40
    patterns = {
        message: "[^\n]*?".join(re.escape(part) for part in re.split(r"\s*…\s*", message) if part)
        for message in messages
    }
    assert [message for message, pattern in patterns.items() if not re.search(pattern, printed)] == []


def test_the_generated_pages_are_what_the_code_would_make() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_document_of_parameters_has_every_key_and_says_who_may_set_it() -> None:
    rows = [
        line.split("|")
        for line in text("docs/parameters.md").splitlines()
        if line.startswith("| `") and line.count("|") == 6
    ]
    shown = {key: row[4].strip() for row in rows for key in _CODE.findall(row[1])}
    assert volume_parameters.KEYS.keys() <= shown.keys()
    assert set(shown.values()) == {setter.value for setter in KeySetter}


def test_the_document_of_parameters_says_who_may_set_the_keys_within_sources() -> None:
    refused = [key.name for key in source_key_table().values() if key.setter is KeySetter.ADMINISTRATOR]
    said = text("docs/parameters.md").partition("Within `sources`")[2]
    assert refused
    assert f"in an inline volume,\nall but {', '.join(f'`{name}`' for name in refused)}." in said


def _commands(group: click.Group) -> Iterator[click.Command]:
    """The commands of a group, and of the groups in it."""
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from _commands(command)
        else:
            yield command


def _flags_of_the_programs() -> set[str]:
    parsers = (controller_flags(), node_flags(), operator_flags())
    flags = {option for parser in parsers for option in parser._option_string_actions}
    options = (parameter.opts for command in _commands(cli) for parameter in command.params)
    return flags | {option for opts in options for option in opts if option.startswith("-")}


def test_every_flag_that_a_document_names_exists() -> None:
    # Of make demo, external-provisioner and kubectl.
    others = {"--repo", "--extra-create-metadata", "--overwrite", "--server-side"}
    for document in ("README.md", "ARCHITECTURE.md", *DOCUMENTS[4:]):
        flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(_CODE.findall(text(document)))))
        assert (document, flags - others - _flags_of_the_programs()) == (document, set())


def test_the_page_of_flags_has_every_flag_and_every_subcommand() -> None:
    said = text("docs/flags.md")
    # argparse's own two, which every program has.
    flags = _flags_of_the_programs() - {"-h", "--help", "--version"}
    assert {flag for flag in flags if f"`{flag}`" not in said} == set()
    assert {
        name for name in cli.commands if not re.search(rf"^### datacache {name}\b", said, re.MULTILINE)
    } == set()


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    for document in DOCUMENTS:
        assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text(document), re.MULTILINE)) <= targets


def test_each_flag_of_the_programs_is_explained() -> None:
    for parser in (controller_flags(), node_flags(), operator_flags()):
        assert [
            action.dest
            for action in parser._actions
            if not action.help and not isinstance(action, argparse._HelpAction)
        ] == []


def test_the_changes_name_this_version() -> None:
    assert f"## {__version__}" in text("CHANGELOG.md")


def test_the_licence_is_whole() -> None:
    licence = text("LICENSE")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert len(licence) > 10_000


@pytest.mark.parametrize(
    "name",
    ["requirements/runtime.txt", "requirements/dev.txt", "requirements/docs.txt", "requirements/model.txt"],
)
def test_the_lock_files_name_no_index_and_pin_everything_by_hash(name: str) -> None:
    lines = text(name).splitlines()
    assert not [line for line in lines if line.startswith("-") or "://" in line]
    pinned = [at for at, line in enumerate(lines) if re.match(r"[A-Za-z0-9]", line)]
    assert pinned
    assert all("==" in lines[at] and lines[at + 1].strip().startswith("--hash=sha256:") for at in pinned)
