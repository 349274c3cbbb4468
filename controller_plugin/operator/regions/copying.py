"""CopyDataCache: caches go to the image stores of other regions, and what other regions announce in ours becomes DataCaches.

All that a copy needs is in the image store that it goes to, so two clusters share nothing but that, and a restart forgets nothing.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from controller_plugin.operator.regions.regions import Copy
from csi.concurrency.background import beside
from csi.errors import AlreadyExists, Busy, DataCacheError, FailedPrecondition, InvalidParameter
from csi.image_store.announcements import Announcement
from csi.image_store.client import StoredImages
from csi.parameters.data_cache import data_cache
from csi.registry.datacaches.data_caches import Content, DataCache, DataCaches, id_of_uid
from csi.worker.pool import Call

log = logging.getLogger("datacache.operator")

_LOOK_SECONDS = 30.0


class StoreRegions:
    """See Regions: places known by the image store that each has. `region` is this place, `stored` its image store."""

    def __init__(self, caches: DataCaches, stored: StoredImages, others: Mapping[str, StoredImages], region: str) -> None:
        self._caches, self._stored, self.region = caches, stored, region
        self.others, self.announced = dict(others), threading.Event()

    def copy(self, cache: DataCache, region: str, copy: Copy) -> str:
        """See Regions; raises FailedPrecondition too, where no image store here has what is to be copied."""
        if region not in (self.region, *self.others):
            known = ", ".join(sorted((self.region, *self.others)))
            raise InvalidParameter(f"DestinationRegionId is {region[:64]!r}; the operator knows {known} (--copy-region)")
        content = cache.state.content
        if not self._stored.there or content is None or not cache.state.is_kept:
            raise FailedPrecondition(f"{cache.id} is not in an image store, from which it could be copied; give the operator one (--image-store)")
        wanted = self._announcement(cache, content, region, copy)
        if region == self.region:
            if not self._caches.find((wanted.id,)):
                self._caches.add(_data_cache(wanted), {})
        else:
            self.others[region].announce(wanted)
            self.announced.set()
        return wanted.id

    def _announcement(self, cache: DataCache, content: Content, region: str, copy: Copy) -> Announcement:
        token = copy.token or uuid.uuid4().hex
        return Announcement(
            id_of_uid(f"{token}\0{cache.uid}\0{region}"),
            content.digest,
            copy.bucket,
            copy.path,
            store=self._stored.place,
            region=self.region,
            title=copy.title,
            retention_days=copy.retention_days,
            tags=dict(copy.tags or {}),
            resource_group=copy.resource_group,
            namespaces=cache.spec.namespaces,
        )


class Copier:
    """Brings images where this place has announced them. For one process at a time."""

    def __init__(self, stored: StoredImages, regions: StoreRegions) -> None:
        self._stored, self.regions = stored, regions

    @contextmanager
    def running(self) -> Iterator[None]:
        """For the block, look when something was announced, and now and then, from a thread of its own."""
        call = Call()

        def rounds(ended: threading.Event) -> None:
            while not ended.is_set():
                self.regions.announced.clear()
                for name, target in self.regions.others.items():
                    _tried(f"the region {name} was not looked at", partial(self.copy, target, call))
                if not ended.is_set():
                    self.regions.announced.wait(_LOOK_SECONDS)

        def stop() -> None:
            call.stop()
            self.regions.announced.set()

        with beside(rounds, "copying", stop):
            yield

    def copy(self, target: StoredImages, call: Call) -> None:
        """Bring one image store what is announced there from here; one that fails is in no other's way. Raises as StoredImages."""
        for wanted in target.announced():
            if not call.stopped:
                _tried(f"the copy {wanted.id} was not brought to {target.place}", partial(self._bring, target, wanted, call))

    def _bring(self, target: StoredImages, wanted: Announcement, call: Call) -> None:
        # file:///images is a place of its own in each region.
        is_ours = (wanted.store, wanted.region) == (self._stored.place, self.regions.region)
        if is_ours and target.find(wanted.digest) is None:
            self._stored.copy_to(target, wanted.digest, call)
            log.info("an image was copied", extra={"fields": {"image": wanted.digest, "data cache": wanted.id, "to": target.place}})


class Adopter:
    """Makes DataCaches of what is announced in our image store. For one process at a time."""

    def __init__(self, caches: DataCaches, stored: StoredImages) -> None:
        self._caches, self._stored = caches, stored
        self._told: set[str] = set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """For the block, look now and then, from a thread of its own."""

        def rounds(ended: threading.Event) -> None:
            while not ended.is_set():
                _tried("announced copies were not looked at", self.adopt)
                ended.wait(_LOOK_SECONDS)

        with beside(rounds, "adopting"):
            yield

    def adopt(self) -> None:
        """Look once. Raises as DataCaches and StoredImages."""
        for wanted in self._stored.announced(lambda why: self._tell("an announced copy cannot be read", reason=why)):
            is_made = bool(self._caches.find((wanted.id,)))
            # One that was deleted does not come back.
            if wanted.adopted and not is_made or is_made and self._stored.find(wanted.digest):
                self._stored.withdraw(wanted)
            elif not wanted.adopted and (is_made or self._made(wanted)):
                self._stored.announce(replace(wanted, adopted=True))

    def _made(self, wanted: Announcement) -> bool:
        try:
            self._caches.add(_data_cache(wanted), {})
        except (AlreadyExists, InvalidParameter) as error:
            self._tell("a copy has no place here", **{"data cache": wanted.id, "from": wanted.region, "reason": str(error)})
            return False
        return True

    def _tell(self, what: str, **fields: str) -> None:
        """Warn of it once."""
        said = repr(fields)
        if said not in self._told:
            log.warning(what, extra={"fields": fields})
        self._told.add(said)


def _data_cache(wanted: Announcement) -> DataCache:
    """Raises InvalidParameter, naming the field, for what no DataCache can be."""
    options = {"snapshotId": wanted.snapshot_id}
    spec = data_cache(wanted.bucket, wanted.path, "SNAPSHOT", options, retention_days=wanted.retention_days, namespaces=tuple(wanted.namespaces))
    group = wanted.resource_group
    return DataCache("", "", 0, 0.0, spec, title=wanted.title, tags=wanted.tags, resource_group=group, given_id=wanted.id)


def _tried(what: str, work: Callable[[], None]) -> None:
    try:
        work()
    except Busy:
        return
    except DataCacheError as error:
        log.warning(what, extra={"fields": {"reason": error}})
