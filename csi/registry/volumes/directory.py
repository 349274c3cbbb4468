"""A registry that is a folder: one JSON file a volume, for one machine or an embedded controller."""

from __future__ import annotations

import bisect
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from csi.concurrency.background import beside
from csi.errors import DataCacheError, InvalidParameter
from csi.linux import durable_files
from csi.linux.inotify import FileEvents, Kind
from csi.registry.notify import tell
from csi.registry.volumes.record import Interest, VolumeRecord

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}")


class DirectoryRegistry:
    """Volume records in `folder`/volumes, made with mode 0700. An index of ids is kept in memory and built at the start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "volumes"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._guard, self._writing = threading.Lock(), threading.RLock()
        self._ids = sorted(self._kept())

    def _kept(self) -> set[str]:
        return {path.name.removesuffix(".json") for path in self._folder.glob("[!.]*.json")}

    def get(self, volume_id: str) -> VolumeRecord | None:
        """The record of `volume_id`; raises DataCacheError when its file is damaged."""
        if not _ID.fullmatch(volume_id):
            return None
        path = self._folder / f"{volume_id}.json"
        try:
            return VolumeRecord.decode(durable_files.read_json(path))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, InvalidParameter) as error:
            raise DataCacheError(f"the volume record {path} is damaged ({error}); restore it, or remove it if the volume is gone") from error

    def put(self, record: VolumeRecord) -> None:
        """Add or replace a record, durably."""
        with self._writing:
            durable_files.write_json(self._folder / f"{record.id}.json", record.encode())
            self._list(record.id, True)

    def _list(self, volume_id: str, there: bool) -> None:
        with self._guard:
            at = bisect.bisect_left(self._ids, volume_id)
            if (self._ids[at : at + 1] == [volume_id]) != there:
                self._ids[at : at + (not there)] = [volume_id] if there else []

    def add(self, record: VolumeRecord) -> VolumeRecord:
        """See VolumeRegistry; one process at a time writes to a folder."""
        with self._writing:
            kept = self.get(record.id)
            if kept is None:
                self.put(record)
            return kept or record

    def change(self, volume_id: str, how: Callable[[VolumeRecord], VolumeRecord]) -> VolumeRecord | None:
        """See VolumeRegistry; one process at a time writes to a folder."""
        with self._writing:
            record = self.get(volume_id)
            changed = how(record) if record else None
            if changed and changed != record:
                self.put(changed)
            return changed

    def delete(self, volume_id: str) -> None:
        """Remove a record, durably; one that is not there is no error."""
        if not _ID.fullmatch(volume_id):
            return
        with self._writing:
            (self._folder / f"{volume_id}.json").unlink(missing_ok=True)
            durable_files.sync_folder(self._folder)
            self._list(volume_id, False)

    def page(self, after: str, limit: int) -> list[VolumeRecord]:
        """At most `limit` records behind the id `after`, in order; records deleted meanwhile are left out."""
        with self._guard:
            start = bisect.bisect_right(self._ids, after) if after else 0
            chosen = self._ids[start : start + limit] if limit else self._ids[start:]
        return [record for record in map(self.get, chosen) if record]

    @contextmanager
    def watch(self, changed: Callable[[str], None], only: Interest | None = None) -> Iterator[None]:
        """See VolumeRegistry; raises DataCacheError where the folder is gone."""
        with FileEvents() as events:
            if not events.watch(self._folder):
                raise DataCacheError(f"the registry's folder {self._folder} is gone; start the program again")
            wanted = only.ids() if only is not None else frozenset()

            def run(ended: threading.Event) -> None:
                self._tell(events, ended, changed, only, wanted)

            with (only or Interest()).heard(events.wake), beside(run, "registry-watch", events.wake):
                yield

    def _tell(
        self, events: FileEvents, ended: threading.Event, changed: Callable[[str], None], only: Interest | None, wanted: frozenset[str]
    ) -> None:
        known = self._kept()
        while not ended.is_set():
            heard = events.wait()
            ids = [event.name.removesuffix(".json") for event in heard if event.kind is not Kind.WRITTEN and event.name.endswith(".json")]
            known.update(ids)
            if any(event.kind is Kind.LOST for event in heard):
                known |= self._kept()
                ids = sorted(known)
            if only is not None:
                now = only.ids()
                ids, wanted = [*(i for i in ids if i in now), *sorted(now - wanted)], now
            for volume_id in dict.fromkeys(ids):
                if not ended.is_set():
                    tell(changed, volume_id)
            known.difference_update(event.name.removesuffix(".json") for event in heard if event.kind is Kind.GONE)
