"""Hash of what one credential opens at one origin.

Images record from which of these scopes their bytes came.
"""

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
    """Hash the origin scope of a pinned spec (flat parameters) into 64 hex digits; raises InvalidParameter.

    If credentials may differ in what they read there, each credential has a scope of its own: an HMAC of
    `secrets` under `key` goes into the hash.
    """
    spec = parse_volume_parameters(access).spec
    # The same address may be another host in another network.
    scope = f"{spec.egress_profile}\n{spec.source.origin_scope}"
    # Keyed, so that stored scopes do not reveal whether a guessed credential is the right one.
    if not spec.source.grants_whole_scope:
        scope += (
            "\n" + hmac.new(key, json.dumps(sorted(secrets.items())).encode(), hashlib.sha256).hexdigest()
        )
    return hashlib.sha256(scope.encode()).hexdigest()


def has_same_origin_scope(known: Mapping[str, str], requested: Mapping[str, str]) -> bool:
    """Return whether two pinned specs have the same scope and one credential opens all of it.

    If so, what was verified for `known` also holds for `requested`. Specs that do not parse have no scope in
    common.
    """
    try:
        specs = [parse_accepted_parameters(access).spec for access in (known, requested)]
    except DataCacheError:
        return False
    known_scope, requested_scope = ((spec.egress_profile, spec.source.origin_scope) for spec in specs)
    return known_scope == requested_scope and specs[0].source.grants_whole_scope
