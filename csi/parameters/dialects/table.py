"""All dialects, and the choice of the one that a set of parameters is written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from csi.errors import InvalidParameter
from csi.parameters.dialects import buckets, hub, nas, urls
from csi.parameters.dialects.composite import composite_dialect
from csi.parameters.dialects.keys import Dialect, Key, SourceSpec
from csi.parameters.dialects.spelling import Spelling
from csi.values import redact

TYPE = Key("type", "which kind of source", "guessed from the other keys")
_SINGLE_DIALECTS: tuple[Dialect, ...] = (hub.DIALECT, nas.DIALECT, buckets.OSS, buckets.S3, urls.DIALECT)


def _parse_single_source(parameters: Mapping[str, str], flags: Sequence[str]) -> SourceSpec:
    values = _SINGLE_SPELLING.canonicalize(parameters)
    return find_dialect(values, _SINGLE_DIALECTS).parse(values, flags)


DIALECTS: tuple[Dialect, ...] = (*_SINGLE_DIALECTS, composite_dialect(_parse_single_source))
TYPES = tuple(dict.fromkeys(name for dialect in DIALECTS for name in dialect.types))


def source_key_table() -> dict[str, Key]:
    """Return the keys of all sources by name; for a key that several dialects have, the first one's."""
    table: dict[str, Key] = {}
    for dialect in DIALECTS:
        for key in dialect.keys:
            table.setdefault(key.name, key)
    return table


def source_key_names() -> frozenset[str]:
    """Return the names of all keys that say where data is, except `type`."""
    return frozenset().union(*(dialect.key_names for dialect in DIALECTS))


def secret_key_names() -> frozenset[str]:
    """Return the keys that sources read from Secrets."""
    return frozenset(key.name for dialect in _SINGLE_DIALECTS for key in dialect.secrets)


_SINGLE_SPELLING = Spelling(
    [TYPE, *(key for dialect in _SINGLE_DIALECTS for key in dialect.keys)], secret_key_names()
)


def parse_source(values: Mapping[str, str], flags: Sequence[str]) -> SourceSpec:
    """Parse the source that `values` (canonical keys) and mount flags name.

    Raises InvalidParameter naming the key and the fix.
    """
    return find_dialect(values, DIALECTS).parse(values, flags)


def find_dialect(values: Mapping[str, str], dialects: Sequence[Dialect] = DIALECTS) -> Dialect:
    """Return the one dialect that has all source keys in `values` and matches `type`, if given.

    Raises InvalidParameter if none or several do.
    """
    source_keys_present = [key for key in values if key in source_key_names()]
    candidates = _dialects_of_type(values.get("type", ""), dialects)
    fitting = [dialect for dialect in candidates if dialect.key_names.issuperset(source_keys_present)]
    if not fitting:
        raise _mixed_sources_error(values, source_keys_present, candidates, dialects)
    complete = [
        dialect for dialect in fitting if _required_keys(dialect) <= set(source_keys_present)
    ] or fitting
    # With a type but no source key, the first dialect of that type reports what is missing.
    if len(complete) > 1 and not (values.get("type") and not source_keys_present):
        if not source_keys_present:
            raise InvalidParameter(
                "no source is named; give repoId (a hub repository), server and path (a NAS), "
                "bucket (an object store), url or metalink (plain files) or sources"
            )
        raise InvalidParameter(
            f"{source_keys_present[0]} may belong to {' or '.join(d.noun for d in complete)}; "
            f"give type, one of {', '.join(TYPES)}"
        )
    return complete[0]


def _dialects_of_type(text: str, dialects: Sequence[Dialect]) -> list[Dialect]:
    if not text:
        return list(dialects)
    matching = [dialect for dialect in dialects if text.upper() in dialect.types]
    if not matching:
        raise InvalidParameter(f"type is {redact(text)}; it is one of {', '.join(TYPES)}")
    return matching


def _required_keys(dialect: Dialect) -> set[str]:
    # Without `path`: a NAS has other spellings of it (`share`, "host:/path").
    return {key.name for key in dialect.keys if key.is_required and key.name != "path"}


def _mixed_sources_error(
    values: Mapping[str, str],
    source_keys_present: Sequence[str],
    candidates: Sequence[Dialect],
    dialects: Sequence[Dialect],
) -> InvalidParameter:
    best = max(candidates, key=lambda dialect: len(dialect.key_names.intersection(source_keys_present)))
    foreign = next(key for key in source_keys_present if key not in best.key_names)
    if values.get("type"):
        return InvalidParameter(
            f"type is {redact(values['type'])}, but {foreign} belongs to another type; change one of them"
        )
    own = next(key for key in source_keys_present if key in best.key_names)
    other = next(dialect for dialect in dialects if foreign in dialect.key_names)
    return InvalidParameter(
        f"{own} and {foreign} name two sources ({best.noun} and {other.noun}); "
        "keep one, or give both in sources"
    )
