"""What a node remembers of its throttles between two lives of the plugin: one small file for each (pod, device).

The kernel holds the limits themselves; a record says whose they are, so that none is left behind, and what is left of a
burst credit. Cgroups do not outlive a reboot, so records need to be whole but not to survive a power cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csi.linux import durable_files
from csi.linux.cgroups.hierarchy import Count
from csi.performance.limits import Limits, together
from node_plugin.throttle.burst import Burst
from node_plugin.throttle.meter import Meter

_FORMAT = 1


@dataclass(frozen=True)
class Claimed:
    """A volume's claim on the device, made by its publishing at a target."""

    volume: str
    limits: Limits


@dataclass(frozen=True)
class GroupRecord:
    """The claims (by target path) of the pod `pod` (its uid) on `device` ("major:minor") and the state of their burst.

    `counts` are what each cgroup (by its path below the hierarchy's root) had read at the time `at` (seconds since the boot `boot`).
    """

    pod: str
    device: str
    claims: Mapping[str, Claimed] = field(default_factory=dict)
    burst: Burst = field(default_factory=Burst)
    counts: Mapping[str, Count] = field(default_factory=dict)
    at: float = 0.0
    boot: str = ""

    @property
    def limits(self) -> Limits:
        """The sum of the claims, of which there is at least one."""
        return together(*(claim.limits for claim in self.claims.values()))


class GroupRecords:
    """The records in `folder`, one file a group."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def get(self, pod: str, device: str) -> GroupRecord | None:
        """The record of a group; None where there is none, or only a damaged one."""
        return _read(self._path(pod, device))

    def put(self, record: GroupRecord) -> None:
        """Write the record; one without claims is removed."""
        path = self._path(record.pod, record.device)
        if record.claims:
            durable_files.replace_text(path, json.dumps(_encoded(record)))
        else:
            path.unlink(missing_ok=True)

    def all(self) -> Iterator[GroupRecord]:
        """Every readable record; what is none is removed on the way."""
        for path in sorted(self._folder.iterdir()):
            record = _read(path) if path.suffix == ".json" else None
            if record:
                yield record
            else:
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def _path(self, pod: str, device: str) -> Path:
        return self._folder / f"{pod}.{device.replace(':', '-')}.json"


def read_records(folder: Path) -> list[GroupRecord]:
    """The readable records in `folder`, by name; the folder is only read, whoever owns it."""
    return [record for path in sorted(folder.glob("*.json")) if (record := _read(path))]


def _read(path: Path) -> GroupRecord | None:
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        return _decoded(json.loads(path.read_text()))
    return None


def _encoded(record: GroupRecord) -> dict[str, Any]:
    burst, meter = record.burst, record.burst.meter
    claims = {target: {"volume": claim.volume, "limits": claim.limits.to_json()} for target, claim in record.claims.items()}
    used = {"total": meter.total, "used": _count_json(meter.used), "seconds": meter.seconds, "before": meter.before}
    return {
        "format": _FORMAT,
        "pod": record.pod,
        "device": record.device,
        "claims": claims,
        "burst": {"credit": burst.credit, "open": burst.open, "meter": used},
        "counts": {path: _count_json(count) for path, count in record.counts.items()},
        "at": record.at,
        "boot": record.boot,
    }


def _count_json(count: Count) -> dict[str, int]:
    return {"ios": count.ios, "bytes": count.bytes}


def _decoded(kept: dict[str, Any]) -> GroupRecord:
    if kept["format"] != _FORMAT:
        raise ValueError("another format")
    return GroupRecord(
        pod=str(kept["pod"]),
        device=str(kept["device"]),
        claims={target: Claimed(claim["volume"], Limits.from_json(claim["limits"])) for target, claim in kept["claims"].items()},
        burst=_burst(kept["burst"]),
        counts={str(path): _count(count) for path, count in kept["counts"].items()},
        at=float(kept["at"]),
        boot=str(kept["boot"]),
    )


def _count(kept: dict[str, Any]) -> Count:
    return Count(ios=int(kept["ios"]), bytes=int(kept["bytes"]))


def _burst(kept: dict[str, Any]) -> Burst:
    meter = kept["meter"]
    return Burst(
        credit=None if kept["credit"] is None else float(kept["credit"]),
        open=bool(kept["open"]),
        meter=Meter(total=float(meter["total"]), used=_count(meter["used"]), seconds=float(meter["seconds"]), before=float(meter["before"])),
    )
