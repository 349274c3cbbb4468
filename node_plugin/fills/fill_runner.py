"""One fill in a worker, from the image store or the origin, whichever has the bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from csi.image_store.client import ImageStoreClient, StoredImageLookup
from csi.images.node_store.provenance import IMAGE_STORE_SCOPE
from csi.images.node_store.store import Store
from csi.images.progress import FillProgress
from csi.parameters.content_ref import ContentRef
from csi.parameters.origin_scope import has_same_origin_scope
from csi.worker.pool import WorkerCall, WorkerPool
from csi.worker.protocol import WorkerRequest


class FillRunner:
    """Fills images of `store` in workers of `pool`, over `connections` connections each. Thread-safe."""

    def __init__(
        self, store: Store, pool: WorkerPool, connections: int, image_store: ImageStoreClient | None = None
    ) -> None:
        self._store, self._pool, self._connections, self._image_store = store, pool, connections, image_store

    def compute_origin_scope(self, content: ContentRef) -> str:
        """Compute the scope that the content's own origin has, whatever the bytes come from."""
        source = content.source or self._store.read_access(content.digest)
        return self._store.compute_origin_scope(source, content.secrets.values)

    def run(
        self,
        content: ContentRef,
        reuse_candidates: Sequence[Path],
        call: WorkerCall,
        on_progress: Callable[[FillProgress], None],
    ) -> None:
        """Fill and seal the image, taking what the images in `reuse_candidates` hold of it.

        Raises Busy if `call` was stopped, and what the worker raises.
        """
        paths = self._store.paths(content.digest)
        stored = self._image_store.find_for_fill(content.digest) if self._image_store else StoredImageLookup()
        request = WorkerRequest(
            "fill",
            dict(content.source),
            dict(content.secrets.values),
            manifest=str(paths.manifest),
            partial=str(paths.partial),
            journal=str(paths.journal),
            image=str(paths.image),
            connections=self._connections,
            reuse_candidates=tuple(map(str, reuse_candidates)),
        )
        # Before the first byte: a killed fill must not leave bytes of unknown provenance.
        self._store.mark_filling_from(content.digest, self._choose_scope(content, stored))
        self._pool.call("fill", stored.add_to(request), call, on_progress)

    def _choose_scope(self, content: ContentRef, stored: StoredImageLookup) -> str:
        """Choose the scope that the bytes are recorded under.

        Bytes of another scope from the image store would have to be verified against this content's origin
        before its volumes may show them.
        """
        source = content.source or self._store.read_access(content.digest)
        if stored.found is None or has_same_origin_scope(stored.found.access, source):
            return self.compute_origin_scope(content)
        return IMAGE_STORE_SCOPE
