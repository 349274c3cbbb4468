"""Calls of a registry's watchers."""

from __future__ import annotations

import logging
from collections.abc import Callable

from csi.errors import DataCacheError

log = logging.getLogger("datacache.registry")


def notify_watcher(on_change: Callable[[str], None], name: str) -> None:
    """Call `on_change(name)` and log what it raises."""
    try:
        on_change(name)
    except Exception as error:
        # A foreign exception's text is not vetted for secrets.
        reason = error if isinstance(error, DataCacheError) else type(error).__name__
        log.error("change handler failed", extra={"fields": {"name": name, "reason": reason}})
