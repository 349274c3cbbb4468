"""The source class for each spec.

Adapters are imported on first use: their clients are large, and only workers need them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from csi.destinations.destinations import Destinations
from csi.errors import InvalidParameter
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.buckets import BucketSpec
from csi.parameters.dialects.composite import CompositeSpec
from csi.parameters.dialects.hub import HubSpec
from csi.parameters.dialects.nas import NasSpec
from csi.parameters.dialects.urls import UrlSpec
from csi.sources.source import DEFAULT_CONNECTIONS, Source

if TYPE_CHECKING:
    from csi.sources.buckets.object_store import AccessKey

# In order of preference: the driver's own name, ECI's, and those of the hubs' tools.
TOKEN_KEYS = ("token", "accessToken", "HF_TOKEN", "MODELSCOPE_API_TOKEN")
_ACCESS_KEY_NAMES = {
    "OSS": ("akId", "akSecret", "securityToken"),
    "S3": ("accessKeyId", "secretAccessKey", "sessionToken"),
}


def open_source(
    spec: CacheSpec,
    secrets: Mapping[str, str],
    allowed_destinations: Sequence[str] = (),
    max_connections: int = DEFAULT_CONNECTIONS,
) -> Source:
    """Open the source that `spec` names, with the credential found in `secrets`.

    `allowed_destinations` are the operator's destinations; at most `max_connections` readers are opened.
    Raises InvalidParameter if a Secret was given that has none of the keys of this source.
    """
    destinations = Destinations(tuple(allowed_destinations), trusted=not spec.untrusted)
    match spec.source:
        case HubSpec(hub="ModelScope"):
            from csi.sources.hubs.modelscope import ModelScopeSource

            return ModelScopeSource(spec, find_token(secrets), destinations, max_connections)
        case HubSpec():
            from csi.sources.hubs.huggingface import HuggingFaceSource

            return HuggingFaceSource(spec, find_token(secrets), destinations, max_connections)
        case NasSpec():
            from csi.sources.nfs.source import NasSource

            return NasSource(spec)
        case BucketSpec():
            from csi.sources.buckets.source import BucketSource

            return BucketSource(spec, find_access_key(spec.source, secrets), destinations, max_connections)
        case UrlSpec():
            from csi.sources.urls.source import UrlSource

            return UrlSource(spec, find_token(secrets), destinations, max_connections)
        case CompositeSpec():
            from csi.sources.composite import CompositeSource

            return CompositeSource(
                spec, secrets, lambda part, own: open_source(part, own, allowed_destinations, max_connections)
            )
    raise _unknown_source_error(spec)


def check_secrets(spec: CacheSpec, secrets: Mapping[str, str]) -> None:
    """Check `secrets` as `open_source` does, without opening anything."""
    match spec.source:
        case HubSpec() | UrlSpec():
            find_token(secrets)
        case BucketSpec():
            find_access_key(spec.source, secrets)
        case CompositeSpec():
            from csi.sources.composite import prefix_errors, split_secrets

            secrets_by_folder = split_secrets(spec.source, secrets)
            for folder, source in spec.source.parts:
                with prefix_errors(folder):
                    check_secrets(replace(spec, source=source), secrets_by_folder[folder])
        case NasSpec():
            pass  # a NAS knows uids, not credentials
        case _:
            raise _unknown_source_error(spec)


def _unknown_source_error(spec: CacheSpec) -> InvalidParameter:
    return InvalidParameter(f"{spec.source.display_name}: this driver has no source of that kind")


def find_token(secrets: Mapping[str, str]) -> str | None:
    """Return the hub token in a Secret (one of TOKEN_KEYS), None if no Secret was given.

    Raises InvalidParameter if the Secret has no token, or one with characters that no token has.
    """
    name = next((key for key in TOKEN_KEYS if secrets.get(key, "").strip()), None)
    if secrets and name is None:
        raise InvalidParameter(
            f"the Secret of this volume has none of the keys {', '.join(TOKEN_KEYS)}; "
            "put the hub's token under `token`"
        )
    return None if name is None else _get_credential(secrets, name)


def _get_credential(secrets: Mapping[str, str], key: str) -> str:
    """Return the value of `key`, which goes into an HTTP header, "" if there is none.

    Raises InvalidParameter, without quoting it, for a value that no header can carry.
    """
    value = secrets.get(key, "").strip()
    if not (value.isascii() and value.isprintable()):
        raise InvalidParameter(
            f"the Secret's `{key}` contains a line end or another character that no credential has "
            "(they are printable ASCII); put it in again, alone"
        )
    return value


def find_access_key(spec: BucketSpec, secrets: Mapping[str, str]) -> Callable[[], AccessKey] | None:
    """Return a provider of the object store's access key: the Secret, else the instance's role.

    None (anonymous access) if neither is named. Raises InvalidParameter for an incomplete Secret.
    """
    from csi.sources.buckets.object_store import AccessKey

    names = _ACCESS_KEY_NAMES[spec.store]
    values = [_get_credential(secrets, name) for name in names]
    if values[0] and values[1]:
        key = AccessKey(values[0], values[1], values[2])
        return lambda: key
    if secrets:
        raise InvalidParameter(
            f"the Secret of this volume does not have both {names[0]} and {names[1]}; "
            "put the access key under these keys"
        )
    if spec.ram_role:
        from csi.sources.buckets.ram_role import fetch_role_key

        return functools.partial(fetch_role_key, spec.ram_role)
    return None
