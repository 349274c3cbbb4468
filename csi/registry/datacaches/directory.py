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

from csi.concurrency.background import background_thread
from csi.errors import AlreadyExists, DataCacheError, FailedPrecondition
from csi.linux import durable_files
from csi.linux.inotify import FolderWatcher
from csi.registry.custom_resource import format_time
from csi.registry.datacaches.codec import (
    MATCHED_KEY,
    build_annotations,
    decode,
    encode_spec,
    encode_status,
    list_digests,
)
from csi.registry.datacaches.data_caches import (
    DataCache,
    DataCacheState,
    SecretRef,
    data_cache_id_from_uid,
    find_oldest_at,
)
from csi.registry.notify import notify_watcher

log = logging.getLogger("datacache.registry")

_FORMAT = 1
Told = Callable[[str, DataCache | None], None]


class DirectoryDataCacheRegistry:
    """See DataCaches. In `folder`/data-caches and `folder`/data-cache-secrets, made with mode 0700; one process writes there."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._secrets = folder / "data-caches", folder / "data-cache-secrets"
        for made in (self._folder, self._secrets):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write_lock = threading.RLock()

    def find(self, ids: tuple[str, ...] = (), bucket: str = "", path: str = "") -> list[DataCache]:
        """See DataCaches."""
        names = ids or [file.stem for file in self._folder.glob("edc-*.json")]
        found = [cache for name in dict.fromkeys(names) if (cache := self._read_or_log(name))]
        matching = [one for one in found if bucket in ("", one.spec.bucket) and path in ("", one.spec.path)]
        return sorted(matching, key=lambda one: (one.created_at, one.uid))

    def _read_or_log(self, name: str) -> DataCache | None:
        try:
            return self.get(name)
        except DataCacheError as error:
            log.warning("a DataCache is left out", extra={"fields": {"reason": error}})
            return None

    def get(self, name: str) -> DataCache | None:
        """See DataCaches; raises DataCacheError where the file is damaged."""
        kept = self._read_stored(name)
        return decode(kept) if kept else None

    def _read_stored(self, name: str) -> dict[str, Any] | None:
        if "/" in name or not name.startswith("edc-"):
            return None
        try:
            return durable_files.read_json(self._folder / f"{name}.json", _FORMAT)
        except (FileNotFoundError, OSError):
            return None

    def add(self, cache: DataCache, secrets: Mapping[str, str]) -> DataCache:
        """See DataCaches."""
        with self._write_lock:
            if find_oldest_at(self.find(), cache.spec.bucket, cache.spec.path):
                raise AlreadyExists(
                    f"there is a DataCache of {cache.spec.display_name} already; update or delete that, or take another path"
                )
            uid = str(uuid.uuid4())
            name = cache.assigned_id or data_cache_id_from_uid(uid)
            added = replace(
                cache,
                name=name,
                uid=uid,
                generation=1,
                created_at=time.time(),
                secret_ref=SecretRef("", name) if secrets else None,
            )
            if secrets:
                durable_files.write_json(self._secrets / f"{name}.json", dict(secrets))
            self._write(added, {})
            return self._get_existing(name)

    def _get_existing(self, name: str) -> DataCache:
        found = self.get(name)
        assert found is not None
        return found

    def apply_labels(self, cache: DataCache) -> None:
        """See DataCaches: files are found as they are."""

    def change(
        self,
        cache: DataCache,
        update: Callable[[DataCache], DataCache],
        secrets: Mapping[str, str] | None = None,
    ) -> DataCache | None:
        """See DataCaches."""
        with self._write_lock:
            kept = self._read_stored(cache.name)
            if kept is None or kept["metadata"]["uid"] != cache.uid:
                return None
            now = decode(kept)
            changed = update(replace(now, secret_ref=SecretRef("", cache.name)) if secrets else now)
            if secrets:
                durable_files.write_json(self._secrets / f"{cache.name}.json", dict(secrets))
            if encode_spec(changed) != kept["spec"] or secrets:
                self._write(replace(changed, generation=now.generation + 1), kept.get("status") or {})
            if changed.secret_ref is None:
                self._delete_credential(cache.name)
            return self._get_existing(cache.name)

    def list_digests(self) -> set[str]:
        """See DataCaches; raises DataCacheError where a file is damaged."""
        kept = (self._read_stored(file.stem) for file in self._folder.glob("edc-*.json"))
        return {digest for record in kept if record for digest in list_digests(record)}

    def write_state(self, cache: DataCache, state: DataCacheState) -> None:
        """See DataCaches."""
        with self._write_lock:
            kept = self._read_stored(cache.name)
            if kept is None or kept["metadata"]["uid"] != cache.uid:
                return
            old = kept.get("status") or {}
            self._write(decode(kept), _match_time_of(old) | encode_status(cache, state, old, time.time()))

    def write_match_time(self, cache: DataCache, matched_at: float) -> None:
        """See DataCaches."""
        with self._write_lock:
            kept = self._read_stored(cache.name)
            if kept and kept["metadata"]["uid"] == cache.uid:
                self._write(
                    decode(kept), {**(kept.get("status") or {}), MATCHED_KEY: format_time(matched_at)}
                )

    def _write(self, cache: DataCache, status: Mapping[str, Any]) -> None:
        about = {
            "name": cache.name,
            "uid": cache.uid,
            "generation": cache.generation,
            "creationTimestamp": format_time(cache.created_at),
            "annotations": build_annotations(cache),
        }
        record = {"format": _FORMAT, "metadata": about, "spec": encode_spec(cache), "status": dict(status)}
        durable_files.write_json(self._folder / f"{cache.name}.json", record)

    def delete(self, cache: DataCache) -> None:
        """See DataCaches."""
        with self._write_lock:
            (self._folder / f"{cache.name}.json").unlink(missing_ok=True)
            durable_files.fsync_folder(self._folder)
            self._delete_credential(cache.name)

    def _delete_credential(self, name: str) -> None:
        """Remove a credential; one that is not there is no error."""
        file = self._secrets / f"{name}.json"
        if file.exists():
            file.unlink(missing_ok=True)
            durable_files.fsync_folder(file.parent)

    def read_credential(self, cache: DataCache) -> Mapping[str, str]:
        """See DataCaches."""
        if cache.secret_ref is None:
            return {}
        try:
            return durable_files.read_json(self._secrets / f"{cache.secret_ref.name}.json")
        except FileNotFoundError:
            raise FailedPrecondition(
                f"the credential of {cache.spec.display_name} is not there any more; update the DataCache with it"
            ) from None

    def is_credential_in_scope(self, cache: DataCache) -> bool:
        """See DataCaches: who may write the folder may read it."""
        return True

    @contextmanager
    def watch(self, on_change: Told) -> Iterator[None]:
        """See DataCaches; raises DataCacheError where the folder is gone."""
        with FolderWatcher() as events:
            if not events.watch(self._folder):
                raise DataCacheError(f"the registry's folder {self._folder} is gone; start the program again")
            with background_thread(
                lambda ended: self._report_changes(events, ended, on_change), "data-cache-watch", events.wake
            ):
                yield

    def _report_changes(self, events: FolderWatcher, stop: threading.Event, on_change: Told) -> None:
        known: set[str] = set()
        names = {file.stem for file in self._folder.glob("edc-*.json")}
        while not stop.is_set():
            for name in sorted(names):
                cache = self._read_or_log(name)
                if cache or name in known:
                    notify_watcher(lambda name, cache=cache: on_change(name, cache), name)  # type: ignore[misc]
                (known.add if cache else known.discard)(name)
            events_seen = events.wait()
            names = {
                event.name.removesuffix(".json") for event in events_seen if event.name.startswith("edc-")
            }


def _match_time_of(status: Mapping[str, Any]) -> dict[str, Any]:
    return {MATCHED_KEY: status[MATCHED_KEY]} if MATCHED_KEY in status else {}
