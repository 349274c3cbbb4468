"""Pins: the fixed content of a moving source, shared by the volumes of a namespace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from csi.errors import FailedPrecondition
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.pinning import content_spec, is_pinned_form_of, pin_name


class PinHolder(NamedTuple):
    """Holder of a pin: a "node" for the inline volumes on it, or a "volume" of the controller by its id."""

    kind: str
    name: str


@dataclass(frozen=True)
class CachePin:
    """Pin of `requested` to `pinned` in `namespace`, for as long as it has holders.

    `digest` (64 hex digits) is that of the pinned manifest. Both specs are reduced to their content
    (`content_spec`). `holders` maps each holder to when it joined (seconds since 1970).
    """

    namespace: str
    requested: CacheSpec
    pinned: CacheSpec
    digest: str
    holders: Mapping[PinHolder, float] = field(default_factory=dict, compare=False)

    @staticmethod
    def from_specs(namespace: str, requested: CacheSpec, pinned: CacheSpec, digest: str) -> CachePin:
        """Create the pin of unreduced specs, without holders."""
        return CachePin(namespace, content_spec(requested), content_spec(pinned), digest)

    @property
    def name(self) -> str:
        """Name of the object, equal for all requests for the same source."""
        return pin_name(self.requested)

    @property
    def display_name(self) -> str:
        """Name of the pin in messages."""
        return f"CachePin {self.namespace}/{self.name}"

    @property
    def summary(self) -> str:
        """Explanation for users whose volume reads the pinned content."""
        return (
            f"{self.requested.source.display_name} is pinned to {self.pinned.source.display_name}, "
            f"image {self.digest[:12]}, in this namespace ({self.display_name})"
        )

    @property
    def remedy(self) -> str:
        """Advice for users whom the pin hinders."""
        return (
            "it is removed with the last volume that holds it; "
            "for new volumes to read what the source holds now, "
            f"run kubectl delete cachepin -n {self.namespace} {self.name}"
        )

    def apply_to(self, requested: CacheSpec) -> CacheSpec:
        """Return `requested` with the pinned source.

        Raises FailedPrecondition if this is a pin of another source.
        """
        if content_spec(requested) != self.requested or not is_pinned_form_of(
            self.requested.source, self.pinned.source
        ):
            raise FailedPrecondition(
                f"{self.display_name} does not pin {requested.source.display_name} but names another source, "
                f"so it was edited by hand; {self.remedy}"
            )
        return replace(requested, source=self.pinned.source)


class PinRegistry(Protocol):
    """Registry of pins.

    Concurrent changes of one pin are serialized. Thread-safe.

    All methods raise ClusterUnavailable, ClusterForbids, and FailedPrecondition if the CRDs are missing.
    """

    def get(self, namespace: str, name: str) -> CachePin | None:
        """Return the pin with this name, or None; raises FailedPrecondition if it is malformed."""

    def add_holder(self, pin: CachePin, holder: PinHolder) -> CachePin:
        """Add a holder, creating `pin` if there is none of its name.

        Return the stored pin, which may differ from `pin`.

        Raises ClusterConflict if it is changed again and again.
        """

    def remove_holder(self, namespace: str, name: str, holder: PinHolder) -> None:
        """Remove a holder, and the pin with its last one, unless another joins concurrently.

        A missing holder or pin is no error.
        """

    def list_all(self) -> Iterator[CachePin]:
        """Yield every pin of every namespace; malformed ones are left out."""
