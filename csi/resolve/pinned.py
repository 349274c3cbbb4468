"""Resolving under the pins of a namespace: an existing pin decides, else the first result becomes the pin.

A pin is no authorization: each volume reads from the origin with its own credential, whoever created the pin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from csi.errors import Busy, FailedPrecondition, SourceChanged, SourceNotFound
from csi.parameters.cache_spec import CacheSpec
from csi.registry.pins.pins import CachePin
from csi.worker.results import Resolution

FindPin = Callable[[], CachePin | None]
ResolveSpec = Callable[[CacheSpec, str | None], Resolution]
AddHolder = Callable[[CachePin], CachePin]
# Each attempt after the first means that the pin was replaced in between.
_MAX_PIN_ATTEMPTS = 4


def resolve_with_pin(
    namespace: str, requested: CacheSpec, find_pin: FindPin, resolve: ResolveSpec, add_holder: AddHolder
) -> Resolution:
    """Resolve a source under the namespace's pin, creating and holding the pin if there is none.

    `find_pin` returns the existing pin, or None. `resolve(spec, digest)` resolves with a check of read
    access, and raises SourceChanged if the manifest's digest is not `digest`. `add_holder` holds a pin and
    returns the pin in force, which may be one that was created concurrently.

    If the pinned content is gone, raises FailedPrecondition, which names the pin. Raises Busy if the pin
    changed several times meanwhile, and what the callbacks raise.
    """
    for _ in range(_MAX_PIN_ATTEMPTS):
        pin = find_pin()
        if pin is None:
            resolution = resolve(requested, None)
        else:
            with _name_pin_in_errors(pin):
                resolution = resolve(pin.apply_to(requested), pin.digest)
        held_pin = add_holder(CachePin.from_specs(namespace, requested, resolution.spec, resolution.digest))
        if held_pin.digest == resolution.digest:
            return resolution
    raise Busy(
        f"the pin of {requested.source.display_name} in namespace {namespace} changed meanwhile; call again"
    )


@contextmanager
def _name_pin_in_errors(pin: CachePin) -> Iterator[None]:
    try:
        yield
    except (SourceNotFound, SourceChanged) as error:
        raise FailedPrecondition(
            f"{pin.display_name} pins {pin.pinned.source.display_name}, but: {error}. "
            f"The pin stays: {pin.remedy}"
        ) from error
