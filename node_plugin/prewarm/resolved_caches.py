"""Stored results of resolving the caches of prewarm requests, in a file of the store.

A moving source is resolved once per generation of a request, even if the plugin restarts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csi.errors import DataCacheError
from csi.linux import durable_files

_FORMAT = 1


@dataclass
class ResolvedCache:
    """Result for one cache: `access` is its pinned spec, `pin` is encoded by `NodePins.encode_pin`."""

    digest: str
    access: dict[str, str]
    pin: dict[str, object] | None = None


def write_resolved(file: Path, caches: Mapping[str, ResolvedCache]) -> None:
    """Write all results by key, durably."""
    encoded = {
        key: {"digest": cache.digest, "access": cache.access, "pin": cache.pin}
        for key, cache in caches.items()
    }
    durable_files.write_json(file, {"format": _FORMAT, "answers": encoded})


def read_resolved(file: Path) -> dict[str, ResolvedCache]:
    """Return the stored results by key; none if the file is missing or damaged."""
    with suppress(
        FileNotFoundError, DataCacheError, KeyError, TypeError, AttributeError, json.JSONDecodeError
    ):
        stored: dict[str, Any] = durable_files.read_json(file, _FORMAT)["answers"]
        return {
            key: ResolvedCache(encoded["digest"], encoded["access"], encoded["pin"])
            for key, encoded in stored.items()
        }
    return {}
