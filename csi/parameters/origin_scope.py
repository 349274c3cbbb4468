"""What one credential opens of one origin, hashed: images remember from which of these scopes their bytes came."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from types import MappingProxyType

from csi.errors import DataCacheError
from csi.parameters.volume_parameters import parse_accepted_parameters, parse_volume_parameters


def compute_origin_scope(
    access: Mapping[str, str], key: bytes = b"", secrets: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The place that a pinned spec, as flat parameters, reads from, as 64 hex digits; raises InvalidParameter.

    Where one credential may read what another may not, each has a place of its own, told by a hash of `secrets` under `key`.
    """
    spec = parse_volume_parameters(access).spec
    # In another network the same address may be another's.
    place = f"{spec.egress_profile}\n{spec.source.origin_scope}"
    if not spec.source.grants_whole_scope:
        place += (
            "\n" + hmac.new(key, json.dumps(sorted(secrets.items())).encode(), hashlib.sha256).hexdigest()
        )
    return hashlib.sha256(place.encode()).hexdigest()


def has_same_origin_scope(known: Mapping[str, str], requested: Mapping[str, str]) -> bool:
    """Whether what holds for the place of the pinned spec `known` holds for that of `requested`: one place, which a credential opens whole."""
    try:
        specs = [parse_accepted_parameters(access).spec for access in (known, requested)]
    except DataCacheError:
        return False
    one, other = ((spec.egress_profile, spec.source.origin_scope) for spec in specs)
    return one == other and specs[0].source.grants_whole_scope
