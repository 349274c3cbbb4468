"""The operations of a worker: one class for each, with the fields that it uses and nothing else.

An operation knows how its result crosses the worker's pipe, so that both ends see typed values. Folders of
images are as `csi.images.node_store.records.ImagePaths` names their files; all paths are absolute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from csi.parameters.cache_spec import CacheSpec
from csi.parameters.content_ref import ContentRef, Secrets
from csi.parameters.volume_parameters import parse_volume_parameters
from csi.worker.results import AnnouncementListing, Resolution, StoredImageInfo

Result = TypeVar("Result")


class Operation(ABC, Generic[Result]):
    """An operation that answers with a `Result`; `name` names it on the worker's pipe and in its log."""

    name: ClassVar[str]

    @property
    def egress_profile(self) -> str:
        """The egress profile of the worker that executes it, "" for none."""
        return ""

    @staticmethod
    @abstractmethod
    def encode_result(result: Result) -> dict[str, Any]:
        """Return the result as JSON values."""

    @staticmethod
    @abstractmethod
    def decode_result(wire: Mapping[str, Any]) -> Result:
        """Return the result that `encode_result` encoded."""


class _OperationWithoutResult(Operation[None]):
    @staticmethod
    def encode_result(result: None = None) -> dict[str, Any]:
        return {}

    @staticmethod
    def decode_result(wire: Mapping[str, Any]) -> None:
        return None


@dataclass(frozen=True)
class ImageStoreRef:
    """The image store at `url` (`csi.image_store.location`; "" for none), and the driver's own credential."""

    url: str = ""
    secrets: Secrets = field(default_factory=Secrets)


@dataclass(frozen=True)
class _SourceOperation(Operation[Result]):
    spec: CacheSpec
    secrets: Secrets

    @property
    def egress_profile(self) -> str:
        """The egress profile of the spec."""
        return self.spec.egress_profile


@dataclass(frozen=True)
class _ContentOperation(_OperationWithoutResult):
    content: ContentRef
    folder: Path
    max_connections: int

    @property
    def egress_profile(self) -> str:
        """The egress profile of the source that the content names, "" if it names none."""
        return self.content.source.get("egressProfile", "")


@dataclass(frozen=True)
class PinSource(_SourceOperation[CacheSpec]):
    """Pin `spec` at its origin, and return the pinned spec."""

    name = "pin-source"

    @staticmethod
    def encode_result(result: CacheSpec) -> dict[str, Any]:
        """Return the pinned spec as flat parameters."""
        return {"spec": result.to_context()}

    @staticmethod
    def decode_result(wire: Mapping[str, Any]) -> CacheSpec:
        """Return the pinned spec."""
        return parse_volume_parameters(wire["spec"]).spec


@dataclass(frozen=True)
class ResolveSource(_SourceOperation[Resolution]):
    """Pin and list `spec` and check read access with `secrets`; return its resolution.

    The manifest is written to the new file `manifest`, if given.
    """

    name = "resolve-source"
    manifest: Path | None = None

    @staticmethod
    def encode_result(result: Resolution) -> dict[str, Any]:
        """Return the resolution as JSON values."""
        return result.encode()

    @staticmethod
    def decode_result(wire: Mapping[str, Any]) -> Resolution:
        """Return the resolution."""
        return Resolution.decode(wire)


@dataclass(frozen=True)
class FillImage(_ContentOperation):
    """Fill and seal the image in `folder` over `max_connections` connections; returns nothing.

    Extents of the images in the folders `reuse_candidates` are copied. `image_store` is tried first; if there
    is none to try, `image_store_error` is the reason, which becomes part of the fill's own error. Reports
    progress.
    """

    name = "fill-image"
    reuse_candidates: tuple[Path, ...] = ()
    image_store: ImageStoreRef = field(default_factory=ImageStoreRef)
    image_store_error: str = ""


@dataclass(frozen=True)
class VerifyImage(_ContentOperation):
    """Compare the sealed image in `folder` with the content's source; returns nothing.

    `seed` (hex) selects the ranges that are compared, over `max_connections` connections.
    """

    name = "verify-image"
    # Secret: an origin that knew it could send the right bytes in the compared ranges only.
    seed: str = field(repr=False)


