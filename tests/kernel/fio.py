"""fio in a container: what a pod's reads reach, and when each of them was answered."""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.kernel.kubelet import Container


@dataclass(frozen=True)
class Job:
    """One way of reading; `flags` are fio's."""

    name: str
    flags: tuple[str, ...]


def direct(size: str, depth: int = 8) -> Job:
    """Random O_DIRECT reads of `size` ("4k"), `depth` at a time."""
    return Job(
        f"direct {size}",
        ("--direct=1", "--ioengine=libaio", f"--iodepth={depth}", "--rw=randread", f"--bs={size}"),
    )


# MAPPED faults single pages in, in random order, none twice before a whole file is read: a page that is there
# already is no I/O.
# (With several processes on one file fio's mmap engine would overlook their offsets; so a file each.)
DIRECT_4K, DIRECT_16K = direct("4k"), direct("16k")
MAPPED = Job("mmap 4k", ("--ioengine=mmap", "--rw=randread", "--bs=4k"))
SEQUENTIAL = Job("sequential 1m", ("--direct=1", "--ioengine=libaio", "--iodepth=4", "--rw=read", "--bs=1m"))


@dataclass(frozen=True)
class Result:
    """What a run of `seconds` read: I/Os and bytes; `moments` are the seconds (whole ms) at which each I/O
    ended, where asked for.

    They count from its begin; of a run that keeps to the clock, from 1970.
    """

    seconds: float
    ios: int
    bytes: int
    moments: Sequence[float] = field(default=(), repr=False)

    @property
    def iops(self) -> float:
        """I/Os a second."""
        return self.ios / self.seconds

    @property
    def bytes_per_second(self) -> float:
        """Bytes a second."""
        return self.bytes / self.seconds

    def between(self, begin: float, end: float) -> float:
        """I/Os a second in a part of the run."""
        return sum(begin <= moment < end for moment in self.moments) / (end - begin)

    def series(self, width: float = 0.5) -> list[int]:
        """I/Os a second in each whole `width` seconds of the run."""
        counts = [0] * int(self.seconds / width)
        for moment in self.moments:
            if (number := int(moment / width)) < len(counts):
                counts[number] += 1
        return [round(count / width) for count in counts]

    def undisturbed(self, begin: float = 0.0, end: float = math.inf) -> float:
        """I/Os a second in the best quarter of the half seconds from `begin` to `end`: whatever else the
        machine does only lowers the others."""
        inside = [
            iops
            for number, iops in enumerate(self.series())
            if begin <= number / 2 and number / 2 + 0.5 <= end
        ]
        return sorted(inside)[-max(1, len(inside) // 4)]

    def held_at(self, iops: float, tolerance: float) -> bool:
        """Whether it read no faster than `iops` a second in whole, and that fast where nothing disturbed
        it."""
        return self.iops <= iops * (1 + tolerance) and self.undisturbed() >= iops * (1 - tolerance)


class Fio:
    """One fio for `seconds`, started in `container`, a process of it for each of `files`; with `log`, the
    moment of every I/O is kept.

    With `ios` it ends after so many reads of each process, whatever the time.
    `clock`: by the machine's clock, so that several runs can be judged `together`.
    """

    def __init__(
        self,
        container: Container,
        files: Path | Sequence[Path],
        job: Job,
        seconds: float,
        log: bool = False,
        clock: bool = False,
        ios: int = 0,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="datacache-fio-")
        self._log = log
        until = [f"--number_ios={ios}"] if ios else ["--time_based", f"--runtime={round(seconds * 1000)}ms"]
        argv = ["fio", "--readonly", *until, "--group_reporting", *job.flags]
        argv += [f"--output={self._folder.name}/json", "--output-format=json"]
        if log:
            argv += [
                f"--write_lat_log={self._folder.name}/log",
                "--per_job_logs=0",
                "--disable_clat=1",
                "--disable_slat=1",
                f"--log_unix_epoch={int(clock)}",
            ]
        for number, file in enumerate([files] if isinstance(files, Path) else files):
            argv += [f"--name=reader{number}", f"--filename={file}"]
        self.process = container.start(argv, cwd=self._folder.name, stderr=subprocess.PIPE)

    def forget(self) -> None:
        """Wait for one that was killed with its container; it has no result."""
        self.process.wait()
        self._folder.cleanup()

    def wait(self) -> Result:
        """Its result; fails the test where fio failed."""
        _, errors = self.process.communicate()
        with self._folder:
            output = Path(self._folder.name, "json")
            assert self.process.returncode == 0, (
                f"fio ended with {self.process.returncode}: "
                f"{errors}\n{output.exists() and output.read_text()}"
            )
            read = json.loads(output.read_text())["jobs"][0]["read"]
            moments = _moments(Path(self._folder.name, "log_lat.log")) if self._log else ()
        return Result(read["runtime"] / 1000, read["total_ios"], read["io_bytes"], moments)


def together(results: Sequence[Result]) -> Result:
    """What runs that kept to the clock read as one, while all of them ran: each begins when its fio is
    ready."""
    begin, end = (
        max(min(result.moments) for result in results),
        min(max(result.moments) for result in results),
    )
    moments = sorted(
        moment - begin for result in results for moment in result.moments if begin <= moment < end
    )
    return Result(end - begin, len(moments), 0, moments)


def run(
    container: Container, files: Path | Sequence[Path], job: Job, seconds: float, log: bool = False
) -> Result:
    """One run to its end."""
    return Fio(container, files, job, seconds, log).wait()


def count(container: Container, files: Path | Sequence[Path], job: Job, ios: int) -> Result:
    """One run of `ios` reads (of each file), however long they take."""
    return Fio(container, files, job, 0.0, ios=ios).wait()


def _moments(log: Path) -> list[float]:
    """fio's log: a line an I/O, the first word of which is the millisecond of its end ("Log File Formats"
    in fio's manual)."""
    return [int(line.split(",", 1)[0]) / 1000 for line in log.read_text().splitlines()]
