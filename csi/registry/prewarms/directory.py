"""Prewarm requests in a folder, for one machine.

Each is a JSON file, beside which the node plugin writes one with its status.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from csi.concurrency.background import background_thread
from csi.errors import DataCacheError, FailedPrecondition
from csi.linux import durable_files
from csi.linux.inotify import watch_files
from csi.registry.datacaches.data_caches import DataCache
from csi.registry.notify import notify_watcher
from csi.registry.prewarms.prewarms import (
    NodePrewarms,
    NodePrewarmState,
    PrewarmedCache,
    PrewarmRequest,
    PrewarmState,
)
from csi.registry.prewarms.requests import PrewarmProgress, PrewarmRequests
from csi.registry.volumes.record import VolumeRecord, VolumeRegistry, volume_id_from_name

log = logging.getLogger("datacache.registry")

_FORMAT = 1
_REQUEST_SUFFIX, _STATUS_SUFFIX = ".order.json", ".said.json"


class DirectoryPrewarmRequests(PrewarmRequests):
    """Requests in `folder`/orders, made with mode 0700."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "orders"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def submit(self, cache: DataCache) -> PrewarmProgress:
        # The only node fills everything.
        content = cache.state.next_content or cache.state.content
        assert content is not None
        path = self._folder / f"{cache.name}{_REQUEST_SUFFIX}"
        request = {"format": _FORMAT, "cache": cache.name, "uid": cache.uid, "digest": content.digest}
        if _read_or_log(path) != request:
            durable_files.write_json(path, request)
        status = _read_or_log(self._folder / f"{cache.name}{_STATUS_SUFFIX}")
        if status.get("digest") != content.digest:
            return PrewarmProgress(message="the node plugin has not started yet")
        return PrewarmProgress(PrewarmState(status["state"]), status["percent"], status["message"])

    def cancel(self, name: str) -> None:
        # In this order, since a node writes no status where there is no request.
        for suffix in (_REQUEST_SUFFIX, _STATUS_SUFFIX):
            (self._folder / f"{name}{suffix}").unlink(missing_ok=True)

    def list_data_caches(self) -> set[str]:
        return {
            path.name.removesuffix(suffix)
            for suffix in (_REQUEST_SUFFIX, _STATUS_SUFFIX)
            for path in self._folder.glob(f"*{suffix}")
        }

    @contextmanager
    def watch(self, on_change: Callable[[str], None]) -> Iterator[None]:
        with _watch_files(self._folder, _STATUS_SUFFIX, on_change):
            yield


class DirectoryNodePrewarms(NodePrewarms):
    """Requests of the operator that uses the same folder. `registry` has the volumes of this machine."""

    def __init__(self, folder: Path, registry: VolumeRegistry) -> None:
        self._folder, self._registry = folder / "orders", registry
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def list_requests(self) -> list[PrewarmRequest]:
        # A new digest makes a new uid, and thereby a new request.
        return [
            request
            for path in sorted(self._folder.glob(f"*{_REQUEST_SUFFIX}"))
            if (request := _decode_request(_read_or_log(path)))
        ]

    @contextmanager
    def watch(self, on_change: Callable[[str], None]) -> Iterator[None]:
        with _watch_files(self._folder, _REQUEST_SUFFIX, on_change):
            yield

    def read_node_labels(self) -> Mapping[str, str]:
        # Requests in a folder select no nodes.
        return {}

    def read_secret(self, namespace: str, name: str) -> Mapping[str, str]:
        raise FailedPrecondition(
            f"the Secret {name} needs a cluster; here a DataCache has its credential itself"
        )

    def get_volume_of_pvc(self, namespace: str, pvc_name: str) -> VolumeRecord:
        # Without a cluster the name of a PVC is that of a volume.
        record = self._registry.get(volume_id_from_name(pvc_name))
        if record is None:
            raise FailedPrecondition(f"the volume {pvc_name} does not exist; create it")
        return record

    def report_state(self, prewarm: PrewarmRequest, state: NodePrewarmState | None) -> None:
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
        pass


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
        log.warning("unreadable prewarm request skipped", extra={"fields": {"reason": error}})
        return {}


@contextmanager
def _watch_files(folder: Path, suffix: str, on_change: Callable[[str], None]) -> Iterator[None]:
    """Call `on_change` during the block with the name of each changed file with this suffix.

    Changes are creation, deletion and replacement.
    """
    with watch_files(folder, suffix) as files:

        def run(ended: threading.Event) -> None:
            while not ended.is_set():
                for name in files.wait():
                    notify_watcher(on_change, name)

        with background_thread(run, "orders-watch", files.wake):
            yield
