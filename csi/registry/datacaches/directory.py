"""DataCaches in a folder: one JSON file each, in the form of the object of a cluster, for one machine. Credentials are files of their own."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from csi.concurrency.background import beside
from csi.errors import AlreadyExists, DataCacheError, FailedPrecondition
from csi.linux import durable_files
from csi.linux.inotify import FileEvents
from csi.registry.custom_resource import written
from csi.registry.datacaches.codec import MATCHED, annotations_of, decode, digests_of, encode_spec, encode_status
from csi.registry.datacaches.data_caches import DataCache, DataCacheState, SecretRef, first_at, id_of_uid
from csi.registry.notify import tell

log = logging.getLogger("datacache.registry")

_FORMAT = 1
Told = Callable[[str, DataCache | None], None]


class DirectoryDataCaches:
    """See DataCaches. In `folder`/data-caches and `folder`/data-cache-secrets, made with mode 0700; one process writes there."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._secrets = folder / "data-caches", folder / "data-cache-secrets"
        for made in (self._folder, self._secrets):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._writing = threading.RLock()

    def find(self, ids: tuple[str, ...] = (), bucket: str = "", path: str = "") -> list[DataCache]:
        """See DataCaches."""
        names = ids or [file.stem for file in self._folder.glob("edc-*.json")]
        found = [cache for name in dict.fromkeys(names) if (cache := self._readable(name))]
        fitting = [one for one in found if bucket in ("", one.spec.bucket) and path in ("", one.spec.path)]
        return sorted(fitting, key=lambda one: (one.created, one.uid))

    def _readable(self, name: str) -> DataCache | None:
        try:
            return self.named(name)
        except DataCacheError as error:
            log.warning("a DataCache is left out", extra={"fields": {"reason": error}})
            return None

    def named(self, name: str) -> DataCache | None:
        """See DataCaches; raises DataCacheError where the file is damaged."""
        kept = self._kept(name)
        return decode(kept) if kept else None

    def _kept(self, name: str) -> dict[str, Any] | None:
        if "/" in name or not name.startswith("edc-"):
            return None
        try:
            return durable_files.read_json(self._folder / f"{name}.json", _FORMAT)
        except (FileNotFoundError, OSError):
            return None

    def add(self, cache: DataCache, secrets: Mapping[str, str]) -> DataCache:
        """See DataCaches."""
        with self._writing:
            if first_at(self.find(), cache.spec.bucket, cache.spec.path):
                raise AlreadyExists(f"there is a DataCache of {cache.spec.shown} already; update or delete that, or take another path")
            made = str(uuid.uuid4())
            name = cache.given_id or id_of_uid(made)
            added = replace(cache, name=name, uid=made, generation=1, created=time.time(), secret=SecretRef("", name) if secrets else None)
            if secrets:
                durable_files.write_json(self._secrets / f"{name}.json", dict(secrets))
            self._put(added, {})
            return self._there(name)

    def _there(self, name: str) -> DataCache:
        found = self.named(name)
        assert found is not None
        return found

    def label(self, cache: DataCache) -> None:
        """See DataCaches: files are found as they are."""

    def change(self, cache: DataCache, how: Callable[[DataCache], DataCache], secrets: Mapping[str, str] | None = None) -> DataCache | None:
        """See DataCaches."""
        with self._writing:
            kept = self._kept(cache.name)
            if kept is None or kept["metadata"]["uid"] != cache.uid:
                return None
            now = decode(kept)
            changed = how(replace(now, secret=SecretRef("", cache.name)) if secrets else now)
            if secrets:
                durable_files.write_json(self._secrets / f"{cache.name}.json", dict(secrets))
            if encode_spec(changed) != kept["spec"] or secrets:
                self._put(replace(changed, generation=now.generation + 1), kept.get("status") or {})
            if changed.secret is None:
                self._forget(cache.name)
            return self._there(cache.name)

    def digests(self) -> set[str]:
        """See DataCaches; raises DataCacheError where a file is damaged."""
        kept = (self._kept(file.stem) for file in self._folder.glob("edc-*.json"))
        return {digest for record in kept if record for digest in digests_of(record)}

    def report(self, cache: DataCache, state: DataCacheState) -> None:
        """See DataCaches."""
        with self._writing:
            kept = self._kept(cache.name)
            if kept is None or kept["metadata"]["uid"] != cache.uid:
                return
            old = kept.get("status") or {}
            self._put(decode(kept), _kept_match(old) | encode_status(cache, state, old, time.time()))

    def note_match(self, cache: DataCache, when: float) -> None:
        """See DataCaches."""
        with self._writing:
            kept = self._kept(cache.name)
            if kept and kept["metadata"]["uid"] == cache.uid:
                self._put(decode(kept), {**(kept.get("status") or {}), MATCHED: written(when)})

    def _put(self, cache: DataCache, status: Mapping[str, Any]) -> None:
        about = {
            "name": cache.name,
            "uid": cache.uid,
            "generation": cache.generation,
            "creationTimestamp": written(cache.created),
            "annotations": annotations_of(cache),
        }
        record = {"format": _FORMAT, "metadata": about, "spec": encode_spec(cache), "status": dict(status)}
        durable_files.write_json(self._folder / f"{cache.name}.json", record)

    def delete(self, cache: DataCache) -> None:
        """See DataCaches."""
        with self._writing:
            (self._folder / f"{cache.name}.json").unlink(missing_ok=True)
            durable_files.sync_folder(self._folder)
            self._forget(cache.name)

    def _forget(self, name: str) -> None:
        """Remove a credential; one that is not there is no error."""
        file = self._secrets / f"{name}.json"
        if file.exists():
            file.unlink(missing_ok=True)
            durable_files.sync_folder(file.parent)

    def credential(self, cache: DataCache) -> Mapping[str, str]:
        """See DataCaches."""
        if cache.secret is None:
            return {}
        try:
            return durable_files.read_json(self._secrets / f"{cache.secret.name}.json")
        except FileNotFoundError:
            raise FailedPrecondition(f"the credential of {cache.spec.shown} is not there any more; update the DataCache with it") from None

    def credential_fits(self, cache: DataCache) -> bool:
        """See DataCaches: who may write the folder may read it."""
        return True

    @contextmanager
    def watch(self, told: Told) -> Iterator[None]:
        """See DataCaches; raises DataCacheError where the folder is gone."""
        with FileEvents() as events:
            if not events.watch(self._folder):
                raise DataCacheError(f"the registry's folder {self._folder} is gone; start the program again")
            with beside(lambda ended: self._tell(events, ended, told), "data-cache-watch", events.wake):
                yield

    def _tell(self, events: FileEvents, ended: threading.Event, told: Told) -> None:
        known: set[str] = set()
        names = {file.stem for file in self._folder.glob("edc-*.json")}
        while not ended.is_set():
            for name in sorted(names):
                cache = self._readable(name)
                if cache or name in known:
                    tell(lambda name, cache=cache: told(name, cache), name)  # type: ignore[misc]
                (known.add if cache else known.discard)(name)
            heard = events.wait()
            names = {event.name.removesuffix(".json") for event in heard if event.name.startswith("edc-")}


def _kept_match(status: Mapping[str, Any]) -> dict[str, Any]:
    return {MATCHED: status[MATCHED]} if MATCHED in status else {}
