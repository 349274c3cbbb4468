"""Records of the volumes on a node: one small file per volume, valid while its mounts exist.

The mount table is authoritative; a record says which volume a mount belongs to and how it was requested.
Mounts do not survive a reboot, so records must be written atomically (by rename), but not durably.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from csi.linux import durable_files
from csi.registry.volumes.record import WatchedVolumes

_FORMAT = 1
NO_LIMITS = "none"
"""The limit class of volumes without limits."""
_KEYS = (
    "id",
    "digest",
    "context",
    "capacity_bytes",
    "content_bytes",
    "inline",
    "staged",
    "targets",
    "limit_class",
    "performance",
    "pin",
)
_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,180}")


@dataclass(frozen=True)
class Exposure:
    """How a volume is mounted at one path: CSI access mode, read-only flag and mount flags, as requested.

    `pod` is the uid of the path's pod, "" if unknown. It is not compared: it is not part of the request.
    """

    mode: str
    readonly: bool = True
    mount_flags: tuple[str, ...] = ()
    pod: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON values for a record."""
        return {
            "mode": self.mode,
            "readonly": self.readonly,
            "flags": list(self.mount_flags),
            "pod": self.pod,
        }

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Exposure:
        """Decode the result of `to_json`; raises KeyError or TypeError for anything else."""
        return Exposure(
            mode=stored["mode"],
            readonly=stored["readonly"],
            mount_flags=tuple(stored["flags"]),
            pod=stored.get("pod", ""),
        )


@dataclass(frozen=True)
class NodeVolume:
    """A volume on this node.

    - `context`: its parameters, without the keys that Kubernetes adds.
    - `capacity_bytes`, `content_bytes`: the numbers of NodeGetVolumeStats.
    - `is_inline`: whether it is a CSI ephemeral volume.
    - `limit_class`: which of its image's loop devices it is read from.
    - `performance`: its performance keys as last read from the registry, None for those of the context.
    - `pin`: the pin of an inline volume, encoded by `NodePins.encode_pin`, None for none.
    """

    id: str
    digest: str
    context: Mapping[str, str]
    capacity_bytes: int
    content_bytes: int
    is_inline: bool = False
    staging_paths: Mapping[str, Exposure] = field(default_factory=dict)
    target_paths: Mapping[str, Exposure] = field(default_factory=dict)
    limit_class: str = NO_LIMITS
    performance: Mapping[str, str] | None = None
    pin: Mapping[str, Any] | None = None

    def with_staging_path(self, path: str, exposure: Exposure) -> NodeVolume:
        """Return the volume with an additional staging path."""
        return replace(self, staging_paths={**self.staging_paths, path: exposure})

    def with_target_path(self, path: str, exposure: Exposure) -> NodeVolume:
        """Return the volume with an additional target path."""
        return replace(self, target_paths={**self.target_paths, path: exposure})

    def without_paths(self, *removed: str) -> NodeVolume:
        """Return the volume without the staging and target paths in `removed`."""

        def keep(paths: Mapping[str, Exposure]) -> dict[str, Exposure]:
            return {path: exposure for path, exposure in paths.items() if path not in removed}

        return replace(self, staging_paths=keep(self.staging_paths), target_paths=keep(self.target_paths))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON values for a record."""
        return {
            "id": self.id,
            "digest": self.digest,
            "context": dict(self.context),
            "capacity_bytes": self.capacity_bytes,
            "content_bytes": self.content_bytes,
            "inline": self.is_inline,
            "staged": {path: exposure.to_json() for path, exposure in self.staging_paths.items()},
            "targets": {path: exposure.to_json() for path, exposure in self.target_paths.items()},
            "limit_class": self.limit_class,
            "performance": None if self.performance is None else dict(self.performance),
            "pin": None if self.pin is None else dict(self.pin),
        }

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> NodeVolume:
        """Decode the result of `to_json`; raises KeyError or TypeError for anything else."""
        durable_files.check_keys(stored, *_KEYS)
        return NodeVolume(
            id=stored["id"],
            digest=stored["digest"],
            context=stored["context"],
            capacity_bytes=stored["capacity_bytes"],
            content_bytes=stored["content_bytes"],
            # Records of earlier versions lack the keys with defaults.
            is_inline=stored.get("inline", False),
            staging_paths={path: Exposure.from_json(exposure) for path, exposure in stored["staged"].items()},
            target_paths={path: Exposure.from_json(exposure) for path, exposure in stored["targets"].items()},
            limit_class=stored.get("limit_class", NO_LIMITS),
            performance=stored.get("performance"),
            pin=stored.get("pin"),
        )

    @property
    def paths(self) -> list[str]:
        """All staging and target paths."""
        return [*self.staging_paths, *self.target_paths]


class VolumeRecords:
    """The records in `folder`, one file per volume.

    `watched` receives the ids of persistent volumes, whose performance may change.
    """

    def __init__(self, folder: Path, watched: WatchedVolumes | None = None) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._watched = watched or WatchedVolumes()

    def get(self, volume_id: str) -> NodeVolume | None:
        """Return the record of a volume; None if there is none, or a damaged one."""
        return _read_or_none(self._path(volume_id))

    def put(self, volume: NodeVolume) -> None:
        """Write the record; one without paths is removed."""
        path = self._path(volume.id)
        if not volume.paths:
            path.unlink(missing_ok=True)
            self._watched.discard(volume.id)
            return
        # Not synced: after a reboot, the mounts are gone and the record is void.
        durable_files.replace_text_unsynced(path, json.dumps({"format": _FORMAT, **volume.to_json()}))
        # The registry has no inline volumes, so nothing changes their performance.
        if not volume.is_inline:
            self._watched.add(volume.id)

    def load_all_and_delete_unreadable(self) -> Iterator[NodeVolume]:
        """Yield every readable record; delete every other file.

        Temporary files and damaged records are deleted, and so are records of another format: their mounts
        stay, but nothing knows them any more.
        """
        for path in sorted(self._folder.iterdir()):
            volume = _read_or_none(path) if path.suffix == ".json" else None
            if volume:
                yield volume
            else:
                path.unlink(missing_ok=True)

    def _path(self, volume_id: str) -> Path:
        # Ids are chosen by the caller, and may not be valid file names.
        plain = _PLAIN_ID.fullmatch(volume_id) and not volume_id.startswith("hashed-")
        name = volume_id if plain else "hashed-" + hashlib.sha256(volume_id.encode()).hexdigest()
        return self._folder / f"{name}.json"


def read_volumes(folder: Path) -> list[NodeVolume]:
    """Return the readable records in `folder`, by name, without changing the folder."""
    return [volume for path in sorted(folder.glob("[!.]*.json")) if (volume := _read_or_none(path))]


def _read_or_none(path: Path) -> NodeVolume | None:
    # A damaged record is none: the mount table is authoritative.
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return _decode_volume(json.loads(path.read_text()))
    return None


def _decode_volume(stored: dict[str, Any]) -> NodeVolume:
    if stored.pop("format") != _FORMAT:
        raise ValueError("another format")
    return NodeVolume.from_json(stored)
