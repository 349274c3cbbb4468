"""Resolving where a namespace has one answer: an existing pin is what is read, the first answer becomes the pin.

A pin is no authorisation: whoever asks reads from the origin with a credential of their own, whatever was pinned by whom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from csi.errors import Busy, FailedPrecondition, SourceChanged, SourceNotFound
from csi.parameters.cache_spec import CacheSpec
from csi.registry.pins.pins import CachePin
from csi.worker.protocol import Resolution

FindPin = Callable[[], CachePin | None]
ResolveSpec = Callable[[CacheSpec, str | None], Resolution]
AddHolder = Callable[[CachePin], CachePin]
_MAX_PIN_ATTEMPTS = 4


def resolve_with_pin(
    namespace: str, requested: CacheSpec, find_pin: FindPin, resolve: ResolveSpec, add_holder: AddHolder
) -> Resolution:
    """What `requested` means in `namespace`, which is held then.

    `find_pin` has the pin there is; `resolve(spec, digest)` resolves and proves, and raises SourceChanged where the manifest is not
    that of a digest; `add_holder` holds a pin, and has the one that counts. Raises FailedPrecondition, naming the pin, where the
    origin does not have what is pinned any more, and what these raise.
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
            f"{pin.pinned.source.display_name} is what {pin.display_name} pins here, but: {error}. The pin stays: {pin.remedy}"
        ) from error
