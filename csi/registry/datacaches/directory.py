"""DataCaches in a folder, for one machine: one JSON file each, in the form of the cluster's objects.

Credentials are separate files.
"""

from __future__ import annotations

import errno
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
from csi.linux.inotify import ChangedFiles, watch_files
from csi.registry.custom_resource import format_time
from csi.registry.datacaches.codec import (
    LAST_MATCHED_KEY,
    build_annotations,
    decode,
    encode_malformed_status,
    encode_spec,
    encode_status,
    list_digests,
)
from csi.registry.datacaches.data_caches import (
    DataCache,
    DataCacheRegistry,
    DataCacheState,
    SecretRef,
    data_cache_id_from_uid,
    find_oldest_at,
)
from csi.registry.notify import notify_watcher

log = logging.getLogger("datacache.registry")

_FORMAT = 1
OnChange = Callable[[str, DataCache | None], None]


class DirectoryDataCacheRegistry(DataCacheRegistry):
    """Registry in `folder`/data-caches and `folder`/data-cache-secrets.

    The folders are made with mode 0700; one process writes there. Methods that read records raise
    DataCacheError for a damaged one, except `find` and `watch`, which skip it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._secrets = folder / "data-caches", folder / "data-cache-secrets"
        for path in (self._folder, self._secrets):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write_lock = threading.RLock()

    def find(self, ids: tuple[str, ...] = (), bucket: str = "", path: str = "") -> list[DataCache]:
        names = ids or [file.stem for file in self._folder.glob("edc-*.json")]
        caches = [cache for name in dict.fromkeys(names) if (cache := self._read_or_log(name))]
        matching = [
            cache for cache in caches if bucket in ("", cache.spec.bucket) and path in ("", cache.spec.path)
        ]
        return sorted(matching, key=lambda cache: (cache.created_at, cache.uid))

    def _read_or_log(self, name: str) -> DataCache | None:
        try:
            return self.get(name)
        except DataCacheError as error:
            log.warning("unreadable DataCache skipped", extra={"fields": {"reason": error}})
            return None

    def get(self, name: str) -> DataCache | None:
        stored = self._read_stored(name)
        return decode(stored) if stored else None

    def list_names(self) -> set[str]:
        return {file.stem for file in self._folder.glob("edc-*.json")}

    def _read_stored(self, name: str) -> dict[str, Any] | None:
        if "/" in name or not name.startswith("edc-"):
            return None
        path = self._folder / f"{name}.json"
        try:
            return durable_files.read_json(path, _FORMAT)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None
            # One that cannot be read is not one that does not exist: its image must not be collected.
            raise DataCacheError(
                f"the DataCache record {path} cannot be read: {error.strerror}; check the disk and the file"
            ) from error

    def add(self, cache: DataCache, secrets: Mapping[str, str]) -> DataCache:
        with self._write_lock:
            if find_oldest_at(self.find(), cache.spec.bucket, cache.spec.path):
                raise AlreadyExists(
                    f"a DataCache of {cache.spec.display_name} exists already; "
                    "update or delete it, or choose another path"
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
        cache = self.get(name)
        assert cache is not None
        return cache

    def apply_labels(self, cache: DataCache) -> None:
        pass  # files are found by their names: labels are for selectors of an API server

    def change(
        self,
        cache: DataCache,
        update: Callable[[DataCache], DataCache],
        secrets: Mapping[str, str] | None = None,
    ) -> DataCache | None:
        with self._write_lock:
            stored = self._read_stored(cache.name)
            if stored is None or stored["metadata"]["uid"] != cache.uid:
                return None
            current = decode(stored)
            changed = update(replace(current, secret_ref=SecretRef("", cache.name)) if secrets else current)
            if secrets:
                durable_files.write_json(self._secrets / f"{cache.name}.json", dict(secrets))
            if encode_spec(changed) != stored["spec"] or secrets:
                self._write(replace(changed, generation=current.generation + 1), stored.get("status") or {})
            if changed.secret_ref is None:
                self._delete_credential(cache.name)
            return self._get_existing(cache.name)

    def list_digests(self) -> set[str]:
        records = (self._read_stored(file.stem) for file in self._folder.glob("edc-*.json"))
        return {digest for record in records if record for digest in list_digests(record)}

    def write_state(self, cache: DataCache, state: DataCacheState) -> None:
        with self._write_lock:
            stored = self._read_stored(cache.name)
            if stored is None or stored["metadata"]["uid"] != cache.uid:
                return
            old = stored.get("status") or {}
            self._write(decode(stored), _match_time_of(old) | encode_status(cache, state, old, time.time()))

    def write_malformed(self, name: str, message: str) -> None:
        with self._write_lock:
            stored = self._read_stored(name)
            if stored is None:
                return
            old = stored.get("status") or {}
            status = _match_time_of(old) | encode_malformed_status(stored, message, time.time())
            # The watch reports every write, and a report leads to this call again.
            if status != old:
                durable_files.write_json(self._folder / f"{name}.json", {**stored, "status": status})

    def write_match_time(self, cache: DataCache, matched_at: float) -> None:
        with self._write_lock:
            stored = self._read_stored(cache.name)
            if stored and stored["metadata"]["uid"] == cache.uid:
                self._write(
                    decode(stored),
                    {**(stored.get("status") or {}), LAST_MATCHED_KEY: format_time(matched_at)},
                )

    def _write(self, cache: DataCache, status: Mapping[str, Any]) -> None:
        metadata = {
            "name": cache.name,
            "uid": cache.uid,
            "generation": cache.generation,
            "creationTimestamp": format_time(cache.created_at),
            "annotations": build_annotations(cache),
        }
        record = {"format": _FORMAT, "metadata": metadata, "spec": encode_spec(cache), "status": dict(status)}
        durable_files.write_json(self._folder / f"{cache.name}.json", record)

    def delete(self, cache: DataCache) -> None:
        with self._write_lock:
            (self._folder / f"{cache.name}.json").unlink(missing_ok=True)
            durable_files.fsync_folder(self._folder)
            self._delete_credential(cache.name)

    def _delete_credential(self, name: str) -> None:
        file = self._secrets / f"{name}.json"
        if file.exists():
            file.unlink(missing_ok=True)
            durable_files.fsync_folder(file.parent)

    def read_credential(self, cache: DataCache) -> Mapping[str, str]:
        if cache.secret_ref is None:
            return {}
        try:
            return durable_files.read_json(self._secrets / f"{cache.secret_ref.name}.json")
        except FileNotFoundError:
            raise FailedPrecondition(
                f"the credential of {cache.spec.display_name} does not exist any more; "
                "update the DataCache with it"
            ) from None

    def is_credential_in_scope(self, cache: DataCache) -> bool:
        # Whoever may write the folder may read it as well.
        return True

    @contextmanager
    def watch(self, on_change: OnChange) -> Iterator[None]:
        with (
            watch_files(self._folder, ".json", prefix="edc-") as files,
            background_thread(
                lambda ended: self._report_changes(files, ended, on_change), "data-cache-watch", files.wake
            ),
        ):
            yield

    def _report_changes(self, files: ChangedFiles, stop: threading.Event, on_change: OnChange) -> None:
        known: set[str] = set()
        names = sorted(files.list_names())
        while not stop.is_set():
            for name in names:
                cache = self._read_or_log(name)
                if cache or name in known:
                    notify_watcher(lambda name, cache=cache: on_change(name, cache), name)  # type: ignore[misc]
                (known.add if cache else known.discard)(name)
            names = files.wait()


def _match_time_of(status: Mapping[str, Any]) -> dict[str, Any]:
    return {LAST_MATCHED_KEY: status[LAST_MATCHED_KEY]} if LAST_MATCHED_KEY in status else {}
