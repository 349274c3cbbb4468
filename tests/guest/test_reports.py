"""What became of a guest is told as it was: its tests' status and no other, and every end without one is a
failure that shows why."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.guest.machine import Reports, run


@pytest.fixture
def reports(tmp_path: Path) -> Reports:
    return Reports(tmp_path)


def guest(reports: Reports, script: str, limit: float = 60.0) -> int:
    """A shell script in the place of a guest; `$console` and `$status` are what its serial lines lead to."""
    return run(["sh", "-c", f"console={reports.console}; status={reports.status}\n{script}"], reports, limit)


@pytest.mark.parametrize("status", [0, 1, 2, 5])
def test_the_status_is_pytests(
    reports: Reports, status: int, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert (
        guest(reports, f"echo '{status} dots ... é'; echo 'pytest ended with {status}' > $status") == status
    )
    assert capfdbinary.readouterr().out == f"{status} dots ... é\n".encode()


@pytest.mark.parametrize("said", ["", "pytest ended with ", "pytest ended with 0 or so", "0"])
def test_a_guest_that_ends_without_a_status_has_failed_and_its_console_says_why(
    reports: Reports, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    script = f"seq 500 > $console; echo 'Kernel panic - not syncing' >> $console; printf '{said}' > $status; echo no such disk >&2; echo 2 passed"  # noqa: E501
    assert guest(reports, script) == 1
    out = capfd.readouterr().out
    assert "2 passed" in out
    assert "without saying how pytest ended" in out
    assert "Kernel panic" in out
    assert "\n  500\n" in out
    assert "\n  400\n" not in out
    assert "no such disk" in out


def test_a_guest_that_hangs_is_stopped_and_has_failed_whatever_it_said(
    reports: Reports, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (
        guest(
            reports, "echo 'pytest ended with 0' > $status; echo stuck > $console; exec sleep 1000", limit=0.5
        )
        == 1
    )
    out = capfd.readouterr().out
    assert "stopped after 0.5 seconds" in out
    assert "stuck" in out


def test_output_is_passed_on_while_it_comes(reports: Reports, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = f"echo first; while ! [ -e {seen} ]; do sleep 0.05; done; echo 'pytest ended with 0' > {reports.status}"  # noqa: E501
    code = f"from pathlib import Path; from tests.guest.machine import *; run(['sh', '-c', {script!r}], Reports(Path({str(tmp_path)!r})), 60)"  # noqa: E501
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "first\n"
        seen.touch()
        assert process.wait(60) == 0


def test_an_interrupted_run_leaves_no_guest(
    reports: Reports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = tmp_path / "number"

    def interrupt(*_: object) -> bool:
        while not number.exists() or not number.read_text():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr("tests.guest.machine._pass_on", interrupt)
    with pytest.raises(KeyboardInterrupt):
        guest(reports, f"echo $$ > {number}; exec sleep 1000")
    assert not Path("/proc", number.read_text().strip()).exists()
