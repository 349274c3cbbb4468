"""Which images a fill may copy from, kept where they are meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from csi.errors import NoSpace, NotFound
from csi.images.node_store.records import State
from csi.images.node_store.store import Store

MOST = 8
"""Each costs the worker a manifest to read; a source's last few revisions hold what its next one shares with any."""


@contextmanager
def reserve(store: Store, digest: str, place: str, in_use: Callable[[], Container[str]]) -> Iterator[list[Path]]:
    """As `Store.reserve`; the folders of sealed images that are known to come from `place` too, last used first, held for the block.

    A donor goes before a fill fails for want of room. Raises NoSpace, Busy, NotFound.
    """
    donors = _donors(store, digest, place)
    while True:
        try:
            with ExitStack() as held:
                folders = [folder for donor in donors if (folder := _hold(store, donor, held))]
                held.enter_context(store.reserve(digest, in_use))
                # From here on an error is the caller's.
                kept = held.pop_all()
            break
        except NoSpace:
            if not donors:
                raise
            donors.pop()
    with kept:
        yield folders


def _donors(store: Store, digest: str, place: str) -> list[str]:
    sealed = [image for image in store.images() if image.state is State.SEALED and image.digest != digest and place in store.places(image.digest)]
    return [image.digest for image in sorted(sealed, key=lambda image: -image.last_used)[:MOST]]


def _hold(store: Store, digest: str, held: ExitStack) -> Path | None:
    try:
        return held.enter_context(store.hold(digest)).paths.folder
    except NotFound:
        return None
