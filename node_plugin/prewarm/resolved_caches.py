"""What the caches of prewarm requests were resolved to, kept in a file of the store.

A source that moves is resolved again for another request only, also when the plugin starts again.
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
    """What one cache was resolved to: `access` is its pinned spec, `pin` as `NodePins.encode_pin` has it."""

    digest: str
    access: dict[str, str]
    pin: dict[str, object] | None = None


def write_resolved(file: Path, answers: Mapping[str, ResolvedCache]) -> None:
    kept = {
        key: {"digest": answer.digest, "access": answer.access, "pin": answer.pin}
        for key, answer in answers.items()
    }
    durable_files.write_json(file, {"format": _FORMAT, "answers": kept})


def read_resolved(file: Path) -> dict[str, ResolvedCache]:
    with suppress(
        FileNotFoundError, DataCacheError, KeyError, TypeError, AttributeError, json.JSONDecodeError
    ):
        stored: dict[str, Any] = durable_files.read_json(file, _FORMAT)["answers"]
        return {
            key: ResolvedCache(answer["digest"], answer["access"], answer["pin"])
            for key, answer in stored.items()
        }
    return {}
