"""Several sources in one volume, each in a top folder of its own."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from csi.errors import InvalidParameter
from csi.parameters.dialects.bandwidth import parse_bandwidth_limit
from csi.parameters.dialects.keys import Dialect, Key, SecretKey, SourceSpec
from csi.parameters.dialects.mount_flags import refuse_mount_flags
from csi.values import redact

MAX_SOURCES = 64
# A plain file name, which cannot hide ("."), climb ("..") or be taken for an option ("-").
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")

# Keys of an item in addition to those of its source.
_ITEM_KEYS = {"folder": "folder", "bandwidthlimit": "bandwidthLimit"}


@dataclass(frozen=True)
class CompositeSpec(SourceSpec):
    """Sources by their top folder, ordered by folder.

    `limits` has the bytes per second that a fill may fetch, for each source with a limit of its own, ordered
    by folder.
    """

    parts: tuple[tuple[str, SourceSpec], ...]
    limits: tuple[tuple[str, int], ...] = ()

    @property
    def display_name(self) -> str:
        return (
            "several sources ("
            + ", ".join(f"{folder}: {source.display_name}" for folder, source in self.parts)
            + ")"
        )

    @property
    def grants_whole_scope(self) -> bool:
        """Whether this is so for every source."""
        return all(source.grants_whole_scope for _, source in self.parts)

    @property
    def origin_scope(self) -> str:
        """The scopes of all sources."""
        return "several " + json.dumps([[folder, source.origin_scope] for folder, source in self.parts])

    @property
    def is_pinned(self) -> bool:
        """Whether all sources are pinned."""
        return all(source.is_pinned for _, source in self.parts)

    @property
    def is_unpinnable(self) -> bool:
        """Whether at least one source cannot be pinned."""
        return any(source.is_unpinnable for _, source in self.parts)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses of all sources."""
        return tuple(dict.fromkeys(address for _, source in self.parts for address in source.addresses))

    def to_context(self) -> dict[str, str]:
        limits = {folder: {"bandwidthLimit": str(limit)} for folder, limit in self.limits}
        parts = [
            {"folder": folder, **source.to_context(), **limits.get(folder, {})}
            for folder, source in self.parts
        ]
        return {"type": "Several", "sources": json.dumps(parts, separators=(",", ":"))}


def composite_dialect(parse_source: Callable[[Mapping[str, str], Sequence[str]], SourceSpec]) -> Dialect:
    """Build the dialect of volumes with several sources; `parse_source` parses one of them."""

    def parse(values: Mapping[str, str], flags: Sequence[str]) -> CompositeSpec:
        refuse_mount_flags(flags, "several sources; give a NAS its options within sources")
        parts: dict[str, SourceSpec] = {}
        limits: dict[str, int] = {}
        for number, item in enumerate(_parse_items(values.get("sources", ""))):
            folder = item.pop("folder", "")
            if not _FOLDER.fullmatch(folder) or folder in parts:
                raise InvalidParameter(
                    f"sources[{number}].folder is {redact(folder)}; "
                    "give each source a folder of its own, of letters, digits, '.', '_', '-'"
                )
            try:
                if limit := parse_bandwidth_limit(item.pop("bandwidthLimit", "")):
                    limits[folder] = limit
                # Without mount flags: they would apply to every NAS in the list.
                parts[folder] = parse_source(item, ())
            except InvalidParameter as error:
                raise InvalidParameter(f"sources[{number}] ({folder}): {error}") from error
        return CompositeSpec(tuple(sorted(parts.items())), tuple(sorted(limits.items())))

    key = Key(
        "sources",
        'a JSON list; each item has a source\'s keys, its `folder`, maybe `bandwidthLimit`, as `[{"folder": '
        '"base", "repoId": "org/name"}, ...]`',
        is_required=True,
    )
    secret = SecretKey(
        "FOLDER.KEY",
        "a source's keys behind its folder and a dot, as `base.token`; "
        "no other source gets them, and those of no folder are refused",
    )
    return Dialect(
        "several",
        "several sources",
        "Several sources in one volume",
        ("SEVERAL",),
        (key,),
        parse,
        (secret,),
    )


def _parse_items(text: str) -> list[dict[str, str]]:
    try:
        items = json.loads(text or "[]", object_pairs_hook=_refuse_duplicate_keys)
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(
            'sources is not JSON; write it as [{"folder": "base", "repoId": "org/name"}, ...]'
        ) from error
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_SOURCES:
        raise InvalidParameter(f"sources is a JSON list of 1 to {MAX_SOURCES} objects")
    return [_flatten_item(number, item) for number, item in enumerate(items)]


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the JSON object; raise InvalidParameter if a key occurs twice, in any case.

    Which of two values counts would depend on the parser, so a policy check could see another one than the
    fill.
    """
    keys = Counter(key.lower() for key, _ in pairs)
    for key, _ in pairs:
        if keys[key.lower()] > 1:
            raise InvalidParameter(f"sources has an object with {redact(key)} twice; keep one")
    return dict(pairs)


def _flatten_item(number: int, item: Any) -> dict[str, str]:
    if not isinstance(item, dict):
        raise InvalidParameter(f"sources[{number}] is not a JSON object with a source's keys")
    if any(not isinstance(value, str | int | bool) for value in item.values()):
        raise InvalidParameter(
            f"sources[{number}] has a value that is not text; write lists as one text, by commas"
        )
    flat = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in item.items()}
    return {_ITEM_KEYS.get(key.lower(), key): value for key, value in flat.items()}
