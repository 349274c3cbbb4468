"""The only door to other programs. Arguments are lists, never a shell; nothing secret may be among them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class ProcessResult:
    """How a program ended: exit `status` (127 where there is no such program, 124 where it ran out of time) and its last words, stripped."""

    status: int
    output: str


def run(argv: Sequence[str], timeout: float) -> ProcessResult:
    """Run a program to its end, at most `timeout` seconds; standard output and error come back as one text."""
    try:
        completed = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        return ProcessResult(127, f"{argv[0]} is not installed")
    except subprocess.TimeoutExpired:
        return ProcessResult(124, f"{argv[0]} did not end within {timeout:.0f} s")
    return ProcessResult(completed.returncode, completed.stdout.decode(errors="replace").strip())


def run_interactively(argv: Sequence[str], environment: Mapping[str, str], timeout: float) -> ProcessResult:
    """As `run`, with this environment; standard output alone comes back, and input and errors are the terminal's, so that it can ask."""
    try:
        completed = subprocess.run(
            argv, stdout=subprocess.PIPE, env=dict(environment), timeout=timeout, check=False
        )
    except FileNotFoundError:
        return ProcessResult(127, "")
    except subprocess.TimeoutExpired:
        return ProcessResult(124, "")
    return ProcessResult(completed.returncode, completed.stdout.decode(errors="replace").strip())


def spawn(argv: Sequence[str], environment: Mapping[str, str]) -> Process:
    """Start a program in a session of its own, with pipes for its input and output; its standard error is ours."""
    return subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(environment), start_new_session=True
    )
