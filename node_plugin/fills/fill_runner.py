"""Execution of one fill in a worker, from the image store if it has the bytes, else from the origin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from csi.image_store.client import ImageStoreClient, StoredImageLookup
from csi.images.node_store.provenance import IMAGE_STORE_SCOPE
from csi.images.node_store.store import Store
from csi.images.progress import FillProgress
from csi.parameters.content_ref import ContentRef
from csi.parameters.origin_scope import has_same_origin_scope
from csi.worker.operations import FillImage
from csi.worker.pool import WorkerCall, WorkerPool


class FillRunner:
    """Runner of fills into `store` in workers of `pool`. Thread-safe.

    Each fill uses at most `max_connections` connections.
    """

    def __init__(
        self,
        store: Store,
        pool: WorkerPool,
        max_connections: int,
        image_store: ImageStoreClient | None = None,
    ) -> None:
        self._store, self._pool = store, pool
        self._max_connections = max_connections
        self._image_store = image_store

    def run(
        self,
        content: ContentRef,
        reuse_candidates: Sequence[Path],
        call: WorkerCall,
        on_progress: Callable[[FillProgress], None],
    ) -> None:
        """Fill and seal the image, copying shared extents from the images in the folders `reuse_candidates`.

        Raises Busy if `call` was stopped, and what the worker raises.
        """
        # A fill that is resumed at a start knows its digest only. Without the source its bytes would not go
        # through the egress profile of that source.
        content = self._store.with_source(content)
        lookup = self._image_store.find_for_fill(content.digest) if self._image_store else StoredImageLookup()
        operation = FillImage(
            content,
            self._store.get_paths(content.digest).folder,
            self._max_connections,
            tuple(reuse_candidates),
            lookup.image_store,
            lookup.reason,
        )
        # Before the first byte: a killed fill must not leave bytes of unknown provenance.
        self._store.mark_filling_from(content.digest, self._choose_scope(content, lookup))
        self._pool.call("fill", operation, call, on_progress)

    def _choose_scope(self, content: ContentRef, lookup: StoredImageLookup) -> str:
        """Choose the scope that the bytes are recorded under.

        Bytes that the image store has from another scope must be verified against this content's origin
        before its volumes are published.
        """
        if lookup.found is None or has_same_origin_scope(lookup.found.access, content.source):
            return self._store.compute_origin_scope(content)
        return IMAGE_STORE_SCOPE
