"""Which module reads which source. Adapters are imported on first use: their clients are large, and only workers need them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from csi.destinations.destinations import Destinations
from csi.errors import InvalidParameter
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.buckets import ObjectSpec
from csi.parameters.dialects.composite import SeveralSpec
from csi.parameters.dialects.hub import HubSpec
from csi.parameters.dialects.nas import NasSpec
from csi.parameters.dialects.urls import UrlSpec
from csi.sources.source import Source

if TYPE_CHECKING:
    from csi.sources.buckets.object_store import AccessKey

TOKEN_KEYS = ("token", "accessToken", "HF_TOKEN", "MODELSCOPE_API_TOKEN")
_ACCESS_KEYS = {"OSS": ("akId", "akSecret", "securityToken"), "S3": ("accessKeyId", "secretAccessKey", "sessionToken")}


def open_source(spec: CacheSpec, secrets: Mapping[str, str], allowed: Sequence[str] = ()) -> Source:
    """The source that `spec` names, with the credential found in `secrets`; `allowed` are the operator's destinations.

    Raises InvalidParameter when a Secret was given that holds none of the keys this source reads.
    """
    where = Destinations(tuple(allowed), trusted=not spec.of_pod)
    match spec.source:
        case HubSpec(hub="ModelScope"):
            from csi.sources.hubs.modelscope import ModelScopeSource

            return ModelScopeSource(spec, token(secrets), where)
        case HubSpec():
            from csi.sources.hubs.huggingface import HuggingFaceSource

            return HuggingFaceSource(spec, token(secrets), where)
        case NasSpec():
            from csi.sources.nfs.source import NasSource

            return NasSource(spec)
        case ObjectSpec():
            from csi.sources.buckets.source import ObjectSource

            return ObjectSource(spec, access_key(spec.source, secrets), where)
        case UrlSpec():
            from csi.sources.urls.source import UrlSource

            return UrlSource(spec, token(secrets), where)
        case SeveralSpec():
            from csi.sources.composite import SeveralSource

            return SeveralSource(spec, secrets, lambda part, own: open_source(part, own, allowed))
    raise InvalidParameter(f"{spec.source.shown}: this driver has no source of that kind")


def check_secrets(spec: CacheSpec, secrets: Mapping[str, str]) -> None:
    """Raise InvalidParameter, as `open_source`, for a Secret that holds no credential that this source reads; nothing is opened."""
    match spec.source:
        case HubSpec() | UrlSpec():
            token(secrets)
        case ObjectSpec():
            access_key(spec.source, secrets)
        case SeveralSpec():
            from csi.sources.composite import naming, own_secrets

            own = own_secrets(spec.source, secrets)
            for folder, source in spec.source.parts:
                with naming(folder):
                    check_secrets(replace(spec, source=source), own[folder])


def token(secrets: Mapping[str, str]) -> str | None:
    """The hub token in a Secret (one of TOKEN_KEYS), None where no Secret was given. Raises InvalidParameter for none or one that can be none."""
    found = next((key for key in TOKEN_KEYS if secrets.get(key, "").strip()), None)
    if secrets and found is None:
        raise InvalidParameter(f"the Secret of this volume has none of the keys {', '.join(TOKEN_KEYS)}; put the hub's token under `token`")
    return None if found is None else _credential(secrets, found)


def _credential(secrets: Mapping[str, str], key: str) -> str:
    """The value of `key` ("" where there is none), which goes into a header. Raises InvalidParameter, without it, for what cannot."""
    value = secrets.get(key, "").strip()
    if not (value.isascii() and value.isprintable()):
        raise InvalidParameter(
            f"the Secret's `{key}` holds a line end or another character that no credential has (they are printable ASCII); put it in again, alone"
        )
    return value


def access_key(store: ObjectSpec, secrets: Mapping[str, str]) -> Callable[[], AccessKey] | None:
    """What gives the access key of an object store: the Secret, else the instance's role; None (as anybody) where neither is named."""
    from csi.sources.buckets.object_store import AccessKey

    names = _ACCESS_KEYS[store.store]
    values = [_credential(secrets, name) for name in names]
    if values[0] and values[1]:
        key = AccessKey(values[0], values[1], values[2])
        return lambda: key
    if secrets:
        raise InvalidParameter(f"the Secret of this volume has not both {names[0]} and {names[1]}; put the access key under these")
    if store.ram_role:
        from csi.sources.buckets.ram_role import role_key

        return functools.partial(role_key, store.ram_role)
    return None
