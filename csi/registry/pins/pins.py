"""One answer in a namespace: what a moving source was when the first of those volumes was made that live, and the Protocol of whoever keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from csi.errors import FailedPrecondition
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.pinning import content_spec, is_pinned_form_of, pin_name


class PinHolder(NamedTuple):
    """Who holds a pin: a "node" for the inline volumes on it, or a "volume" of the controller by its id."""

    kind: str
    name: str


@dataclass(frozen=True)
class CachePin:
    """What `requested` means in `namespace` while anybody holds it: `pinned`, whose manifest has `digest` (64 hex digits).

    Both specs are their content alone (`content_spec`). `holders` are those there are, with since when (seconds since 1970).
    """

    namespace: str
    requested: CacheSpec
    pinned: CacheSpec
    digest: str
    holders: Mapping[PinHolder, float] = field(default_factory=dict, compare=False)

    @staticmethod
    def from_specs(namespace: str, requested: CacheSpec, pinned: CacheSpec, digest: str) -> CachePin:
        """The pin of whole specs, held by nobody."""
        return CachePin(namespace, content_spec(requested), content_spec(pinned), digest)

    @property
    def name(self) -> str:
        """The object's name, the same for all who ask for the same."""
        return pin_name(self.requested)

    @property
    def display_name(self) -> str:
        """The pin as messages name it."""
        return f"CachePin {self.namespace}/{self.name}"

    @property
    def summary(self) -> str:
        """What people are told whose volume reads what is pinned."""
        return f"{self.requested.source.display_name} is pinned to {self.pinned.source.display_name}, image {self.digest[:12]}, in this namespace ({self.display_name})"

    @property
    def remedy(self) -> str:
        """What to do where the pin is in the way."""
        return (
            f"it goes with the last volume that holds it; to have new volumes read what the source holds now, run "
            f"kubectl delete cachepin -n {self.namespace} {self.name}"
        )

    def apply_to(self, requested: CacheSpec) -> CacheSpec:
        """`requested`, the same way and as the same one's word, as it is pinned. Raises FailedPrecondition for a pin of something else."""
        if content_spec(requested) != self.requested or not is_pinned_form_of(
            self.requested.source, self.pinned.source
        ):
            raise FailedPrecondition(
                f"{self.display_name} does not pin {requested.source.display_name} but names another source, so somebody wrote it; {self.remedy}"
            )
        return replace(requested, source=self.pinned.source)


class PinRegistry(Protocol):
    """Keeps pins. What many do to one pin at once is put in order. Thread-safe.

    All methods raise ClusterUnavailable, ClusterForbids, and FailedPrecondition where the CRDs are missing.
    """

    def get(self, namespace: str, name: str) -> CachePin | None:
        """The pin of that name, None where there is none; raises FailedPrecondition for one that cannot be read."""

    def add_holder(self, pin: CachePin, holder: PinHolder) -> CachePin:
        """Hold the pin of that name, making it `pin` where there is none; the pin as it is kept, which may say something else.

        Raises ClusterConflict where others come and go all the time.
        """

    def remove_holder(self, namespace: str, name: str, holder: PinHolder) -> None:
        """Hold it no more; it is removed with its last holder, unless another one comes meanwhile. One that is not there is no error."""

    def list_all(self) -> Iterator[CachePin]:
        """Every pin of every namespace; one that cannot be read is left out."""
