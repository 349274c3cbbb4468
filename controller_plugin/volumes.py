"""The life of a volume in the controller: created from parameters, cloned, listed, modified, deleted. No bytes move here."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from controller_plugin.pvc_annotations import Asking, claim_of
from csi.concurrency.deadline import Patience
from csi.concurrency.keyed_locks import KeyedLocks
from csi.errors import (
    AlreadyExists,
    ClusterForbids,
    ClusterUnavailable,
    DataCacheError,
    InvalidParameter,
    InvalidToken,
    OutOfRange,
    SourceChanged,
    VolumeNotFound,
)
from csi.parameters import access_modes
from csi.parameters.access_modes import AccessMode
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.performance_keys import Performance, limits
from csi.parameters.pinning import pin_name, revision_of, without_revision
from csi.parameters.pvc import Claim
from csi.parameters.volume_parameters import LARGEST_VOLUME, VolumeParameters, names_a_source, parse, parse_mutable
from csi.performance.capacity import whole_gib
from csi.registry.events.recorder import Announcer, Silent, Subject
from csi.registry.pins.pins import CachePin, Holder, PinRegistry
from csi.registry.volumes.record import VolumeRecord, VolumeRegistry, id_of_name
from csi.resolve.pinned import Resolve, under_pin
from csi.resolve.resolver import Resolver
from csi.values import human
from csi.worker.protocol import Resolution

_MAX_NAME = 128
_TOKEN_PREFIX = "after:"
_PINNED = "CachePinned"


@dataclass(frozen=True)
class CreateRequest:
    """What CreateVolume asks. Sizes are in bytes, 0 for "not said"; `clone_of` is a volume id or ""; `modes` one for each capability."""

    name: str
    parameters: Mapping[str, str]
    secrets: Mapping[str, str] = field(repr=False)
    modes: Sequence[AccessMode] = ()
    mount_flags: Sequence[str] = ()
    mutable: Mapping[str, str] = field(default_factory=dict)
    required_bytes: int = 0
    limit_bytes: int = 0
    clone_of: str = ""


class Volumes:
    """The controller's volumes, kept in `registry`. Thread-safe.

    `resolver` asks origins, `asking` reads what is asked, `pins` has what the volumes of a namespace agree on, None without a cluster;
    PVCs are told by `announcer`.
    """

    def __init__(
        self, registry: VolumeRegistry, resolver: Resolver, asking: Asking, pins: PinRegistry | None = None, announcer: Announcer | None = None
    ) -> None:
        self._registry, self._resolver, self._asking, self._pins = registry, resolver, asking, pins
        self._locks, self._announcer = KeyedLocks(), announcer or Silent()

    def create(self, request: CreateRequest, patience: Patience) -> VolumeRecord:
        """Pin the source and record the volume; the same name and request again give the same record, whichever replica made it.

        Raises InvalidParameter, AlreadyExists (the name stands for something else), OutOfRange (content over
        `limit_bytes`), VolumeNotFound (clone of a volume that is not), Busy, and the errors of a Source. Performance
        keys out of the range of the capacity that the volume gets are InvalidParameter.
        """
        if not request.name or len(request.name) > _MAX_NAME:
            raise InvalidParameter(f"name has {len(request.name)} characters; it has 1 to {_MAX_NAME}")
        if not 0 <= request.required_bytes <= LARGEST_VOLUME or request.limit_bytes < 0:
            sizes = f"required_bytes {request.required_bytes} and limit_bytes {request.limit_bytes}"
            raise OutOfRange(f"{sizes} are asked for; sizes are 0 to {LARGEST_VOLUME} bytes (16 TiB)")
        if 0 < request.limit_bytes < request.required_bytes:
            raise InvalidParameter(f"limit_bytes {request.limit_bytes} is below required_bytes {request.required_bytes}")
        volume_id = id_of_name(request.name)
        with self._locks.hold(volume_id):
            asked = self._parsed(request)
            known = self._registry.get(volume_id)
            if known:
                return _same(known, request, asked)
            with self._letting_go(volume_id) as held:
                record = self._resolved(volume_id, request, asked, patience, held)
                kept = self._registry.add(record)
            if kept != record:
                return _same(kept, request, asked)
            self._tell(record)
            return record

    def _tell(self, record: VolumeRecord) -> None:
        subject = Subject.claim(record.claim)
        if subject:
            self._announcer.announce(subject, _PINNED, _pinned(record))

    @contextmanager
    def _letting_go(self, volume_id: str) -> Iterator[list[CachePin]]:
        """The pins that the block holds for a volume; where it fails there is no volume that would."""
        held: list[CachePin] = []
        try:
            yield held
        except ClusterUnavailable:  # the volume may be recorded all the same
            raise
        except DataCacheError:
            with suppress(DataCacheError):
                for pin in held[-1:]:
                    self._release(volume_id, pin.namespace, pin.asked)
            raise

    def _namespace(self, request: CreateRequest, asked: VolumeParameters) -> str:
        """That of the pin which the volume is to hold, "" for none: a commit needs none, and a clone is what its original is."""
        moves = self._pins and asked.spec.moving and not request.clone_of
        return claim_of(request.parameters)[0] if moves else ""

    def _release(self, volume_id: str, namespace: str, asked: CacheSpec) -> None:
        if self._pins and namespace:
            self._pins.release(namespace, pin_name(asked), Holder("volume", volume_id))

    def _parsed(self, request: CreateRequest) -> VolumeParameters:
        original, whole = self._original(request.clone_of), self._asking.whole(request.parameters)
        if original and not names_a_source(whole.parameters):
            parsed = parse({**original.asked.to_context(), **whole.parameters})
        else:
            parsed = self._asking.parsed(request.parameters, whole, request.mount_flags)
        if original and parsed.spec not in (original.asked, original.spec):
            held = original.spec.source.shown
            raise InvalidParameter(f"the parameters name {parsed.spec.source.shown}, the volume to clone holds {held}; make them agree")
        if parsed.size_bytes is not None:
            raise InvalidParameter("size is for volumes without a claim; remove it and ask for the size in the PVC (spec.resources.requests.storage)")
        for mode in request.modes:
            access_modes.check(mode, parsed.downgrade_writers)
        return replace(parsed, performance=parse_mutable(request.mutable, parsed.performance))

    def _original(self, volume_id: str) -> VolumeRecord | None:
        return self.get(volume_id) if volume_id else None

    def _resolved(self, volume_id: str, request: CreateRequest, asked: VolumeParameters, patience: Patience, held: list[CachePin]) -> VolumeRecord:
        original = self._original(request.clone_of)
        spec, namespace = original.spec if original else asked.spec, self._namespace(request, asked)

        def resolve(spec: CacheSpec, digest: str | None) -> Resolution:
            found = self._resolver.resolve(volume_id, spec, request.secrets, patience)
            if digest not in (None, found.digest):
                raise SourceChanged(f"{spec.source.shown} changed since then")
            return found

        found = self._pinned(volume_id, namespace, spec, resolve, held) if namespace else resolve(spec, None)
        if original and found.digest != original.digest:
            raise SourceChanged(f"{spec.source.shown} changed since {original.id} was created, so it cannot be cloned; create a new volume")
        capacity = _capacity(found.content_bytes, request)
        limits(asked.performance, capacity)
        return VolumeRecord(
            id=volume_id,
            name=request.name,
            asked=asked.spec,
            spec=found.spec,
            digest=found.digest,
            capacity_bytes=capacity,
            content_bytes=found.content_bytes,
            downgrade_writers=asked.downgrade_writers,
            cloned_from=request.clone_of,
            created=time.time(),
            performance=asked.performance,
            claim=Claim.of(request.parameters),
            namespace=namespace,
        )

    def _pinned(self, volume_id: str, namespace: str, spec: CacheSpec, resolve: Resolve, held: list[CachePin]) -> Resolution:
        pins = self._pins
        assert pins is not None

        def hold(pin: CachePin) -> CachePin:
            held.append(pins.hold(pin, Holder("volume", volume_id)))
            return held[-1]

        return under_pin(namespace, spec, lambda: pins.get(namespace, pin_name(spec)), resolve, hold)

    def get(self, volume_id: str) -> VolumeRecord:
        """The volume of that id; raises VolumeNotFound."""
        return _found(self._registry.get(volume_id), volume_id)

    def delete(self, volume_id: str) -> None:
        """Forget the volume; nodes that still mount it keep their image. Raises Busy while another call works on it."""
        with self._locks.hold(volume_id):
            if record := self._held_by(volume_id):
                self._release(volume_id, record.namespace, record.asked)
            self._registry.delete(volume_id)

    def _held_by(self, volume_id: str) -> VolumeRecord | None:
        try:
            return self._registry.get(volume_id) if self._pins else None
        except (ClusterUnavailable, ClusterForbids):
            raise
        except DataCacheError:  # one that cannot be read can be deleted; its hold is swept
            return None

    def modify(self, volume_id: str, mutable: Mapping[str, str]) -> VolumeRecord:
        """Change the performance keys that `mutable` names, leaving the others.

        Raises InvalidParameter (also for what the volume's size does not have), VolumeNotFound, Busy.
        """

        def how(record: VolumeRecord) -> VolumeRecord:
            changed = replace(record, performance=parse_mutable(mutable, record.performance))
            limits(changed.performance, changed.capacity_bytes)
            return changed

        with self._locks.hold(volume_id):
            changed = self._registry.change(volume_id, how) if mutable else self._registry.get(volume_id)
            return _found(changed, volume_id)

    def page(self, token: str, limit: int) -> tuple[list[VolumeRecord], str]:
        """One page of all volumes and the token of the next, "" for none; volumes that come and go neither shift nor repeat the others.

        Raises InvalidToken for a token that is none of ours, InvalidParameter for a negative `limit`.
        """
        if limit < 0:
            raise InvalidParameter(f"max_entries is {limit}; it is 0 (no limit) or more")
        records = self._registry.page(_read_token(token), limit + 1 if limit else 0)
        if not limit or len(records) <= limit:
            return records, ""
        return records[:limit], _write_token(records[limit - 1].id)


def _pinned(record: VolumeRecord) -> str:
    """Where the data comes from, what its revision stood for, and how much it is."""
    asked, pin = revision_of(record.asked), revision_of(record.spec)
    moved = f", revision {asked}" + (f" -> {pin}" if pin != asked else "") if asked else ""
    return f"{without_revision(record.asked)}{moved}: {human(record.content_bytes)}, image {record.digest[:12]}"


def _found(record: VolumeRecord | None, volume_id: str) -> VolumeRecord:
    if record is None:
        raise VolumeNotFound(f"there is no volume {volume_id[:200]!r}")
    return record


def _capacity(content_bytes: int, request: CreateRequest) -> int:
    """The larger of what was asked and what the content needs, the latter rounded up to 1 GiB where the limit allows."""
    rounded = whole_gib(content_bytes)
    if not request.limit_bytes:
        return max(rounded, request.required_bytes)
    if content_bytes > request.limit_bytes:
        raise OutOfRange(f"the content has {content_bytes} bytes, over the limit of {request.limit_bytes}; raise the limit or narrow the source")
    return max(min(rounded, request.limit_bytes), request.required_bytes)


def _same(known: VolumeRecord, request: CreateRequest, asked: VolumeParameters) -> VolumeRecord:
    fits = known.capacity_bytes >= request.required_bytes and not 0 < request.limit_bytes < known.capacity_bytes
    differing = [
        field
        for field, same in (
            ("capacity_range", fits),
            ("parameters", asked.spec == known.asked and asked.downgrade_writers == known.downgrade_writers),
            ("volume_content_source", request.clone_of == known.cloned_from),
            ("mutable_parameters or performance keys", asked.performance in (known.performance, Performance())),
        )
        if not same
    ]
    if differing:
        raise AlreadyExists(f"a volume named {request.name!r} exists with other {' and '.join(differing)}; use another name or delete it first")
    return known


def _write_token(volume_id: str) -> str:
    return base64.urlsafe_b64encode((_TOKEN_PREFIX + volume_id).encode()).decode()


def _read_token(token: str) -> str:
    if not token:
        return ""
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        text = ""
    if not text.startswith(_TOKEN_PREFIX):
        raise InvalidToken(f"starting_token {token[:80]!r} is not one this controller gave out; start again without it")
    return text.removeprefix(_TOKEN_PREFIX)
