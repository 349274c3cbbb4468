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

Find = Callable[[], CachePin | None]
Resolve = Callable[[CacheSpec, str | None], Resolution]
Hold = Callable[[CachePin], CachePin]
_TRIES = 4


def under_pin(namespace: str, asked: CacheSpec, find: Find, resolve: Resolve, hold: Hold) -> Resolution:
    """What `asked` means in `namespace`, which is held then.

    `find` has the pin there is; `resolve(spec, digest)` resolves and proves, and raises SourceChanged where the manifest is not
    that of a digest; `hold` holds a pin, and has the one that counts. Raises FailedPrecondition, naming the pin, where the
    origin does not have what is pinned any more, and what these raise.
    """
    for _ in range(_TRIES):
        pin = find()
        if pin is None:
            found = resolve(asked, None)
        else:
            with _named(pin):
                found = resolve(pin.applied(asked), pin.digest)
        kept = hold(CachePin.of(namespace, asked, found.spec, found.digest))
        if kept.digest == found.digest:
            return found
    raise Busy(f"the pin of {asked.source.shown} in namespace {namespace} changed meanwhile; call again")


@contextmanager
def _named(pin: CachePin) -> Iterator[None]:
    try:
        yield
    except (SourceNotFound, SourceChanged) as error:
        raise FailedPrecondition(f"{pin.pinned.source.shown} is what {pin.shown} pins here, but: {error}. The pin stays: {pin.way_out}") from error
