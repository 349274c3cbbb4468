"""Preparation of a volume's content: resolve with its own credential, fill, verify against its origin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from csi.concurrency.deadline import Deadline
from csi.destinations.allow_list import AllowList, as_untrusted
from csi.errors import FailedPrecondition, NoSpace
from csi.parameters.cache_name import PATH, DataCacheReference
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.content_ref import ContentRef, Secrets
from csi.parameters.volume_parameters import VolumeParameters, parse_volume_parameters
from csi.performance.capacity import round_up_to_gib
from csi.resolve.pinned import MAX_PIN_ATTEMPTS, apply_pin, name_pin_in_errors, pin_changed_error
from csi.resolve.resolver import Resolver
from csi.worker.results import Resolution
from node_plugin.fills.fills import UNRECOVERABLE, Fills
from node_plugin.fills.verification import OriginVerification
from node_plugin.volumes.data_cache_grants import DataCacheGrants
from node_plugin.volumes.mount_request import MountRequest
from node_plugin.volumes.pins import NodePins
from node_plugin.volumes.records import NodeVolume


@dataclass(frozen=True)
class ResolvedVolume:
    """A volume and its resolved content.

    `volume` is its record without paths; `is_trusted` content needs no verification.
    """

    content: ContentRef
    volume: NodeVolume
    is_trusted: bool = False


class VolumePreparation:
    """Preparation of volumes on one node. Thread-safe; methods may wait until their deadline."""

    def __init__(
        self,
        resolver: Resolver,
        pins: NodePins,
        fills: Fills,
        verification: OriginVerification,
        allow_list: AllowList,
        grants: DataCacheGrants | None = None,
    ) -> None:
        self.pins, self.fills, self.grants = pins, fills, grants
        self._resolver, self._verification, self._allow_list = resolver, verification, allow_list

    def resolve_persistent(
        self, request: MountRequest, parameters: VolumeParameters, deadline: Deadline
    ) -> ResolvedVolume:
        """Resolve a volume of the controller: its credential must read what the volume was created from."""
        digest = parameters.manifest_digest
        resolution = self.resolve_spec(request.volume_id, parameters.spec, digest, request.secrets, deadline)
        return self._build_resolved(request, parameters, resolution)

    def resolve_inline(self, request: MountRequest, deadline: Deadline) -> ResolvedVolume:
        """Resolve an inline volume; raises as `resolve_untrusted`."""
        parameters = parse_volume_parameters(request.context, request.mount_flags)
        resolution = self.resolve_untrusted(
            request.volume_id, request.namespace, parameters, request.secrets, deadline
        )
        return self._build_resolved(request, parameters, resolution)

    def resolve_spec(
        self,
        key: str,
        spec: CacheSpec,
        digest: str | None,
        secrets: Secrets,
        deadline: Deadline,
        force_refresh: bool = False,
    ) -> Resolution:
        """Resolve a spec without pin and allow list; `key` is the volume or prewarmed cache that waits.

        Raises as `Resolver.resolve`.
        """
        return self._resolver.resolve(key, spec, secrets, deadline, digest, force_refresh)

    def resolve_untrusted(
        self, key: str, namespace: str, parameters: VolumeParameters, secrets: Secrets, deadline: Deadline
    ) -> Resolution:
        """Resolve a source named by the author of a pod or object, under the namespace's pin.

        Raises PermissionDenied if the operator does not allow the source.
        """
        # First: a source that is not allowed must not be contacted.
        self._allow_list.check(parameters)

        requested = as_untrusted(parameters.spec)
        if not self.pins.needs_pin(namespace, requested):
            return self.resolve_spec(key, requested, None, secrets, deadline)
        for _ in range(MAX_PIN_ATTEMPTS):
            pin = self.pins.find_pin(namespace, requested)
            spec, digest = apply_pin(pin, requested)
            with name_pin_in_errors(pin):
                # The first result becomes the pin, so it must be the current content, not an earlier proof's.
                resolution = self.resolve_spec(
                    key, spec, digest, secrets, deadline, force_refresh=pin is None
                )
            if self.pins.hold_pin(key, namespace, requested, resolution):
                return resolution
        raise pin_changed_error(namespace, requested)

    def resolve_data_cache(
        self, request: MountRequest, name: DataCacheReference, deadline: Deadline
    ) -> ResolvedVolume:
        """Resolve a volume of a DataCache; its grant authorizes the pod, and its own credential is used."""
        if self.grants is None:
            raise FailedPrecondition(
                f"{PATH} names a DataCache, and this node has no registry; "
                "start the node plugin with --registry"
            )
        granted = self.grants.authorize_pod(name.bucket, name.path, request.namespace)
        self.grants.ensure_manifest(request.volume_id, granted, deadline)
        volume = NodeVolume(
            request.volume_id,
            granted.content.digest,
            request.volume_context,
            granted.capacity_bytes,
            granted.content.content_bytes,
            is_inline=True,
            performance=name.performance,
        )
        return ResolvedVolume(granted.content_ref, volume, self.grants.has_trusted_bytes(granted))

    def _build_resolved(
        self, request: MountRequest, parameters: VolumeParameters, resolution: Resolution
    ) -> ResolvedVolume:
        needed = max(parameters.size_bytes or 0, round_up_to_gib(resolution.content_bytes))
        volume = NodeVolume(
            request.volume_id,
            resolution.digest,
            request.volume_context,
            parameters.capacity_bytes or needed,
            resolution.content_bytes,
            request.is_inline,
            pin=self.pins.encode_pin(request.volume_id),
        )
        source = resolution.spec.to_context()
        return ResolvedVolume(ContentRef(resolution.digest, source, request.secrets), volume)

    def fill_and_verify(self, request: MountRequest, resolved: ResolvedVolume, deadline: Deadline) -> None:
        """Return when the image is sealed and verified against the volume's own origin."""
        self.fills.ensure_sealed(request.volume_id, resolved.content, deadline, request.event_reference)
        self.ensure_verified(request.volume_id, resolved.content, resolved.is_trusted, deadline)

    def ensure_verified(self, key: str, content: ContentRef, is_trusted: bool, deadline: Deadline) -> None:
        """Return when the sealed image is verified against its origin; trusted content is not compared."""
        # Trusted: recorded as verified without a comparison, so the call below returns at once.
        if is_trusted:
            self._verification.mark_verified(content)
        self._verification.ensure_verified(key, content, deadline)

    @contextmanager
    def discard_if_unusable(self, digest: str) -> Iterator[None]:
        """Discard the partial image if the block fails because the image is unusable or cannot fit."""
        try:
            yield
        except (*UNRECOVERABLE, NoSpace):
            self.fills.discard(digest)
            raise