@dataclass(frozen=True)
class UploadImage(_OperationWithoutResult):
    """Upload the sealed image in `folder`; returns nothing, reports progress.

    It is recorded with the pinned spec `source` (flat parameters; empty for the manifest's) of an origin that
    is known to hold its bytes.
    """

    name = "upload-image"
    image_store: ImageStoreRef
    folder: Path
    source: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FindStoredImage(Operation[StoredImageInfo | None]):
    """Return the image with a digest or snapshot id, None if there is none."""

    name = "find-image"
    image_store: ImageStoreRef
    digest_or_snapshot_id: str

    @staticmethod
    def encode_result(result: StoredImageInfo | None) -> dict[str, Any]:
        """Return the image as JSON values, {} for none."""
        return result.encode() if result else {}

    @staticmethod
    def decode_result(wire: Mapping[str, Any]) -> StoredImageInfo | None:
        """Return the image, or None."""
        return StoredImageInfo.decode(wire) if wire else None


@dataclass(frozen=True)
class FetchStoredManifest(Operation[StoredImageInfo]):
    """Write the manifest of the image `digest` to the new file `manifest`, and return the image."""

    name = "fetch-manifest"
    image_store: ImageStoreRef
    digest: str
    manifest: Path

    @staticmethod
    def encode_result(result: StoredImageInfo) -> dict[str, Any]:
        """Return the image as JSON values."""
        return result.encode()

    @staticmethod
    def decode_result(wire: Mapping[str, Any]) -> StoredImageInfo:
        """Return the image."""
        return StoredImageInfo.decode(wire)


@dataclass(frozen=True)
class ListStoredImages(_OperationWithoutResult):
    """Write all images to the file `listing`, one encoded StoredImageInfo in each line; returns nothing.

    A file, so that the worker's pipe carries no long listing.
    """

    name = "list-images"
    image_store: ImageStoreRef
    listing: Path


@dataclass(frozen=True)
class CollectStoredImages(Operation[list[str]]):
    """Remove unwanted images, and return their digests.

    An image is removed once its digest was missing in the file `wanted_digests` (one in each line) for
    `grace_seconds`.
    """

    name = "collect-images"
    image_store: ImageStoreRef
    # A file, since there may be many thousands of digests.
    wanted_digests: Path
    grace_seconds: float

    @staticmethod
    def encode_result(result: list[str]) -> dict[str, Any]:
        """Return the digests as JSON values."""
        return {"removed": result}

    @staticmethod
    def decode_result(wire: Mapping[str, Any]) -> list[str]:
        """Return the digests."""
        return list(wire["removed"])


@dataclass(frozen=True)
class RemoveStoredImage(_OperationWithoutResult):
    """Remove the image `digest`; a missing one is no error. Returns nothing."""

    name = "remove-image"
    image_store: ImageStoreRef
    digest: str


@dataclass(frozen=True)
class CopyStoredImage(_OperationWithoutResult):
    """Copy the image `digest` to the image store `target`; returns nothing, reports progress."""

    name = "copy-image"
    image_store: ImageStoreRef
    target: ImageStoreRef
    digest: str


@dataclass(frozen=True)
class Announce(_OperationWithoutResult):
    """Publish an announcement, as `Announcement.encode` returns it; returns nothing."""

    name = "announce"
    image_store: ImageStoreRef
    announcement: Mapping[str, Any]


@dataclass(frozen=True)
class ListAnnouncements(Operation[AnnouncementListing]):
    """Return all announcements, and the errors of those that cannot be read."""

    name = "list-announcements"
    image_store: ImageStoreRef

    @staticmethod
    def encode_result(result: AnnouncementListing) -> dict[str, Any]:
        """Return the announcements and errors as JSON values."""
        return {"announcements": list(result.announcements), "damaged": list(result.damaged)}

    @staticmethod
    def decode_result(wire: Mapping[str, Any]) -> AnnouncementListing:
        """Return the announcements and errors."""
        return AnnouncementListing(tuple(wire["announcements"]), tuple(wire["damaged"]))


@dataclass(frozen=True)
class WithdrawAnnouncement(_OperationWithoutResult):
    """Remove an announcement, as `Announcement.encode` returns it; returns nothing."""

    name = "withdraw-announcement"
    image_store: ImageStoreRef
    announcement: Mapping[str, Any]


ImageStoreOperation = (
    UploadImage
    | FindStoredImage
    | FetchStoredManifest
    | ListStoredImages
    | CollectStoredImages
    | RemoveStoredImage
    | CopyStoredImage
    | Announce
    | ListAnnouncements
    | WithdrawAnnouncement
)
AnyOperation = PinSource | ResolveSource | FillImage | VerifyImage | ImageStoreOperation
