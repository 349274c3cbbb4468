"""Where a secret could leak to, and where a failure could leave something."""

from __future__ import annotations

from pathlib import Path

from tests.kernel.machine import Machine, files_below

_TRACE = ("Traceback", 'File "', "line ")


def leaks(machine: Machine, secret: str, *messages: str) -> list[str]:
    """Messages, files (logs among them), command lines and environments of the programs and their
    descendants that hold the secret."""
    found = [f"message: {message}" for message in messages if secret in message]
    files = (path for path in files_below(machine.folder) if path.is_file() and not path.is_symlink())
    found += [str(path) for path in files if secret.encode() in _read(path) or secret in path.name]
    processes = (
        Path(f"/proc/{pid}/{name}") for pid in machine.plugins.processes() for name in ("cmdline", "environ")
    )
    return found + [f"{path}: {secret}" for path in processes if secret.encode() in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def stack_traces(machine: Machine, *messages: str) -> list[str]:
    """Messages and log lines that show a place in the code."""
    lines = [*messages, *machine.logs().splitlines()]
    return [line for line in lines if any(word in line for word in _TRACE) or ".py:" in line]


def assert_clean(machine: Machine, secret: str, *messages: str) -> None:
    """Nothing half-made, no place in the code, no secret."""
    assert machine.half_made() == []
    assert list((machine.plugins.registry / "volumes").iterdir()) == []
    assert not [target for target in (machine.folder / "pods").glob("*/mount") if target.exists()]
    assert stack_traces(machine, *messages) == []
    assert leaks(machine, secret, *messages) == []
