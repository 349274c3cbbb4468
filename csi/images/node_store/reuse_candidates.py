"""Which images a fill may copy from, kept where they are meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from csi.errors import NoSpace, NotFound
from csi.images.node_store.records import ImageState
from csi.images.node_store.store import Store

MAX_REUSE_CANDIDATES = 8
"""Each costs the worker a manifest to read; a source's last few revisions hold what its next one shares with any."""


@contextmanager
def reserve_with_candidates(
    store: Store, digest: str, origin_scope: str, in_use: Callable[[], Container[str]]
) -> Iterator[list[Path]]:
    """As `Store.reserve`; the folders of sealed images that are known to come from `origin_scope` too, last used first, held for the block.

    A donor goes before a fill fails for want of room. Raises NoSpace, Busy, NotFound.
    """
    candidates = _select_candidates(store, digest, origin_scope)
    while True:
        try:
            with ExitStack() as exit_stack:
                folders = [
                    folder for donor in candidates if (folder := _prevent_eviction(store, donor, exit_stack))
                ]
                exit_stack.enter_context(store.reserve(digest, in_use))
                # From here on an error is the caller's.
                eviction_holds = exit_stack.pop_all()
            break
        except NoSpace:
            if not candidates:
                raise
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
