"""What a worker does with the image store: bring images there, look, fill from it, remove."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csi.errors import GONE, LOST, CorruptContent, DataCacheError, FillStopped, NoSpace, NotFound, with_message
from csi.image_store.announcements import Announcement
from csi.images.node_store.journal import begun_by
from csi.images.node_store.records import ImagePaths
from csi.images.progress import FillProgress
from csi.manifest.manifest import Manifest
from csi.worker.protocol import Request

if TYPE_CHECKING:
    from csi.image_store.store import ImageStore
    from csi.image_store.stored_image import StoredImage

log = logging.getLogger("datacache.worker")

WAY_OUT = "no image store keeps images here (--image-store): bring the origin back, or make the cache anew of what there is"

Tell = Callable[[FillProgress], None]
Operations = Mapping[str, Callable[[Request], dict[str, Any]]]


def store_operations(tell: Tell) -> Operations:
    """The operations by their names; `tell` hears how far one is."""

    def store(request: Request) -> dict[str, Any]:
        with _opened(request) as found:
            return _facts(found.add(ImagePaths(Path(request.image)), tell, access=request.access))

    def copy(request: Request) -> dict[str, Any]:
        with _opened(request) as source, _opened(replace(request, image_store=request.target, store_secrets=request.target_secrets)) as target:
            source.copy_to(target, request.digest, tell)
            return {}

    asked = {"stored": _stored, "stored-manifest": _manifest, "stored-images": _images, "collect": _collect, "unstore": _remove}
    return {"store": store, **asked, "copy": copy, "announce": _announce, "announced": _announced, "withdraw": _withdraw}


def fill_from_either(request: Request, manifest: Manifest, tell: Tell, from_origin: Callable[[], None]) -> None:
    """Have the partial image full: from the image store where it has it, else from its origin. What the origin has begun it goes on with,
    and the image store begins anew only where it cannot.

    The store is never in the way: that it fails is logged, and added to what the origin fails with. Raises that, FillStopped and NoSpace.
    """
    if request.image_store and begun_by(Path(request.journal)) == manifest.digest:
        try:
            from_origin()
        except GONE as error:
            log.info("filled from the image store", extra={"fields": {"image": manifest.digest, "reason": error}})
            if why := _fill(request, manifest, tell):
                raise _with(error, f"and {why}") from error
        return
    why = _fill(request, manifest, tell) if request.image_store else request.store_said
    if why is None:
        return
    if why:
        log.info("filled from its origin", extra={"fields": {"image": manifest.digest, "reason": why}})
    try:
        from_origin()
    except (FillStopped, NoSpace):
        raise
    except DataCacheError as error:
        if why:
            raise _with(error, f"and {why}") from error
        if isinstance(error, LOST):
            raise _with(error, WAY_OUT) from error
        raise


def _with(error: DataCacheError, why: str) -> DataCacheError:
    return with_message(error, f"{error} ({why})")


def _fill(request: Request, manifest: Manifest, tell: Tell) -> str | None:
    """Fill from the image store; None where that is done, else why it is not."""
    try:
        with _opened(request) as store:
            stored = store.find(manifest.digest)
            if stored is None:
                return f"{store.shown} does not have this image"
            store.fill(stored, manifest, ImagePaths(Path(request.image).parent), request.connections, tell)
            return None
    except (FillStopped, NoSpace):
        raise
    except DataCacheError as error:
        return str(error)


def _stored(request: Request) -> dict[str, Any]:
    with _opened(request) as store:
        found = store.named(request.digest) if request.digest.startswith("s-") else store.find(request.digest)
        return _facts(found) if found else {}


def _manifest(request: Request) -> dict[str, Any]:
    with _opened(request) as store:
        found = store.find(request.digest)
        if found is None:
            raise NotFound(f"{store.shown} has no image {request.digest[:12]}")
        manifest = store.manifest(request.digest)
    with Path(request.manifest).open("xb") as stream:
        manifest.write(stream)
    return _facts(found)


def _images(request: Request) -> dict[str, Any]:
    with _opened(request) as store, Path(request.manifest).open("w") as stream:
        for digest in store.digests():
            if facts := _facts_of(store, digest):
                stream.write(json.dumps(facts) + "\n")
    return {}


def _facts_of(store: ImageStore, digest: str) -> dict[str, Any]:
    """What there is to say of one of many, empty for one that is not whole: a damaged record must not hide the others."""
    try:
        found = store.find(digest)
    except CorruptContent as error:
        return {"digest": digest, "damaged": str(error)}
    return _facts(found) if found else {}


def _collect(request: Request) -> dict[str, Any]:
    wanted = frozenset(Path(request.manifest).read_text().split())
    with _opened(request) as store:
        return {"gone": store.collect(wanted, request.grace, time.time())}


def _remove(request: Request) -> dict[str, Any]:
    with _opened(request) as store:
        store.remove(request.digest)
        return {}


def _announce(request: Request) -> dict[str, Any]:
    with _opened(request) as store:
        store.announce(Announcement.of(request.announcement))
        return {}


def _announced(request: Request) -> dict[str, Any]:
    damaged: list[str] = []
    with _opened(request) as store:
        return {"announced": [one.encode() for one in store.announced(damaged.append)], "damaged": damaged}


def _withdraw(request: Request) -> dict[str, Any]:
    with _opened(request) as store:
        store.withdraw(Announcement.of(request.announcement))
        return {}


@contextmanager
def _opened(request: Request) -> Iterator[ImageStore]:
    # obstore, which only those pay who have an image store.
    from csi.image_store.store import opened

    with opened(request.image_store, request.store_secrets) as store:
        yield store


def _facts(found: StoredImage) -> dict[str, Any]:
    return {
        "digest": found.digest,
        "access": found.access,
        "image_bytes": found.image_bytes,
        "content_bytes": found.content_bytes,
        "stored_at": found.stored_at,
    }
