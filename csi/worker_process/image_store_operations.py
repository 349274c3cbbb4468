"""Operations of a worker on the image store: upload, find, fill from it, copy, remove."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csi.errors import (
    ORIGIN_LOST,
    STORE_FALLBACK_ERRORS,
    CorruptContent,
    DataCacheError,
    FillStopped,
    NoSpace,
    NotFound,
    with_message,
)
from csi.image_store.announcements import Announcement
from csi.images.node_store.journal import read_journal_digest
from csi.images.node_store.records import ImagePaths
from csi.images.progress import FillProgress
from csi.manifest.manifest import Manifest
from csi.worker.protocol import WorkerRequest

if TYPE_CHECKING:
    from csi.image_store.store import ImageStore
    from csi.image_store.stored_image import StoredImage

log = logging.getLogger("datacache.worker")

REMEDY = (
    "no image store keeps images here (--image-store): "
    "restore the origin, or create the cache again from what it has now"
)

OnProgress = Callable[[FillProgress], None]
Operations = Mapping[str, Callable[[WorkerRequest], dict[str, Any]]]


def build_store_operations(on_progress: OnProgress) -> Operations:
    """Return the operations by name; `on_progress` is called by the long ones."""

    def store(request: WorkerRequest) -> dict[str, Any]:
        with _open_store(request) as image_store:
            return _encode_image(
                image_store.add(ImagePaths(Path(request.image)), on_progress, access=request.access)
            )

    def copy(request: WorkerRequest) -> dict[str, Any]:
        with (
            _open_store(request) as source,
            _open_store(
                replace(request, image_store=request.target_store, store_secrets=request.target_secrets)
            ) as target,
        ):
            source.copy_to(target, request.digest, on_progress)
            return {}

    operations = {
        "stored": _find,
        "stored-manifest": _write_manifest,
        "stored-images": _list_images,
        "collect": _collect,
        "unstore": _remove,
    }
    return {
        "store": store,
        **operations,
        "copy": copy,
        "announce": _announce,
        "announced": _list_announcements,
        "withdraw": _withdraw,
    }


def fill_from_store_or_origin(
    request: WorkerRequest, manifest: Manifest, on_progress: OnProgress, fill_from_origin: Callable[[], None]
) -> None:
    """Fill the partial image, from the image store if it has the image, else from the origin.

    A fill begun from the origin continues there; the image store takes over, from scratch, only if the origin
    fails. A failure of the image store never stops a fill: it is logged, and added to the origin's error.
    Raises that error, FillStopped and NoSpace.
    """
    if request.image_store and read_journal_digest(Path(request.journal)) == manifest.digest:
        try:
            fill_from_origin()
        except STORE_FALLBACK_ERRORS as error:
            log.info(
                "filling from the image store", extra={"fields": {"image": manifest.digest, "reason": error}}
            )
            if store_error := _fill_from_store(request, manifest, on_progress):
                raise _add_reason(error, f"and {store_error}") from error
        return
    store_error = (
        _fill_from_store(request, manifest, on_progress) if request.image_store else request.image_store_error
    )
    if store_error is None:
        return
    if store_error:
        log.info(
            "filling from the origin", extra={"fields": {"image": manifest.digest, "reason": store_error}}
        )
    try:
        fill_from_origin()
    except (FillStopped, NoSpace):
        raise
    except DataCacheError as error:
        if store_error:
            raise _add_reason(error, f"and {store_error}") from error
        if isinstance(error, ORIGIN_LOST):
            raise _add_reason(error, REMEDY) from error
        raise


def _add_reason(error: DataCacheError, reason: str) -> DataCacheError:
    return with_message(error, f"{error} ({reason})")


def _fill_from_store(request: WorkerRequest, manifest: Manifest, on_progress: OnProgress) -> str | None:
    """Fill from the image store; return None on success, else the reason."""
    try:
        with _open_store(request) as store:
            stored = store.find(manifest.digest)
            if stored is None:
                return f"{store.display_name} does not have this image"
            store.fill(
                stored, manifest, ImagePaths(Path(request.image).parent), request.connections, on_progress
            )
            return None
    except (FillStopped, NoSpace):
        raise
    except DataCacheError as error:
        return str(error)


def _find(request: WorkerRequest) -> dict[str, Any]:
    with _open_store(request) as store:
        stored = (
            store.find_by_snapshot_id(request.digest)
            if request.digest.startswith("s-")
            else store.find(request.digest)
        )
        return _encode_image(stored) if stored else {}


def _write_manifest(request: WorkerRequest) -> dict[str, Any]:
    with _open_store(request) as store:
        stored = store.find(request.digest)
        if stored is None:
            raise NotFound(f"{store.display_name} has no image {request.digest[:12]}")
        manifest = store.read_manifest(request.digest)
    with Path(request.manifest).open("xb") as stream:
        manifest.write(stream)
    return _encode_image(stored)


def _list_images(request: WorkerRequest) -> dict[str, Any]:
    with _open_store(request) as store, Path(request.manifest).open("w") as stream:
        for digest in store.list_digests():
            if facts := _describe_image(store, digest):
                stream.write(json.dumps(facts) + "\n")
    return {}


def _describe_image(store: ImageStore, digest: str) -> dict[str, Any]:
    """Describe one image of a listing, {} if it is incomplete; a damaged record must not hide the others."""
    try:
        stored = store.find(digest)
    except CorruptContent as error:
        return {"digest": digest, "damaged": str(error)}
    return _encode_image(stored) if stored else {}


def _collect(request: WorkerRequest) -> dict[str, Any]:
    wanted_digests = frozenset(Path(request.manifest).read_text().split())
    with _open_store(request) as store:
        return {"gone": store.collect(wanted_digests, request.grace, time.time())}


def _remove(request: WorkerRequest) -> dict[str, Any]:
    with _open_store(request) as store:
        store.remove(request.digest)
        return {}


def _announce(request: WorkerRequest) -> dict[str, Any]:
    with _open_store(request) as store:
        store.announce(Announcement.decode(request.announcement))
        return {}


def _list_announcements(request: WorkerRequest) -> dict[str, Any]:
    damaged: list[str] = []
    with _open_store(request) as store:
        return {
            "announced": [announcement.encode() for announcement in store.list_announcements(damaged.append)],
            "damaged": damaged,
        }


def _withdraw(request: WorkerRequest) -> dict[str, Any]:
    with _open_store(request) as store:
        store.withdraw(Announcement.decode(request.announcement))
        return {}


@contextmanager
def _open_store(request: WorkerRequest) -> Iterator[ImageStore]:
    # Imports obstore, whose memory only clusters with an image store should pay.
    from csi.image_store.store import open_image_store

    with open_image_store(request.image_store, request.store_secrets) as store:
        yield store


def _encode_image(stored: StoredImage) -> dict[str, Any]:
    return {
        "digest": stored.digest,
        "access": stored.access,
        "image_bytes": stored.image_bytes,
        "content_bytes": stored.content_bytes,
        "stored_at": stored.stored_at,
    }
