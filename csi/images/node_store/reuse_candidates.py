"""Selection of the images that a fill may copy from, protected from eviction meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from csi.errors import NoSpace, NotFound
from csi.images.node_store.records import ImageState
from csi.images.node_store.store import Store

MAX_REUSE_CANDIDATES = 8
"""Each costs the worker a manifest to read; the last few revisions of a source share most with its next
one.
"""


@contextmanager
def reserve_with_candidates(
    store: Store, digest: str, origin_scope: str, in_use: Callable[[], Container[str]]
) -> Iterator[list[Path]]:
    """Reserve space as `Store.reserve`, and yield folders of sealed images known to come from `origin_scope`.

    The folders are ordered by last use, newest first, and protected from eviction inside the block. If space
    runs out, candidates are given up before the fill fails. Raises NoSpace, Busy, NotFound.
    """
    candidates = _select_candidates(store, digest, origin_scope)
    while True:
        try:
            with ExitStack() as exit_stack:
                folders = [
                    folder
                    for candidate in candidates
                    if (folder := _prevent_eviction(store, candidate, exit_stack))
                ]
                exit_stack.enter_context(store.reserve(digest, in_use))
                # Keep the holds open, but outside of this try: from here on a NoSpace comes from the caller's
                # block and must not be retried.
                eviction_holds = exit_stack.pop_all()
            break
        except NoSpace:
            if not candidates:
                raise
            # The least recently used one; without its hold, `reserve` may evict it.
            candidates.pop()
    with eviction_holds:
        yield folders


def _select_candidates(store: Store, digest: str, origin_scope: str) -> list[str]:
    sealed = [
        image
        for image in store.list_images()
        if image.state is ImageState.SEALED
        and image.digest != digest
        and origin_scope in store.get_provenance(image.digest)
    ]
    return [
        image.digest for image in sorted(sealed, key=lambda image: -image.last_used)[:MAX_REUSE_CANDIDATES]
    ]


def _prevent_eviction(store: Store, digest: str, exit_stack: ExitStack) -> Path | None:
    try:
        return exit_stack.enter_context(store.prevent_eviction(digest)).paths.folder
    except NotFound:
        return None
