"""Results of worker operations, as both ends of the worker's pipe see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from csi.linux.durable_files import check_keys
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.volume_parameters import parse_volume_parameters


@dataclass(frozen=True)
class Resolution:
    """Result of a resolve: the pinned `spec`, the manifest's `digest` and sizes in bytes.

    `unverifiable_count` is the number of files for which the origin gives no digest.
    """

    spec: CacheSpec
    digest: str
    content_bytes: int
    image_bytes: int
    file_count: int
    unverifiable_count: int

    def encode(self) -> dict[str, Any]:
        """Return the resolution as JSON values, for the worker's pipe and `ProofMemory`."""
        # These keys are stored by `ProofMemory`: a changed key would void all proofs.
        return {
            "spec": self.spec.to_context(),
            "digest": self.digest,
            "content_bytes": self.content_bytes,
            "image_bytes": self.image_bytes,
            "files": self.file_count,
            "unverifiable": self.unverifiable_count,
        }

    @staticmethod
    def decode(wire: Mapping[str, Any]) -> Resolution:
        """Return the resolution that `encode` wrote; raise KeyError or TypeError for anything else."""
        check_keys(wire, "spec", "digest", "content_bytes", "image_bytes", "files", "unverifiable")
        return Resolution(
            spec=parse_volume_parameters(wire["spec"]).spec,
            digest=wire["digest"],
            content_bytes=wire["content_bytes"],
            image_bytes=wire["image_bytes"],
            file_count=wire["files"],
            unverifiable_count=wire["unverifiable"],
        )


@dataclass(frozen=True)
class StoredImageInfo:
    """An image in the image store, with its sizes and upload time (seconds since 1970).

    `access` is the pinned spec, as flat parameters, of an origin that is known to hold its bytes. `damaged`
    is the error of an image that cannot be read, "" for all others.
    """

    digest: str
    access: Mapping[str, str] = field(default_factory=dict)
    image_bytes: int = 0
    content_bytes: int = 0
    stored_at: float = 0.0
    damaged: str = ""

    def encode(self) -> dict[str, Any]:
        """Return JSON values, for the worker's pipe and the file of a listing."""
        return {
            "digest": self.digest,
            "access": dict(self.access),
            "image_bytes": self.image_bytes,
            "content_bytes": self.content_bytes,
            "stored_at": self.stored_at,
            "damaged": self.damaged,
        }

    @staticmethod
    def decode(wire: Mapping[str, Any]) -> StoredImageInfo:
        """Return the image that `encode` described."""
        return StoredImageInfo(**wire)


@dataclass(frozen=True)
class AnnouncementListing:
    """The announcements of an image store, each as `Announcement.encode` returns it.

    `damaged` are the errors of those that cannot be read.
    """

    announcements: tuple[Mapping[str, Any], ...]
    damaged: tuple[str, ...]
