"""What a node remembers of a volume between its calls: one small file a volume, void once its mounts are gone.

The mount table decides what is true; a record only says whose mount it is and how it was asked for. Mounts do not
outlive a reboot, so records need to be whole (they are renamed into place) but not to survive a power cut.
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
    "id", "digest", "context", "capacity_bytes", "content_bytes", "inline", "staged", "targets", "limit_class", "performance", "pin",
)  # fmt: skip
_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,180}")


@dataclass(frozen=True)
class Exposure:
    """How a volume is shown at one path: the CSI access mode's name, whether read-only was asked, and the caller's mount flags.

    `pod` is the uid of the pod whose path it is, "" for none known; it is no part of how.
    """

    mode: str
    readonly: bool = True
    mount_flags: tuple[str, ...] = ()
    pod: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return what a record keeps of it."""
        return {
            "mode": self.mode,
            "readonly": self.readonly,
            "flags": list(self.mount_flags),
            "pod": self.pod,
        }

    @staticmethod
    def from_json(kept: Mapping[str, Any]) -> Exposure:
        """Return what `to_json` wrote; raise KeyError or TypeError for anything else."""
        return Exposure(
            mode=kept["mode"],
            readonly=kept["readonly"],
            mount_flags=tuple(kept["flags"]),
            pod=kept.get("pod", ""),
        )


@dataclass(frozen=True)
class NodeVolume:
    """A volume on this node. `context` holds its parameters without Kubernetes' own keys; `staging_paths` and `target_paths` map paths to how they show it.

    `capacity_bytes` and `content_bytes` are what its stats say; `is_inline` marks volumes that live and die with their pod;
    `limit_class` names the device, among those of its image, that it is read from; `performance` are its performance keys
    as the registry had them last, None for those of the context; `pin` is that of an inline volume, as `NodePins.encode_pin` writes it, None for none.
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
        """This volume, staged at `path` too."""
        return replace(self, staging_paths={**self.staging_paths, path: exposure})

    def with_target_path(self, path: str, exposure: Exposure) -> NodeVolume:
        """This volume, published at `path` too."""
        return replace(self, target_paths={**self.target_paths, path: exposure})

    def without_paths(self, *removed: str) -> NodeVolume:
        """This volume, shown neither staged nor published at the paths `removed`."""
        staged = {path: shown for path, shown in self.staging_paths.items() if path not in removed}
        return replace(
            self,
            staging_paths=staged,
            target_paths={path: shown for path, shown in self.target_paths.items() if path not in removed},
        )

    def to_json(self) -> dict[str, Any]:
        """Return what a record keeps of it."""
        return {
            "id": self.id,
            "digest": self.digest,
            "context": dict(self.context),
            "capacity_bytes": self.capacity_bytes,
            "content_bytes": self.content_bytes,
            "inline": self.is_inline,
            "staged": {path: shown.to_json() for path, shown in self.staging_paths.items()},
            "targets": {path: shown.to_json() for path, shown in self.target_paths.items()},
            "limit_class": self.limit_class,
            "performance": None if self.performance is None else dict(self.performance),
            "pin": None if self.pin is None else dict(self.pin),
        }

    @staticmethod
    def from_json(kept: Mapping[str, Any]) -> NodeVolume:
        """Return what `to_json` wrote; raise KeyError or TypeError for anything else."""
        durable_files.check_keys(kept, *_KEYS)
        return NodeVolume(
            id=kept["id"],
            digest=kept["digest"],
            context=kept["context"],
            capacity_bytes=kept["capacity_bytes"],
            content_bytes=kept["content_bytes"],
            is_inline=kept.get("inline", False),
            staging_paths={path: Exposure.from_json(shown) for path, shown in kept["staged"].items()},
            target_paths={path: Exposure.from_json(shown) for path, shown in kept["targets"].items()},
            limit_class=kept.get("limit_class", NO_LIMITS),
            performance=kept.get("performance"),
            pin=kept.get("pin"),
        )

    @property
    def paths(self) -> list[str]:
        """All paths that show the volume."""
        return [*self.staging_paths, *self.target_paths]


class VolumeRecords:
    """The records in `folder`, one file a volume. `shown` has the ids of those that this start has put and that the controller made."""

    def __init__(self, folder: Path, watched: WatchedVolumes | None = None) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._watched = folder, watched or WatchedVolumes()

    def get(self, volume_id: str) -> NodeVolume | None:
        """The record of a volume; None where there is none, or only a damaged one."""
        return _read_or_none(self._path(volume_id))

    def put(self, volume: NodeVolume) -> None:
        """Write the record; one without paths is removed."""
        path = self._path(volume.id)
        if not volume.paths:
            path.unlink(missing_ok=True)
            self._watched.discard(volume.id)
            return
        durable_files.replace_text_unsynced(path, json.dumps({"format": _FORMAT, **volume.to_json()}))
        if not volume.is_inline:
            self._watched.add(volume.id)

    def list_all(self) -> Iterator[NodeVolume]:
        """Every readable record; what a killed plugin left half-written is removed on the way."""
        for path in sorted(self._folder.iterdir()):
            volume = _read_or_none(path) if path.suffix == ".json" else None
            if volume:
                yield volume
            else:
                path.unlink(missing_ok=True)

    def _path(self, volume_id: str) -> Path:
        plain = _PLAIN_ID.fullmatch(volume_id) and not volume_id.startswith("hashed-")
        name = volume_id if plain else "hashed-" + hashlib.sha256(volume_id.encode()).hexdigest()
        return self._folder / f"{name}.json"


def read_volumes(folder: Path) -> list[NodeVolume]:
    """The readable records in `folder`, by name; the folder is only read, whoever owns it."""
    return [volume for path in sorted(folder.glob("[!.]*.json")) if (volume := _read_or_none(path))]


def _read_or_none(path: Path) -> NodeVolume | None:
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return _decode_volume(json.loads(path.read_text()))
    return None


def _decode_volume(stored: dict[str, Any]) -> NodeVolume:
    if stored.pop("format") != _FORMAT:
        raise ValueError("another format")
    return NodeVolume.from_json(stored)
