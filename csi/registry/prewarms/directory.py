"""Orders in a folder, for one machine: one JSON file each, which the node plugin reads, and beside it one in which it says how far it is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from csi.concurrency.background import background_thread
from csi.errors import DataCacheError, FailedPrecondition, UnsupportedByNode
from csi.linux import durable_files
from csi.linux.inotify import FileEventKind, FolderWatcher
from csi.registry.datacaches.data_caches import DataCache
from csi.registry.notify import notify_watcher
from csi.registry.prewarms.prewarms import NodePrewarmState, PrewarmedCache, PrewarmRequest, PrewarmState
from csi.registry.prewarms.requests import PrewarmProgress
from csi.registry.volumes.record import VolumeRecord, VolumeRegistry, volume_id_from_name

log = logging.getLogger("datacache.registry")

_FORMAT = 1
_REQUEST_SUFFIX, _STATUS_SUFFIX = ".order.json", ".said.json"


class DirectoryPrewarmRequests:
    """See PrewarmRequests. In `folder`/orders, made with mode 0700."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "orders"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def submit(self, cache: DataCache) -> PrewarmProgress:
        """See PrewarmRequests; the one node there is has all."""
        content = cache.state.next_content or cache.state.content
        assert content is not None
        path = self._folder / f"{cache.name}{_REQUEST_SUFFIX}"
        request = {"format": _FORMAT, "cache": cache.name, "uid": cache.uid, "digest": content.digest}
        if _read_or_log(path) != request:
            durable_files.write_json(path, request)
        status = _read_or_log(self._folder / f"{cache.name}{_STATUS_SUFFIX}")
        if status.get("digest") != content.digest:
            return PrewarmProgress(message="the node plugin has not begun yet")
        return PrewarmProgress(PrewarmState(status["state"]), status["percent"], status["message"])

    def cancel(self, cache: DataCache) -> None:
        """See PrewarmRequests."""
        for ending in (_REQUEST_SUFFIX, _STATUS_SUFFIX):
            (self._folder / f"{cache.name}{ending}").unlink(missing_ok=True)

    @contextmanager
    def watch(self, on_change: Callable[[str], None]) -> Iterator[None]:
        """See PrewarmRequests."""
        with _watch_files(self._folder, _STATUS_SUFFIX, on_change):
            yield


class DirectoryNodePrewarms:
    """See Prewarms: what the operator of the same folder has ordered. `registry` has the volumes of this machine."""

    def __init__(self, folder: Path, registry: VolumeRegistry) -> None:
        self._folder, self._registry = folder / "orders", registry
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def list_requests(self) -> list[PrewarmRequest]:
        """See Prewarms. Another image is another order."""
        return [
            found
            for path in sorted(self._folder.glob(f"*{_REQUEST_SUFFIX}"))
            if (found := _decode_request(_read_or_log(path)))
        ]

    @contextmanager
    def watch(self, on_change: Callable[[str], None]) -> Iterator[None]:
        """See Prewarms."""
        with _watch_files(self._folder, _REQUEST_SUFFIX, on_change):
            yield

    def read_node_labels(self) -> Mapping[str, str]:
        """See Prewarms; orders select nothing here."""
        return {}

    def read_secret(self, namespace: str, name: str) -> Mapping[str, str]:
        """See Prewarms; there are no Secrets in a folder."""
        raise FailedPrecondition(
            f"there is no Secret {name} without a cluster; a DataCache has its credential itself"
        )

    def get_volume_of_pvc(self, namespace: str, pvc_name: str) -> VolumeRecord:
        """See Prewarms; a claim is the name of a volume here."""
        record = self._registry.get(volume_id_from_name(pvc_name))
        if record is None:
            raise FailedPrecondition(f"there is no volume {pvc_name}; create it")
        return record

    def report_state(self, prewarm: PrewarmRequest, state: NodePrewarmState | None) -> None:
        """See Prewarms."""
        path = self._folder / f"{prewarm.name}{_STATUS_SUFFIX}"
        with suppress(OSError):
            if state is None or not (self._folder / f"{prewarm.name}{_REQUEST_SUFFIX}").exists():
                path.unlink(missing_ok=True)
                return
            digest = prewarm.uid.rpartition("/")[2]
            status = {
                "format": _FORMAT,
                "digest": digest,
                "state": state.state.value,
                "percent": state.percent,
                "message": state.message,
            }
            durable_files.write_json(path, status)

    def close(self) -> None:
        """Nothing is open."""


def _decode_request(stored: Mapping[str, Any]) -> PrewarmRequest | None:
    if not stored:
        return None
    return PrewarmRequest(
        "",
        stored["cache"],
        f"{stored['uid']}/{stored['digest']}",
        1,
        (PrewarmedCache(data_cache=stored["cache"], digest=stored["digest"]),),
    )


def _read_or_log(path: Path) -> dict[str, Any]:
    try:
        return durable_files.read_json(path, _FORMAT)
    except FileNotFoundError:
        return {}
    except DataCacheError as error:
        log.warning("an order is left out", extra={"fields": {"reason": error}})
        return {}


@contextmanager
def _watch_files(folder: Path, suffix: str, on_change: Callable[[str], None]) -> Iterator[None]:
    """For the block, call `on_change` with the name of each file of that ending that comes, goes or is replaced."""
    with FolderWatcher() as events:
        if not events.watch(folder):
            raise UnsupportedByNode(f"the folder {folder} is gone; start the program again")

        def run(ended: threading.Event) -> None:
            while not ended.is_set():
                names = {
                    event.name.removesuffix(suffix)
                    for event in events.wait()
                    if event.kind is not FileEventKind.WRITTEN and event.name.endswith(suffix)
                }
                for name in sorted(names):
                    notify_watcher(on_change, name)

        with background_thread(run, "orders-watch", events.wake):
            yield
