"""Every way to name a source, and which of them a set of parameters means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from csi.errors import InvalidParameter
from csi.parameters.dialects import buckets, hub, nas, urls
from csi.parameters.dialects.composite import several
from csi.parameters.dialects.keys import Dialect, Key, SourceSpec
from csi.parameters.dialects.spelling import Spelling
from csi.values import shown

TYPE = Key("type", "which kind of source", "guessed from the other keys")
_SINGLE: tuple[Dialect, ...] = (hub.DIALECT, nas.DIALECT, buckets.OSS, buckets.S3, urls.DIALECT)


def _parse_one(parameters: Mapping[str, str], flags: Sequence[str]) -> SourceSpec:
    values = _ONE.canonical(parameters)
    return dialect_of(values, _SINGLE).parse(values, flags)


DIALECTS: tuple[Dialect, ...] = (*_SINGLE, several(_parse_one))
TYPES = tuple(dict.fromkeys(name for dialect in DIALECTS for name in dialect.types))


def source_key_table() -> dict[str, Key]:
    """The keys of all sources, by name; of a key that several dialects have, the first one's."""
    table: dict[str, Key] = {}
    for dialect in DIALECTS:
        for key in dialect.keys:
            table.setdefault(key.name, key)
    return table


def source_keys() -> frozenset[str]:
    """The names of all keys that say where data lives, `type` apart."""
    return frozenset().union(*(dialect.names for dialect in DIALECTS))


def secret_names() -> frozenset[str]:
    """The keys that sources read from Secrets."""
    return frozenset(key.name for dialect in _SINGLE for key in dialect.secrets)


_ONE = Spelling([TYPE, *(key for dialect in _SINGLE for key in dialect.keys)], secret_names())


def source_of(values: Mapping[str, str], flags: Sequence[str]) -> SourceSpec:
    """The source that `values` (canonical keys) and mount flags name. Raises InvalidParameter that names the key and the fix."""
    return dialect_of(values, DIALECTS).parse(values, flags)


def dialect_of(values: Mapping[str, str], dialects: Sequence[Dialect] = DIALECTS) -> Dialect:
    """The one dialect that has all of the source's keys in `values` and the `type`, where that is given."""
    given = [key for key in values if key in source_keys()]
    typed = _typed(values.get("type", ""), dialects)
    fitting = [dialect for dialect in typed if dialect.names.issuperset(given)]
    if not fitting:
        raise _mixed(values, given, typed, dialects)
    telling = [dialect for dialect in fitting if _required(dialect) <= set(given)] or fitting
    if len(telling) > 1 and not (values.get("type") and not given):
        if not given:
            raise InvalidParameter(
                "no source is named; "
                "give repoId (a hub repository), server and path (a NAS), bucket (an object store), url or metalink (plain files) or sources"
            )
        raise InvalidParameter(f"{given[0]} may belong to {' or '.join(d.what for d in telling)}; give type, one of {', '.join(TYPES)}")
    return telling[0]


def _typed(text: str, dialects: Sequence[Dialect]) -> list[Dialect]:
    if not text:
        return list(dialects)
    found = [dialect for dialect in dialects if text.upper() in dialect.types]
    if not found:
        raise InvalidParameter(f"type is {shown(text)}; it is one of {', '.join(TYPES)}")
    return found


def _required(dialect: Dialect) -> set[str]:
    return {key.name for key in dialect.keys if key.default.startswith("required") and key.name != "path"}


def _mixed(values: Mapping[str, str], given: Sequence[str], typed: Sequence[Dialect], dialects: Sequence[Dialect]) -> InvalidParameter:
    best = max(typed, key=lambda dialect: len(dialect.names.intersection(given)))
    alien = next(key for key in given if key not in best.names)
    if values.get("type"):
        return InvalidParameter(f"type is {shown(values['type'])}, but {alien} belongs to another type; change one of them")
    own = next(key for key in given if key in best.names)
    other = next(dialect for dialect in dialects if alien in dialect.names)
    return InvalidParameter(f"{own} and {alien} name two sources ({best.what} and {other.what}); keep one, or give both in sources")
