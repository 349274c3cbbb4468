"""Flags, their environment variables, and the sizes people write."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from controller_plugin.__main__ import build_parser as controller_parser
from csi.program.flags import (
    DRIVER_NAME,
    add_flag,
    parse_count,
    parse_driver_name,
    parse_duration,
    parse_optional_size,
    parse_size,
)
from node_plugin.__main__ import build_parser as node_parser

REQUIRED = ["--endpoint", "unix:///run/csi.sock", "--node-id", "node-1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1048576", 2**20),
        ("500Gi", 500 * 2**30),
        ("2T", 2 * 10**12),
        ("1.5Ki", 1536),
        ("3k", 3000),
        ("7Mi", 7 * 2**20),
    ],
)
def test_a_size_is_a_kubernetes_quantity(text: str, expected: int) -> None:
    assert parse_size(text) == parse_optional_size(text) == expected


@pytest.mark.parametrize("text", ["", "Gi", "-1", "1 Gi", "1GiB", "1g", "1e9", "0x10", "1.Gi"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size"):
        parse_size(text)


def test_no_size_may_be_given() -> None:
    assert parse_optional_size("") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90s", 90), ("10m", 600), ("24h", 86400), ("7d", 604800), ("0.5s", 0.5), ("0", 0)],
)
def test_a_duration_is_read_in_seconds(text: str, expected: float) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "m", "-1s", "1w", "1 m", "10ms", "1h30m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "1.5"])
def test_a_count_is_at_least_one(text: str) -> None:
    assert parse_count("512") == 512
    with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
        parse_count(text)


def test_a_driver_name_is_a_domain_name_of_at_most_63_characters() -> None:
    for good in (DRIVER_NAME, "a", "a" * 63):
        assert parse_driver_name(good) == good
    for bad in ("", "a" * 64, "-a", "a.", "a b", "a/b", "a\n"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a CSI driver name"):
            parse_driver_name(bad)


def test_every_flag_is_also_in_the_environment_and_the_command_line_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATACACHE_ENDPOINT", "unix:///env.sock")
    monkeypatch.setenv("DATACACHE_NODE_ID", "env-node")
    monkeypatch.setenv("DATACACHE_STORE_SIZE", "5Gi")
    monkeypatch.setenv("DATACACHE_FILL_GRACE", "1h")
    options = node_parser().parse_args(["--node-id", "line-node"])
    assert (options.endpoint, options.node_id, options.store_size, options.fill_grace) == (
        "unix:///env.sock",
        "line-node",
        5 * 2**30,
        3600.0,
    )
    for parser in (node_parser(), controller_parser()):
        for action in parser._actions:
            if action.dest not in ("help", "version"):
                assert f"[DATACACHE_{action.dest.upper()}]" in (action.help or "")


def test_what_has_no_default_must_be_given() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flag(parser, "--needed")
    # From Python 3.13 on the latter.
    with pytest.raises((SystemExit, argparse.ArgumentError)):
        parser.parse_args([])


def test_defaults_are_the_documented_ones() -> None:
    options = node_parser().parse_args(REQUIRED)
    assert (options.store, options.store_size, options.proof_ttl, options.offline_grace) == (
        Path("/var/lib/datacache"),
        None,
        600.0,
        604800.0,
    )
    assert (options.driver_name, options.rpc_threads, options.allow_inline_nas) == (DRIVER_NAME, 512, [])


@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        ("node_plugin", [*REQUIRED, "--store-size", "many"], "'many' is not a size"),
        ("node_plugin", [*REQUIRED, "--allow-inline-nas", "nas"], "'nas' is not server:/path"),
        ("node_plugin", [*REQUIRED, "--fill-workers", "0"], "at least 1"),
        ("controller_plugin", ["--endpoint", "tcp://x", "--registry", "registry"], "--endpoint is 'tcp://x'"),
    ],
)
def test_a_program_that_cannot_start_says_why_in_one_line_without_a_trace(
    tmp_path: Path, program: str, arguments: list[str], words: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
