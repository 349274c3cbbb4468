"""Volumes of the controller: created from parameters, cloned, listed, modified, deleted.

No content is moved here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

from controller_plugin.page_tokens import decode_page_token, encode_page_token
from controller_plugin.pvc_annotations import ParameterReader
from csi.concurrency.deadline import Deadline
from csi.concurrency.keyed_locks import KeyedLocks
from csi.errors import (
    AlreadyExists,
    ClusterForbids,
    ClusterUnavailable,
    DataCacheError,
    InvalidParameter,
    OutOfRange,
    SourceChanged,
    VolumeNotFound,
)
from csi.parameters import access_modes
from csi.parameters.access_modes import AccessMode
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.content_ref import Secrets
from csi.parameters.performance_keys import Performance, compute_limits
from csi.parameters.pinning import display_name_without_revision, get_revision, pin_name
from csi.parameters.pvc import PvcReference
from csi.parameters.volume_parameters import (
    MAX_VOLUME_BYTES,
    VolumeParameters,
    names_a_source,
    parse_mutable,
    parse_volume_parameters,
)
from csi.performance.capacity import round_up_to_gib
from csi.registry.events.recorder import EventRecorder, NullEventRecorder, ObjectReference
from csi.registry.pins.pins import CachePin, PinHolder, PinRegistry
from csi.registry.volumes.record import VolumeRecord, VolumeRegistry, volume_id_from_name
from csi.resolve.pinned import MAX_PIN_ATTEMPTS, apply_pin, name_pin_in_errors, pin_changed_error
from csi.resolve.resolver import Resolver
from csi.values import format_size
from csi.worker.results import Resolution

_MAX_NAME_LENGTH = 128
_PINNED_REASON = "CachePinned"


@dataclass(frozen=True)
class CreateRequest:
    """Request of CreateVolume.

    Sizes are in bytes, 0 if not given; `source_volume_id` is a volume's id or "".

    `access_modes` has one for each capability.
    """

    name: str
    parameters: Mapping[str, str]
    secrets: Mapping[str, str] = field(repr=False)
    access_modes: Sequence[AccessMode] = ()
    mount_flags: Sequence[str] = ()
    mutable_parameters: Mapping[str, str] = field(default_factory=dict)
    required_bytes: int = 0
    limit_bytes: int = 0
    source_volume_id: str = ""

    @cached_property
    def pvc(self) -> PvcReference | None:
        """PVC that the volume is for, None if the parameters name none (no `--extra-create-metadata`)."""
        return PvcReference.from_context(self.parameters)


class ControllerVolumes:
    """Volumes of the controller, kept in `registry`. Thread-safe.

    `resolver` resolves sources, `parameter_reader` reads requests' parameters, `pins` are shared by the
    volumes of a namespace (None without a cluster), and `recorder` records Events of PVCs.
    """

    def __init__(
        self,
        registry: VolumeRegistry,
        resolver: Resolver,
        parameter_reader: ParameterReader,
        pins: PinRegistry | None = None,
        recorder: EventRecorder | None = None,
    ) -> None:
        self._registry, self._resolver, self._parameter_reader, self._pins = (
            registry,
            resolver,
            parameter_reader,
            pins,
        )
        self._locks, self._recorder = KeyedLocks(), recorder or NullEventRecorder()

    def create(self, request: CreateRequest, deadline: Deadline) -> VolumeRecord:
        """Resolve the source and record the volume.

        The same request gives the same record, whichever replica created it.

        Raises InvalidParameter, AlreadyExists (a different volume has the name), OutOfRange (content over
        `limit_bytes`), VolumeNotFound (the volume to clone does not exist), Busy, and the errors of a Source.
        Performance keys out of the range of the volume's capacity are InvalidParameter.
        """
        if not request.name or len(request.name) > _MAX_NAME_LENGTH:
            raise InvalidParameter(f"name has {len(request.name)} characters; it has 1 to {_MAX_NAME_LENGTH}")
        if not 0 <= request.required_bytes <= MAX_VOLUME_BYTES or request.limit_bytes < 0:
            sizes = f"required_bytes {request.required_bytes} and limit_bytes {request.limit_bytes}"
            raise OutOfRange(f"{sizes} are requested; sizes are 0 to {MAX_VOLUME_BYTES} bytes (16 TiB)")
        if 0 < request.limit_bytes < request.required_bytes:
            raise InvalidParameter(
                f"limit_bytes {request.limit_bytes} is below required_bytes {request.required_bytes}"
            )
        volume_id = volume_id_from_name(request.name)
        with self._locks.acquire(volume_id):
            requested = self._parse_request(request)
            existing = self._registry.get(volume_id)
            if existing:
                return _check_same(existing, request, requested)
            with self._release_pins_on_failure(volume_id) as held_pins:
                record = self._resolve_record(volume_id, request, requested, deadline, held_pins)
                stored = self._registry.add(record)
            # Another replica recorded the volume first.
            if stored != record:
                return _check_same(stored, request, requested)
            self._record_pin_event(record)
            return record

    def _record_pin_event(self, record: VolumeRecord) -> None:
        reference = ObjectReference.for_pvc(record.pvc)
        if reference:
            self._recorder.record(reference, _PINNED_REASON, _describe_pin(record))

    @contextmanager
    def _release_pins_on_failure(self, volume_id: str) -> Iterator[list[CachePin]]:
        """Give a list for the pins that the block holds for a volume, and release them if the block fails."""
        held_pins: list[CachePin] = []
        try:
            yield held_pins
        except ClusterUnavailable:  # the volume may have been recorded all the same
            raise
        except DataCacheError:
            # The original error matters more, and garbage collection removes a holder that stays.
            with suppress(DataCacheError):
                for pin in held_pins[-1:]:
                    self._release_pin(volume_id, pin.namespace, pin.requested)
            raise

    def _pin_namespace(self, request: CreateRequest, requested: VolumeParameters) -> str:
        """Return the namespace of the pin that the volume holds, "" for none.

        A fixed revision needs none, and a clone copies its original's.
        """
        needs_pin = self._pins and requested.spec.is_moving and not request.source_volume_id
        return request.pvc.namespace if needs_pin and request.pvc else ""

    def _release_pin(self, volume_id: str, namespace: str, requested: CacheSpec) -> None:
        if self._pins and namespace:
            self._pins.remove_holder(namespace, pin_name(requested), PinHolder("volume", volume_id))

    def _parse_request(self, request: CreateRequest) -> VolumeParameters:
        original, merged = (
            self._get_source_volume(request.source_volume_id),
            self._parameter_reader.merge_pvc_annotations(request.parameters, request.pvc),
        )
        if original and not names_a_source(merged.parameters):
            parsed = parse_volume_parameters({**original.requested_spec.to_context(), **merged.parameters})
        else:
            parsed = self._parameter_reader.parse_merged(merged, request.mount_flags, request.pvc)
        if original and parsed.spec not in (original.requested_spec, original.spec):
            display_name = original.spec.source.display_name
            raise InvalidParameter(
                f"the parameters name {parsed.spec.source.display_name}, "
                f"the volume to clone holds {display_name}; make them agree"
            )
        if parsed.size_bytes is not None:
            raise InvalidParameter(
                "size is for volumes without a PVC; "
                "remove it and request the size in the PVC (spec.resources.requests.storage)"
            )
        for mode in request.access_modes:
            access_modes.check_access_mode(mode, parsed.downgrade_writers)
        return replace(parsed, performance=parse_mutable(request.mutable_parameters, parsed.performance))

    def _get_source_volume(self, volume_id: str) -> VolumeRecord | None:
        return self.get(volume_id) if volume_id else None

    def _resolve_record(
        self,
        volume_id: str,
        request: CreateRequest,
        requested: VolumeParameters,
        deadline: Deadline,
        held_pins: list[CachePin],
    ) -> VolumeRecord:
        namespace, secrets = self._pin_namespace(request, requested), Secrets(request.secrets)
        if request.source_volume_id:
            resolution = self._resolve_clone(volume_id, request.source_volume_id, secrets, deadline)
        elif namespace:
            resolution = self._resolve_pinned(
                volume_id, namespace, requested.spec, secrets, deadline, held_pins
            )
        else:
            resolution = self._resolver.resolve(volume_id, requested.spec, secrets, deadline)
        capacity = _choose_capacity(resolution.content_bytes, request)
        compute_limits(requested.performance, capacity)
        return VolumeRecord(
            id=volume_id,
            name=request.name,
            requested_spec=requested.spec,
            spec=resolution.spec,
            digest=resolution.digest,
            capacity_bytes=capacity,
            content_bytes=resolution.content_bytes,
            downgrade_writers=requested.downgrade_writers,
            cloned_from=request.source_volume_id,
            created_at=time.time(),
            performance=requested.performance,
            pvc=request.pvc,
            pin_namespace=namespace,
        )

    def _resolve_clone(
        self, volume_id: str, original_id: str, secrets: Secrets, deadline: Deadline
    ) -> Resolution:
        """Resolve what the volume to clone holds; raises SourceChanged if it has other content by now."""
        original = self.get(original_id)
        resolution = self._resolver.resolve(volume_id, original.spec, secrets, deadline)
        if resolution.digest != original.digest:
            raise SourceChanged(
                f"{original.spec.source.display_name} changed since {original.id} was created, "
                "so it cannot be cloned; create a new volume"
            )
        return resolution

    def _resolve_pinned(
        self,
        volume_id: str,
        namespace: str,
        requested: CacheSpec,
        secrets: Secrets,
        deadline: Deadline,
        held_pins: list[CachePin],
    ) -> Resolution:
        """Resolve under the namespace's pin, creating and holding the pin if there is none."""
        pins = self._pins
        assert pins is not None
        for _ in range(MAX_PIN_ATTEMPTS):
            pin = pins.get(namespace, pin_name(requested))
            spec, digest = apply_pin(pin, requested)
            with name_pin_in_errors(pin):
                resolution = self._resolver.resolve(volume_id, spec, secrets, deadline)
                if digest not in (None, resolution.digest):
                    raise SourceChanged(f"{spec.source.display_name} changed since then")
            new_pin = CachePin.from_specs(namespace, requested, resolution.spec, resolution.digest)
            held_pins.append(pins.add_holder(new_pin, PinHolder("volume", volume_id)))
            if held_pins[-1].digest == resolution.digest:
                return resolution
        raise pin_changed_error(namespace, requested)

    def get(self, volume_id: str) -> VolumeRecord:
        """Return the volume with this id; raises VolumeNotFound."""
        return _require_found(self._registry.get(volume_id), volume_id)

    def delete(self, volume_id: str) -> None:
        """Delete the volume's record; nodes that mount it keep their image.

        Raises Busy while another call works on it.
        """
        with self._locks.acquire(volume_id):
            if record := self._get_if_pinned(volume_id):
                self._release_pin(volume_id, record.pin_namespace, record.requested_spec)
            self._registry.delete(volume_id)

    def _get_if_pinned(self, volume_id: str) -> VolumeRecord | None:
        try:
            return self._registry.get(volume_id) if self._pins else None
        except (ClusterUnavailable, ClusterForbids):
            raise
        except DataCacheError:  # a damaged record can be deleted; garbage collection removes its pin's holder
            return None

    def modify(self, volume_id: str, mutable_parameters: Mapping[str, str]) -> VolumeRecord:
        """Change the performance keys in `mutable_parameters`, leaving the others.

        Raises InvalidParameter (also for values that the volume's size does not allow), VolumeNotFound, Busy.
        """

        def update(record: VolumeRecord) -> VolumeRecord:
            changed = replace(record, performance=parse_mutable(mutable_parameters, record.performance))
            compute_limits(changed.performance, changed.capacity_bytes)
            return changed

        with self._locks.acquire(volume_id):
            changed = (
                self._registry.change(volume_id, update)
                if mutable_parameters
                else self._registry.get(volume_id)
            )
            return _require_found(changed, volume_id)

    def list_page(self, token: str, limit: int) -> tuple[list[VolumeRecord], str]:
        """Return a page of volumes and the token of the next, "" for none.

        Volumes that come and go neither shift nor repeat others.

        Raises InvalidToken for a token that this controller did not issue, InvalidParameter for a negative
        `limit`.
        """
        if limit < 0:
            raise InvalidParameter(f"max_entries is {limit}; give 0 (no limit) or more")
        # One record more than the page, to know if there is a next one.
        records = self._registry.list_page(decode_page_token(token), limit + 1 if limit else 0)
        if not limit or len(records) <= limit:
            return records, ""
        return records[:limit], encode_page_token(records[limit - 1].id)


