"""Volume registry in a folder: one JSON file per volume, for one machine or an embedded controller."""

from __future__ import annotations

import bisect
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from csi.concurrency.background import background_thread
from csi.errors import DataCacheError, InvalidParameter
from csi.linux import durable_files
from csi.linux.inotify import ChangedFiles, watch_files
from csi.registry.notify import notify_watcher
from csi.registry.volumes.record import VolumeRecord, VolumeRegistry, WatchedVolumes

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}")


class DirectoryVolumeRegistry(VolumeRegistry):
    """Records in `folder`/volumes, made with mode 0700.

    One process writes there. Ids are indexed in memory at the start.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "volumes"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._index_lock, self._write_lock = threading.Lock(), threading.RLock()
        self._ids = sorted(self._list_stored_ids())

    def _list_stored_ids(self) -> set[str]:
        return {path.name.removesuffix(".json") for path in self._folder.glob("[!.]*.json")}

    def get(self, volume_id: str) -> VolumeRecord | None:
        if not _ID.fullmatch(volume_id):
            return None
        path = self._folder / f"{volume_id}.json"
        try:
            return VolumeRecord.decode(durable_files.read_json(path))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, InvalidParameter) as error:
            raise DataCacheError(
                f"the volume record {path} is damaged ({error}); "
                "restore it, or remove it if the volume is gone"
            ) from error

    def put(self, record: VolumeRecord) -> None:
        with self._write_lock:
            durable_files.write_json(self._folder / f"{record.id}.json", record.encode())
            self._update_index(record.id, True)

    def _update_index(self, volume_id: str, exists: bool) -> None:
        with self._index_lock:
            at = bisect.bisect_left(self._ids, volume_id)
            if (self._ids[at : at + 1] == [volume_id]) != exists:
                self._ids[at : at + (not exists)] = [volume_id] if exists else []

    def add(self, record: VolumeRecord) -> VolumeRecord:
        with self._write_lock:
            existing = self.get(record.id)
            if existing is None:
                self.put(record)
            return existing or record

    def change(self, volume_id: str, update: Callable[[VolumeRecord], VolumeRecord]) -> VolumeRecord | None:
        with self._write_lock:
            record = self.get(volume_id)
            changed = update(record) if record else None
            if changed and changed != record:
                self.put(changed)
            return changed

    def delete(self, volume_id: str) -> None:
        if not _ID.fullmatch(volume_id):
            return
        with self._write_lock:
            (self._folder / f"{volume_id}.json").unlink(missing_ok=True)
            durable_files.fsync_folder(self._folder)
            self._update_index(volume_id, False)

    def list_page(self, after: str, limit: int) -> list[VolumeRecord]:
        with self._index_lock:
            start = bisect.bisect_right(self._ids, after) if after else 0
            page_ids = self._ids[start : start + limit] if limit else self._ids[start:]
        return [record for record in map(self.get, page_ids) if record]

    @contextmanager
    def watch(self, on_change: Callable[[str], None], only: WatchedVolumes | None = None) -> Iterator[None]:
        with watch_files(self._folder, ".json") as files:
            watched = only.ids() if only is not None else frozenset()

            def run(ended: threading.Event) -> None:
                self._report_changes(files, ended, on_change, only, watched)

            with (
                (only or WatchedVolumes()).notify_on_change(files.wake),
                background_thread(run, "registry-watch", files.wake),
            ):
                yield

    def _report_changes(
        self,
        files: ChangedFiles,
        stop: threading.Event,
        on_change: Callable[[str], None],
        only: WatchedVolumes | None,
        watched: frozenset[str],
    ) -> None:
        while not stop.is_set():
            ids = files.wait()
            if only is not None:
                current = only.ids()
                # Report added ids too: their changes were not reported before.
                ids, watched = [*(i for i in ids if i in current), *sorted(current - watched)], current
            for volume_id in dict.fromkeys(ids):
                if not stop.is_set():
                    notify_watcher(on_change, volume_id)
