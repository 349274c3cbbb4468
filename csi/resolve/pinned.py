"""Resolving under the pins of a namespace: an existing pin decides, else the first result becomes the pin.

Whoever resolves a moving source makes up to MAX_PIN_ATTEMPTS attempts: look for a pin, resolve what it names
(`apply_pin`) or the requested spec, and hold the result. If another pin is in force by then, the next attempt
resolves that one. A pin is no authorization: each volume reads from the origin with its own credential,
whoever created the pin.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from csi.errors import Busy, FailedPrecondition, SourceChanged, SourceNotFound
from csi.parameters.cache_spec import CacheSpec
from csi.registry.pins.pins import CachePin

MAX_PIN_ATTEMPTS = 4
"""Each attempt after the first means that the pin was replaced in between."""


def apply_pin(pin: CachePin | None, requested: CacheSpec) -> tuple[CacheSpec, str | None]:
    """Return the spec to resolve, and the digest that it must have: None without a pin."""
    return (requested, None) if pin is None else (pin.apply_to(requested), pin.digest)


@contextmanager
def name_pin_in_errors(pin: CachePin | None) -> Iterator[None]:
    """Name the pin in the block's error, as FailedPrecondition, if its content is gone."""
    try:
        yield
    except (SourceNotFound, SourceChanged) as error:
        if pin is None:
            raise
        raise FailedPrecondition(
            f"{pin.display_name} pins {pin.pinned.source.display_name}, but: {error}. "
            f"The pin stays: {pin.remedy}"
        ) from error


def pin_changed_error(namespace: str, requested: CacheSpec) -> Busy:
    """Create the error for a pin that changed during every attempt."""
    return Busy(
        f"the pin of {requested.source.display_name} in namespace {namespace} changed meanwhile; call again"
    )
