"""What one credential opens of one origin, hashed: images remember from which of these scopes their bytes came."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from types import MappingProxyType

from csi.errors import DataCacheError
from csi.parameters.volume_parameters import parse, parse_kept


def place_of(access: Mapping[str, str], key: bytes = b"", secrets: Mapping[str, str] = MappingProxyType({})) -> str:
    """The place that a pinned spec, as flat parameters, reads from, as 64 hex digits; raises InvalidParameter.

    Where one credential may read what another may not, each has a place of its own, told by a hash of `secrets` under `key`.
    """
    spec = parse(access).spec
    # In another network the same address may be another's.
    place = f"{spec.egress_profile}\n{spec.source.place}"
    if not spec.source.opens_whole:
        place += "\n" + hmac.new(key, json.dumps(sorted(secrets.items())).encode(), hashlib.sha256).hexdigest()
    return hashlib.sha256(place.encode()).hexdigest()


def is_of_place(kept: Mapping[str, str], asked: Mapping[str, str]) -> bool:
    """Whether what holds for the place of the pinned spec `kept` holds for that of `asked`: one place, which a credential opens whole."""
    try:
        specs = [parse_kept(access).spec for access in (kept, asked)]
    except DataCacheError:
        return False
    one, other = ((spec.egress_profile, spec.source.place) for spec in specs)
    return one == other and specs[0].source.opens_whole
