"""A registry that is a folder: one JSON file a volume, for one machine or an embedded controller."""

from __future__ import annotations

import bisect
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from csi import durable
from csi.errors import DataCacheError, InvalidParameter
from csi.file_events import FileEvents, Kind
from csi.registry.volume import VolumeRecord

log = logging.getLogger("datacache.registry")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}")


class DirectoryRegistry:
    """Volume records in `folder`/volumes, made with mode 0700. An index of ids is kept in memory and built at the start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "volumes"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._guard = threading.Lock()
        self._ids = sorted(self._kept())

    def _kept(self) -> set[str]:
        return {path.name.removesuffix(".json") for path in self._folder.glob("[!.]*.json")}

    def get(self, volume_id: str) -> VolumeRecord | None:
        """The record of `volume_id`; raises DataCacheError when its file is damaged."""
        if not _ID.fullmatch(volume_id):
            return None
        path = self._folder / f"{volume_id}.json"
        try:
            return VolumeRecord.decode(durable.read_json(path))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, InvalidParameter) as error:
            raise DataCacheError(f"the volume record {path} is damaged ({error}); restore it, or remove it if the volume is gone") from error

    def put(self, record: VolumeRecord) -> None:
        """Add or replace a record, durably."""
        durable.write_json(self._folder / f"{record.id}.json", record.encode())
        with self._guard:
            at = bisect.bisect_left(self._ids, record.id)
            if self._ids[at : at + 1] != [record.id]:
                self._ids.insert(at, record.id)

    def delete(self, volume_id: str) -> None:
        """Remove a record, durably; one that is not there is no error."""
        if not _ID.fullmatch(volume_id):
            return
        (self._folder / f"{volume_id}.json").unlink(missing_ok=True)
        durable.sync_folder(self._folder)
        with self._guard:
            at = bisect.bisect_left(self._ids, volume_id)
            if self._ids[at : at + 1] == [volume_id]:
                del self._ids[at]

    def page(self, after: str, limit: int) -> list[VolumeRecord]:
        """At most `limit` records behind the id `after`, in order; records deleted meanwhile are left out."""
        with self._guard:
            start = bisect.bisect_right(self._ids, after) if after else 0
            chosen = self._ids[start : start + limit] if limit else self._ids[start:]
        return [record for record in map(self.get, chosen) if record]

    @contextmanager
    def watch(self, changed: Callable[[str], None]) -> Iterator[None]:
        """See VolumeRegistry; raises DataCacheError where the folder is gone."""
        with FileEvents() as events:
            if not events.watch(self._folder):
                raise DataCacheError(f"the registry's folder {self._folder} is gone; start the program again")
            ended = threading.Event()
            teller = threading.Thread(target=self._tell, args=(events, ended, changed), name="registry-watch", daemon=True)
            teller.start()
            try:
                yield
            finally:
                ended.set()
                events.wake()
                teller.join()

    def _tell(self, events: FileEvents, ended: threading.Event, changed: Callable[[str], None]) -> None:
        known = self._kept()
        while not ended.is_set():
            heard = events.wait()
            ids = [event.name.removesuffix(".json") for event in heard if event.kind is not Kind.WRITTEN and event.name.endswith(".json")]
            known.update(ids)
            if any(event.kind is Kind.LOST for event in heard):
                known |= self._kept()
                ids = sorted(known)
            for volume_id in dict.fromkeys(ids):
                if not ended.is_set():
                    _call(changed, volume_id)
            known.difference_update(event.name.removesuffix(".json") for event in heard if event.kind is Kind.GONE)


def _call(changed: Callable[[str], None], volume_id: str) -> None:
    try:
        changed(volume_id)
    except Exception as error:
        # A foreign exception's text is not vetted for secrets.
        reason = error if isinstance(error, DataCacheError) else type(error).__name__
        log.error("a volume's change was not taken in", extra={"fields": {"volume": volume_id, "reason": reason}})
