"""The single place that starts other programs.

Arguments are lists, never a shell command; they must hold no secret.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Process = subprocess.Popen[bytes]
TimeoutExpired = subprocess.TimeoutExpired


@dataclass(frozen=True)
class ProcessResult:
    """Result of a program: its exit status and its output, stripped.

    The status is 127 if there is no such program, and 124 if it ran out of time.
    """

    status: int
    output: str


def run(argv: Sequence[str], timeout: float) -> ProcessResult:
    """Run a program to its end, for at most `timeout` seconds.

    Standard output and error are returned as one text.
    """
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
    """Run a program that may ask the user, with the given environment.

    Only standard output is returned; input and errors are those of the terminal.
    """
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
    """Start a program in a session of its own, with pipes for input and output.

    It inherits standard error.
    """
    return subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(environment), start_new_session=True
    )
