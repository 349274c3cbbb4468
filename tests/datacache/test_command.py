"""The `datacache` command as people run it, against a local hub and the real programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from csi.pb.csi_pb2 import Volume
from datacache import volume_commands
from datacache.__main__ import cli
from datacache.options import parse_pairs, read_token_file
from tests.origins.hub import Hub
from tests.plugins import Plugins

COMMAND = str(Path(sys.executable).with_name("datacache"))
FILES = {"config.json": b"{}\n", "model.safetensors": b"\1" * 3_000_000, "sub/vocab [x].txt": b"word\n"}
SIZE = sum(map(len, FILES.values()))
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.repo("org/open", FILES)
        running.repo("org/private", FILES, private=True, tokens={"hf_right"})
        yield running


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Run:
    """Runs the command with the hub in its environment; returns what it said."""
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HOME": str(tmp_path), "COLUMNS": "60"}

    def ran(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=120
        )

    return ran


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("hf_right\n")
    return path


def test_resolve_tells_programs_what_a_volume_would_hold_and_fetches_no_file(run: Run, hub: Hub) -> None:
    before = hub.counters.bytes_sent.total()
    done = run("resolve", "repoId=org/open", "-o", "json", "--files")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    commit = hub.repositories["model", "org/open"].branches["main"]
    assert found["pinned"] == {
        "type": "URL",
        "repoSource": "HuggingFace/Model",
        "repoId": "org/open",
        "revision": commit,
    }
    assert (found["files"], found["contentBytes"], found["filesWithDigest"], found["filesWithoutDigest"]) == (
        3,
        SIZE,
        3,
        0,
    )
    assert found["imageBytes"] >= SIZE
    assert found["imageBytes"] % 4096 == 0
    assert len(found["digest"]) == 64
    assert {entry["path"]: entry["bytes"] for entry in found["list"]} == {
        path: len(data) for path, data in FILES.items()
    }
    assert all(entry["digest"].startswith(("sha256:", "git:")) for entry in found["list"])
    assert hub.counters.bytes_sent.total() - before < 100_000


def test_resolve_tells_people_the_same(run: Run) -> None:
    facts = json.loads(run("resolve", "repoId=org/open", "-o", "json").stdout)
    done = run("resolve", "repoId=org/open", "--files")
    assert done.returncode == 0, done.stderr
    for words in (
        "source: HuggingFace/Model org/open@",
        f"digest: {facts['digest']}",
        "files: 3",
        f"contentBytes: {SIZE}",
        "revision=",
        "sub/vocab [x].txt",
    ):
        assert words in done.stdout
    assert "list" not in facts


def test_the_names_of_files_are_shown_and_never_obeyed(run: Run, hub: Hub) -> None:
    names = ["[bold red]x[/]", "a\x1b[31mb", "c\nd", "[/]"]
    hub.repo("org/hostile", dict.fromkeys(names, b"x"))
    done = run("resolve", "repoId=org/hostile", "--files")
    assert done.returncode == 0, done.stderr
    assert all(line.isprintable() for line in done.stdout.split("\n"))
    rows = [line.strip().split("  ")[0] for line in done.stdout.splitlines()]
    assert {"[bold red]x[/]", r"a\x1b[31mb", r"c\nd", "[/]"} <= set(rows)


def test_two_resolves_say_the_same_digest(run: Run) -> None:
    digests = {
        json.loads(run("resolve", *spec, "-o", "json").stdout)["digest"]
        for spec in (["repoId=org/open"], ["REPOID=org/open", "type=URL"])
    }
    assert len(digests) == 1


def test_patterns_choose_files(run: Run) -> None:
    found = json.loads(
        run(
            "resolve",
            "repoId=org/open",
            "allowPatterns=*.json,sub/*",
            "ignorePatterns=sub/*",
            "-o",
            "json",
            "--files",
        ).stdout
    )
    assert [entry["path"] for entry in found["list"]] == ["config.json"]


def test_a_private_repository_needs_a_token_from_a_file(run: Run, token_file: Path) -> None:
    refused = run("resolve", "repoId=org/private")
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith("datacache: ")
    assert refused.stderr.count("\n") == 1
    assert run("resolve", "repoId=org/private", "--token-file", token_file).returncode == 0
    token_file.write_text("hf_wrong\n")
    again = run("resolve", "repoId=org/private", "--token-file", token_file)
    assert again.returncode == 1
    assert "hf_wrong" not in again.stdout + again.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["repoId=org/missing"], 1, "org/missing"),
        (["repoId=org/open", "revision=nope"], 1, "nope"),
        (["repo=org/open"], 1, "did you mean"),
        (["repoId=org/open", "token=hf_secret"], 1, "Secret"),
        (["repoId"], 2, "is not key=value"),
        ([], 2, "Missing argument"),
        (["repoId=org/open", "--token-file", "/no/such/file"], 2, "does not exist"),
    ],
)
def test_what_cannot_be_resolved_is_one_line_on_standard_error(
    run: Run, arguments: list[str], status: int, words: str
) -> None:
    done = run("resolve", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "hf_secret" not in done.stderr


def test_words_are_pairs_and_a_value_may_hold_an_equals_sign() -> None:
    assert parse_pairs(("a=1", "b=x=y", "c=")) == {"a": "1", "b": "x=y", "c": ""}
    with pytest.raises(click.BadParameter, match="'word' is not key=value"):
        parse_pairs(("a=1", "word"))


def test_a_token_is_read_from_a_file_and_no_option_takes_one(token_file: Path) -> None:
    assert read_token_file(token_file) == {"token": "hf_right"}
    assert read_token_file(None) == {}
    names = {
        option
        for command in cli.commands.values()
        for parameter in command.params
        for option in parameter.opts
    }
    assert "--token-file" in names
    assert "--token" not in names


def test_every_subcommand_explains_itself(run: Run) -> None:
    shown = run("--help").stdout
    assert all(name in shown and command.help for name, command in cli.commands.items())


def test_volumes_are_created_listed_and_deleted_through_a_controllers_socket(
    run: Run, hub: Hub, tmp_path: Path, token_file: Path
) -> None:
    plugins = Plugins(tmp_path, {"HF_ENDPOINT": hub.endpoint})
    plugins.controller.start()
    try:
        at = ("--endpoint", plugins.controller.endpoint)
        made = json.loads(run("create", *at, "mine", "repoId=org/private", "--token-file", token_file).stdout)
        assert made["context"]["repoId"] == "org/private"
        assert made["capacity_bytes"] == 2**30
        listed = run("volumes", *at).stdout
        assert made["volume_id"] in listed
        assert "org/private" in listed
        assert made["context"]["manifestDigest"][:12] in listed
        refused = run("create", *at, "mine", "repoId=org/open")
        assert refused.returncode == 1
        assert "exists with other parameters" in refused.stderr
        assert run("delete", *at, made["volume_id"]).returncode == 0
        assert made["volume_id"] not in run("volumes", *at).stdout
    finally:
        plugins.controller.stop()
    gone = run("volumes", *at)
    assert gone.returncode == 1
    assert gone.stderr.startswith("datacache: ")
    assert "Traceback" not in gone.stderr


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT RUN: mounts through the command, because they need root")
def test_a_volume_is_mounted_and_taken_away_as_kubelet_would(run: Run, hub: Hub, tmp_path: Path) -> None:
    with Plugins(tmp_path, {"HF_ENDPOINT": hub.endpoint}) as plugins:
        at = ("--endpoint", plugins.node.endpoint)
        staging, pod, inline = (tmp_path / name for name in ("staging", "pod", "inline"))
        assert run("stage", *at, "vol", staging, "repoId=org/open").returncode == 0
        assert run("publish", *at, "vol", pod, "repoId=org/open", "--staging", staging).returncode == 0
        assert (
            run("publish", *at, "csi-1", inline, "repoId=org/open", "--mode", "SINGLE_NODE_WRITER").returncode
            == 0
        )
        for root in (pod, inline):
            assert (root / "model.safetensors").read_bytes() == FILES["model.safetensors"]
        shown = run("images", plugins.store).stdout
        assert shown.count("sealed") == 1
        assert "2.9 MiB" in shown
        for volume, path in (("vol", pod), ("csi-1", inline)):
            assert run("unpublish", *at, volume, path).returncode == 0
        assert run("unstage", *at, "vol", staging).returncode == 0
        assert plugins.leftovers() == []


@pytest.mark.parametrize(
    ("context", "source"),
    [
        ({"url": "https://files.example/a.bin"}, "files.example"),
        ({"server": "nas.example", "path": "/models"}, "nas.example:/models"),
        ({"of": "another driver"}, "unknown"),
    ],
)
def test_a_listed_volume_names_its_source_whatever_its_kind(context: dict[str, str], source: str) -> None:
    row = volume_commands._build_volume_row(Volume(volume_id="dc-1", volume_context=context))
    assert source in row[1]
