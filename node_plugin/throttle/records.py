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
from csi.linux.cgroups.hierarchy import ReadCount
from csi.performance.limits import Limits, sum_limits
from node_plugin.throttle.burst import BurstState
from node_plugin.throttle.meter import BurstMeter

_FORMAT = 1


@dataclass(frozen=True)
class RecordedMember:
    """A volume's claim on the device, made by its publishing at a target."""

    volume: str
    limits: Limits


@dataclass(frozen=True)
class GroupRecord:
    """The claims (by target path) of the pod `pod` (its uid) on `device` ("major:minor") and the state of their burst.

    `counts` are what each cgroup (by its path below the hierarchy's root) had read at the time `counted_at` (seconds since the boot `boot`).
    """

    pod: str
    device: str
    members: Mapping[str, RecordedMember] = field(default_factory=dict)
    burst: BurstState = field(default_factory=BurstState)
    counts: Mapping[str, ReadCount] = field(default_factory=dict)
    counted_at: float = 0.0
    boot: str = ""

    @property
    def limits(self) -> Limits:
        """The sum of the claims, of which there is at least one."""
        return sum_limits(*(claim.limits for claim in self.members.values()))


class GroupRecords:
    """The records in `folder`, one file a group."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def get(self, pod: str, device: str) -> GroupRecord | None:
        """The record of a group; None where there is none, or only a damaged one."""
        return _read_or_none(self._path(pod, device))

    def put(self, record: GroupRecord) -> None:
        """Write the record; one without claims is removed."""
        path = self._path(record.pod, record.device)
        if record.members:
            durable_files.replace_text_unsynced(path, json.dumps(_encode_record(record)))
        else:
            path.unlink(missing_ok=True)

    def all(self) -> Iterator[GroupRecord]:
        """Every readable record; what is none is removed on the way."""
        for path in sorted(self._folder.iterdir()):
            record = _read_or_none(path) if path.suffix == ".json" else None
            if record:
                yield record
            else:
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def _path(self, pod: str, device: str) -> Path:
        return self._folder / f"{pod}.{device.replace(':', '-')}.json"


def read_records(folder: Path) -> list[GroupRecord]:
    """The readable records in `folder`, by name; the folder is only read, whoever owns it."""
    return [record for path in sorted(folder.glob("*.json")) if (record := _read_or_none(path))]


def _read_or_none(path: Path) -> GroupRecord | None:
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        return _decode_record(json.loads(path.read_text()))
    return None


def _encode_record(record: GroupRecord) -> dict[str, Any]:
    burst, meter = record.burst, record.burst.meter
    claims = {
        target: {"volume": claim.volume, "limits": claim.limits.to_json()}
        for target, claim in record.members.items()
    }
    used = {
        "total": meter.total,
        "used": _encode_count(meter.used),
        "seconds": meter.seconds,
        "before": meter.previous_speed,
    }
    return {
        "format": _FORMAT,
        "pod": record.pod,
        "device": record.device,
        "claims": claims,
        "burst": {"credit": burst.credit, "open": burst.is_open, "meter": used},
        "counts": {path: _encode_count(count) for path, count in record.counts.items()},
        "at": record.counted_at,
        "boot": record.boot,
    }


def _encode_count(count: ReadCount) -> dict[str, int]:
    return {"ios": count.ios, "bytes": count.bytes}


def _decode_record(stored: dict[str, Any]) -> GroupRecord:
    if stored["format"] != _FORMAT:
        raise ValueError("another format")
    return GroupRecord(
        pod=str(stored["pod"]),
        device=str(stored["device"]),
        members={
            target: RecordedMember(claim["volume"], Limits.from_json(claim["limits"]))
            for target, claim in stored["claims"].items()
        },
        burst=_decode_burst(stored["burst"]),
        counts={str(path): _decode_count(count) for path, count in stored["counts"].items()},
        counted_at=float(stored["at"]),
        boot=str(stored["boot"]),
    )


def _decode_count(kept: dict[str, Any]) -> ReadCount:
    return ReadCount(ios=int(kept["ios"]), bytes=int(kept["bytes"]))


def _decode_burst(kept: dict[str, Any]) -> BurstState:
    meter = kept["meter"]
    return BurstState(
        credit=None if kept["credit"] is None else float(kept["credit"]),
        is_open=bool(kept["open"]),
        meter=BurstMeter(
            total=float(meter["total"]),
            used=_decode_count(meter["used"]),
            seconds=float(meter["seconds"]),
            previous_speed=float(meter["before"]),
        ),
    )
