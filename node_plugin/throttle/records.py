"""Records of throttles, for a restarted plugin: one small file for each (pod, device).

The kernel holds the limits themselves. A record says which volumes they are for, so that none is left behind,
and the remaining burst credit. Cgroups do not survive a reboot, so records must be written atomically, but
not durably.
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
    """A volume published at one target, with its limits."""

    volume: str
    limits: Limits


@dataclass(frozen=True)
class GroupRecord:
    """The members (by target path) of the pod `pod` (its uid) on `device` ("major:minor"), and their burst.

    `counts` are the reads of each cgroup (by path below the hierarchy's root) at the time `counted_at`, in
    seconds since the boot with the id `boot`.
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
        """The sum of the members' limits; there must be at least one member."""
        return sum_limits(*(member.limits for member in self.members.values()))


class GroupRecords:
    """The records in `folder`, one file per group."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def get(self, pod: str, device: str) -> GroupRecord | None:
        """Return the record of a group; None if there is none, or a damaged one."""
        return _read_or_none(self._path(pod, device))

    def put(self, record: GroupRecord) -> None:
        """Write the record; one without members is removed."""
        path = self._path(record.pod, record.device)
        if record.members:
            # Not synced: cgroups and their limits end with the boot.
            durable_files.replace_text_unsynced(path, json.dumps(_encode_record(record)))
        else:
            path.unlink(missing_ok=True)

    def load_all_and_delete_unreadable(self) -> Iterator[GroupRecord]:
        """Yield every readable record; delete every other file: temporary, damaged, or of another format."""
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
    """Return the readable records in `folder`, by name, without changing the folder."""
    return [record for path in sorted(folder.glob("*.json")) if (record := _read_or_none(path))]


def _read_or_none(path: Path) -> GroupRecord | None:
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        return _decode_record(json.loads(path.read_text()))
    return None


def _encode_record(record: GroupRecord) -> dict[str, Any]:
    burst = record.burst
    meter = burst.meter
    members = {
        target: {"volume": member.volume, "limits": member.limits.to_json()}
        for target, member in record.members.items()
    }
    used = {
        "total": meter.total,
        "used": _encode_count(meter.used),
        "seconds": meter.seconds,
        "before": meter.previous_speed,
    }
    # Some keys are former names of the fields; they stay, since earlier versions have written them.
    return {
        "format": _FORMAT,
        "pod": record.pod,
        "device": record.device,
        "claims": members,
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
            target: RecordedMember(member["volume"], Limits.from_json(member["limits"]))
            for target, member in stored["claims"].items()
        },
        burst=_decode_burst(stored["burst"]),
        counts={str(path): _decode_count(count) for path, count in stored["counts"].items()},
        counted_at=float(stored["at"]),
        boot=str(stored["boot"]),
    )


def _decode_count(encoded: dict[str, Any]) -> ReadCount:
    return ReadCount(ios=int(encoded["ios"]), bytes=int(encoded["bytes"]))


def _decode_burst(encoded: dict[str, Any]) -> BurstState:
    meter = encoded["meter"]
    return BurstState(
        credit=None if encoded["credit"] is None else float(encoded["credit"]),
        is_open=bool(encoded["open"]),
        meter=BurstMeter(
            total=float(meter["total"]),
            used=_decode_count(meter["used"]),
            seconds=float(meter["seconds"]),
            previous_speed=float(meter["before"]),
        ),
    )
