"""Machines whose volumes have limits, for the benchmarks of throttling: pods in cgroups as kubelet makes
them, on a model of several files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.contents import make
from tests.benchmarks.rounds import say
from tests.benchmarks.table import Series, Table
from tests.kernel.kubelet import V2, Kubelet
from tests.kernel.machine import Machine
from tests.kernel.throttle.volumes import Shown, Volumes
from tests.origins.hub import Hub

FILES = 4


@dataclass
class Site:
    """One machine, its pods and their volumes, all of the same model."""

    machine: Machine
    kubelet: Kubelet
    volumes: Volumes


@contextmanager
def hub_of(folder: Path, total: int) -> Iterator[Hub]:
    """A hub with a model of `total` bytes in `FILES` files and folders enough for a walk.

    Gone afterwards, its files too.
    """
    say(f"making {total / 2**30:g} GiB")
    root = folder / "model"
    files = {
        f"model-{number}.bin": make(root / str(number), "one", total // FILES)["model.safetensors"]
        for number in range(FILES)
    }
    notes = {f"notes/{number:04}/a-note-with-a-name.json": b"{}" for number in range(1000)}
    with Hub() as hub:
        hub.repo("org/model", {**files, **notes})
        try:
            yield hub
        finally:
            shutil.rmtree(root)


@contextmanager
def site(folder: Path, hub: Hub, *node: str) -> Iterator[Site]:
    """Fresh programs on one registry; everything is taken away afterwards."""
    place = Path(tempfile.mkdtemp(prefix="throttled-", dir=folder))
    with (
        Machine(place, {"HF_ENDPOINT": hub.endpoint}, list(node), shared_registry=True) as machine,
        Kubelet(place) as kubelet,
    ):
        volumes = Volumes(machine, kubelet)
        try:
            yield Site(machine, kubelet, volumes)
        finally:
            volumes.clear()
    shutil.rmtree(place)


def parts(shown: Shown) -> list[Path]:
    """The large files of the model."""
    return [shown.target / f"model-{number}.bin" for number in range(FILES)]


def within(
    table: Table, what: str, figure: float, limit: float, share: float, most: float = float("inf")
) -> None:
    """A line: how far `figure` is from `limit`, and whether that is within `share`.

    `most` is what the disk gives without a limit.
    """
    verdict = f"within {share:.0%}: {'met' if abs(figure / limit - 1) <= share else 'MISSED'}"
    if most < limit * 1.1:
        verdict = f"the disk gives {most:.{table.digits}f}"
    table.rows.append(
        (
            what,
            f"{figure:.{table.digits}f} {table.unit}",
            f"{figure / limit - 1:+.2%} of {limit:.{table.digits}f}",
            verdict,
        )
    )


def percentiles(table: Table, what: str, values: Sequence[float]) -> None:
    """Lines for the middle, the 99th of a hundred and the largest."""
    series = Series(tuple(values))
    for label, share in (("p50", 0.5), ("p99", 0.99), ("most", 1.0)):
        table.row(f"{what}, {label}", Series((series.percentile(share),)))


def cgroups() -> str:
    """Which version is measured."""
    return "cgroup v2" if V2 else "cgroup v1: each container holds the limit by itself"
