"""Orders in a folder, for one machine: one JSON file each, which the node plugin reads, and beside it one in which it says how far it is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from csi.concurrency.background import beside
from csi.errors import DataCacheError, FailedPrecondition, UnsupportedByNode
from csi.linux import durable_files
from csi.linux.inotify import FileEvents, Kind
from csi.registry.datacaches.data_caches import DataCache
from csi.registry.notify import tell
from csi.registry.prewarms.prewarms import NodeState, Prewarm, PrewarmedCache, State
from csi.registry.prewarms.requests import OrderState
from csi.registry.volumes.record import VolumeRecord, VolumeRegistry, id_of_name

log = logging.getLogger("datacache.registry")

_FORMAT = 1
_ORDER, _SAID = ".order.json", ".said.json"


class DirectoryPrewarmOrders:
    """See PrewarmOrders. In `folder`/orders, made with mode 0700."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "orders"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def place(self, cache: DataCache) -> OrderState:
        """See PrewarmOrders; the one node there is has all."""
        content = cache.state.coming or cache.state.content
        assert content is not None
        path = self._folder / f"{cache.name}{_ORDER}"
        wanted = {"format": _FORMAT, "cache": cache.name, "uid": cache.uid, "digest": content.digest}
        if _read(path) != wanted:
            durable_files.write_json(path, wanted)
        said = _read(self._folder / f"{cache.name}{_SAID}")
        if said.get("digest") != content.digest:
            return OrderState(message="the node plugin has not begun yet")
        return OrderState(State(said["state"]), said["percent"], said["message"])

    def drop(self, cache: DataCache) -> None:
        """See PrewarmOrders."""
        for ending in (_ORDER, _SAID):
            (self._folder / f"{cache.name}{ending}").unlink(missing_ok=True)

    @contextmanager
    def watch(self, changed: Callable[[str], None]) -> Iterator[None]:
        """See PrewarmOrders."""
        with _heard(self._folder, _SAID, changed):
            yield


class DirectoryPrewarms:
    """See Prewarms: what the operator of the same folder has ordered. `registry` has the volumes of this machine."""

    def __init__(self, folder: Path, registry: VolumeRegistry) -> None:
        self._folder, self._registry = folder / "orders", registry
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def all(self) -> list[Prewarm]:
        """See Prewarms. Another image is another order."""
        return [found for path in sorted(self._folder.glob(f"*{_ORDER}")) if (found := _order(_read(path)))]

    @contextmanager
    def watch(self, changed: Callable[[str], None]) -> Iterator[None]:
        """See Prewarms."""
        with _heard(self._folder, _ORDER, changed):
            yield

    def labels(self) -> Mapping[str, str]:
        """See Prewarms; orders select nothing here."""
        return {}

    def secret(self, namespace: str, name: str) -> Mapping[str, str]:
        """See Prewarms; there are no Secrets in a folder."""
        raise FailedPrecondition(f"there is no Secret {name} without a cluster; a DataCache has its credential itself")

    def claimed(self, namespace: str, claim: str) -> VolumeRecord:
        """See Prewarms; a claim is the name of a volume here."""
        record = self._registry.get(id_of_name(claim))
        if record is None:
            raise FailedPrecondition(f"there is no volume {claim}; create it")
        return record

    def report(self, prewarm: Prewarm, state: NodeState | None) -> None:
        """See Prewarms."""
        path = self._folder / f"{prewarm.name}{_SAID}"
        with suppress(OSError):
            if state is None or not (self._folder / f"{prewarm.name}{_ORDER}").exists():
                path.unlink(missing_ok=True)
                return
            digest = prewarm.uid.rpartition("/")[2]
            said = {"format": _FORMAT, "digest": digest, "state": state.state.value, "percent": state.percent, "message": state.message}
            durable_files.write_json(path, said)

    def close(self) -> None:
        """Nothing is open."""


def _order(kept: Mapping[str, Any]) -> Prewarm | None:
    if not kept:
        return None
    return Prewarm("", kept["cache"], f"{kept['uid']}/{kept['digest']}", 1, (PrewarmedCache(data_cache=kept["cache"], digest=kept["digest"]),))


def _read(path: Path) -> dict[str, Any]:
    try:
        return durable_files.read_json(path, _FORMAT)
    except FileNotFoundError:
        return {}
    except DataCacheError as error:
        log.warning("an order is left out", extra={"fields": {"reason": error}})
        return {}


@contextmanager
def _heard(folder: Path, ending: str, changed: Callable[[str], None]) -> Iterator[None]:
    """For the block, call `changed` with the name of each file of that ending that comes, goes or is replaced."""
    with FileEvents() as events:
        if not events.watch(folder):
            raise UnsupportedByNode(f"the folder {folder} is gone; start the program again")

        def run(ended: threading.Event) -> None:
            while not ended.is_set():
                names = {event.name.removesuffix(ending) for event in events.wait() if event.kind is not Kind.WRITTEN and event.name.endswith(ending)}
                for name in sorted(names):
                    tell(changed, name)

        with beside(run, "orders-watch", events.wake):
            yield