def _describe_pin(record: VolumeRecord) -> str:
    """Describe the source, the commit that its revision stands for, and the size."""
    requested, pin = get_revision(record.requested_spec), get_revision(record.spec)
    revision = f", revision {requested}" + (f" -> {pin}" if pin != requested else "") if requested else ""
    size = format_size(record.content_bytes)
    return (
        f"{display_name_without_revision(record.requested_spec)}{revision}: "
        f"{size}, image {record.digest[:12]}"
    )


def _require_found(record: VolumeRecord | None, volume_id: str) -> VolumeRecord:
    if record is None:
        raise VolumeNotFound(f"there is no volume {volume_id[:200]!r}")
    return record


def _choose_capacity(content_bytes: int, request: CreateRequest) -> int:
    """Return the larger of the requested size and the content, the latter rounded up to GiB if the limit
    allows."""
    rounded = round_up_to_gib(content_bytes)
    if not request.limit_bytes:
        return max(rounded, request.required_bytes)
    if content_bytes > request.limit_bytes:
        raise OutOfRange(
            f"the content has {content_bytes} bytes, over the limit of {request.limit_bytes}; "
            "raise the limit or narrow the source"
        )
    return max(min(rounded, request.limit_bytes), request.required_bytes)


def _check_same(existing: VolumeRecord, request: CreateRequest, requested: VolumeParameters) -> VolumeRecord:
    fits = (
        existing.capacity_bytes >= request.required_bytes
        and not 0 < request.limit_bytes < existing.capacity_bytes
    )
    differing = [
        field
        for field, same in (
            ("capacity_range", fits),
            (
                "parameters",
                requested.spec == existing.requested_spec
                and requested.downgrade_writers == existing.downgrade_writers,
            ),
            ("volume_content_source", request.source_volume_id == existing.cloned_from),
            (
                "mutable_parameters or performance keys",
                requested.performance in (existing.performance, Performance()),
            ),
        )
        if not same
    ]
    if differing:
        raise AlreadyExists(
            f"a volume named {request.name!r} exists with other {' and '.join(differing)}; "
            "use another name or delete it first"
        )
    return existing
