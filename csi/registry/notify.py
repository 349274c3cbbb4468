"""How a registry tells its watchers."""

from __future__ import annotations

import logging
from collections.abc import Callable

from csi.errors import DataCacheError

log = logging.getLogger("datacache.registry")


def notify_watcher(on_change: Callable[[str], None], volume_id: str) -> None:
    """Call `on_change(volume_id)`; what it raises is logged."""
    try:
        on_change(volume_id)
    except Exception as error:
        # A foreign exception's text is not vetted for secrets.
        reason = error if isinstance(error, DataCacheError) else type(error).__name__
        log.error(
            "a volume's change was not taken in", extra={"fields": {"volume": volume_id, "reason": reason}}
        )
