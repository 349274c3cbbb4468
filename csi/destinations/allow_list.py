"""The operator's allow list for sources named by users: inline volumes, PVC annotations and CachePrewarms."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from csi.destinations.destinations import is_listed
from csi.errors import PermissionDenied
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.composite import CompositeSpec
from csi.parameters.dialects.keys import SourceSpec
from csi.parameters.dialects.nas import NasSpec
from csi.parameters.volume_parameters import VolumeParameters, check_untrusted_keys

NAS_HELP = (
    "NAS exports that inline volumes and annotations of PVCs may name: server:/path, comma separated, or *"
)


@dataclass(frozen=True)
class PolicySubject:
    """Whose parameters are checked, as messages name them, and which plugin has the list."""

    label: str
    plugin: str


INLINE_VOLUMES = PolicySubject("inline volumes", "node")
PVC_ANNOTATIONS = PolicySubject("annotations of a PVC", "controller")
CACHE_PREWARMS = PolicySubject("CachePrewarms", "node")
DATA_CACHE_OBJECTS = PolicySubject("DataCaches", "operator")


class AllowList:
    """Policy for sources named by users: the configured hubs, listed NAS exports and listed hosts.

    NAS exports must be below one of `nas_prefixes` (from `parse_nas_prefixes`: "server:/path", or "*" for
    all), other hosts among `destinations` (from `csi.destinations.destinations.parse_destinations`).
    """

    def __init__(
        self,
        nas_prefixes: Sequence[str] = (),
        destinations: Sequence[str] = (),
        policy_subject: PolicySubject = INLINE_VOLUMES,
    ) -> None:
        self._nas_prefixes = tuple(nas_prefixes)
        self._destinations = tuple(destinations)
        self._policy_subject = policy_subject

    def check(self, parameters: VolumeParameters) -> None:
        """Raise PermissionDenied unless every source is listed and has no key reserved for administrators.

        Raises InvalidParameter for a key that only the driver writes.
        """
        check_untrusted_keys(parameters.to_context(), self._policy_subject.label)
        self.check_keys(parameters.spec.source)
        self.check_source(parameters.spec.source)

    def check_keys(self, source: SourceSpec) -> None:
        """Check only the keys of each source, as `check` does."""
        for part in _iter_sources(source):
            check_untrusted_keys(part.to_context(), self._policy_subject.label)

    def check_source(self, source: SourceSpec) -> None:
        """Check only the location of each source, as `check` does."""
        for part in _iter_sources(source):
            if isinstance(part, NasSpec):
                self._check_nas_export(part)
            else:
                self._check_hosts(part)

    def _check_nas_export(self, source: NasSpec) -> None:
        if not any(_is_below(source, prefix) for prefix in self._nas_prefixes):
            raise self._not_allowed_error(source, "it", f"--allow-inline-nas {source.server}:{source.path}")

    def _check_hosts(self, source: SourceSpec) -> None:
        for address in source.addresses:
            if not is_listed(self._destinations, address):
                raise self._not_allowed_error(source, address, f"--allow-origins {address}")

    def _not_allowed_error(self, source: SourceSpec, rejected: str, flag: str) -> PermissionDenied:
        return PermissionDenied(
            f"{self._policy_subject.label} may not name {source.display_name}: "
            f"{rejected} is not on the operator's list; "
            f"use a StorageClass, or start the {self._policy_subject.plugin} plugin with {flag}"
        )


def as_untrusted(spec: CacheSpec) -> CacheSpec:
    """Mark `spec` as named by a user.

    A NAS spec stays as it is: NFS does not redirect, so a verification made for an administrator's volume
    also holds for a user's.
    """
    return spec if isinstance(spec.source, NasSpec) else replace(spec, untrusted=True)


def _iter_sources(source: SourceSpec) -> Iterator[SourceSpec]:
    if isinstance(source, CompositeSpec):
        yield from (part for _, part in source.parts)
    else:
        yield source


def _is_below(source: NasSpec, prefix: str) -> bool:
    if prefix == "*":
        return True
    server, _, path = prefix.partition(":/")
    path = "/" + path.strip("/")
    return source.server.lower() == server.strip("[]").lower() and (
        path == "/" or source.path == path or source.path.startswith(path + "/")
    )


def parse_nas_prefixes(text: str) -> list[str]:
    """Parse the value of --allow-inline-nas, separated by commas.

    Raises argparse.ArgumentTypeError naming the item that is neither server:/path nor *.
    """
    prefixes = [part.strip() for part in text.split(",") if part.strip()]
    for prefix in prefixes:
        if prefix != "*" and (":/" not in prefix or prefix.startswith(":/")):
            raise argparse.ArgumentTypeError(
                f"{prefix!r} is not server:/path; write it as nas.example.com:/models, or * for all"
            )
    return prefixes
