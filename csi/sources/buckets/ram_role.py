"""The access key of the instance's RAM role, from the instance's own metadata service.

Alibaba Cloud, "Instance RAM roles": GET .../latest/meta-data/ram/security-credentials/ROLE, in hardened mode with a token
that a PUT to .../latest/api/token gives. ALIBABA_CLOUD_ECS_METADATA names another address than 100.100.100.200.
"""

from __future__ import annotations

import datetime
import json
import os
import urllib.error
import urllib.request

from csi.errors import OriginUnavailable, PermissionDenied
from csi.sources.buckets.object_store import AccessKey

_DEFAULT_ADDRESS = "http://100.100.100.200"
_METADATA_TIMEOUT = 10.0


class _RejectRedirects(urllib.request.HTTPRedirectHandler):
    """An answer that sends elsewhere is an error as others are: the token, and the key, are of this service alone."""

    def redirect_request(self, *_: object) -> None:
        return None


# No proxy: the service is the instance's own.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _RejectRedirects)


def fetch_role_key(role: str) -> AccessKey:
    """The temporary key of `role`. Raises PermissionDenied where the instance has no such role, OriginUnavailable where no service answers."""
    base = os.environ.get("ALIBABA_CLOUD_ECS_METADATA", _DEFAULT_ADDRESS).rstrip("/") + "/latest/"
    try:
        text = _request(
            f"{base}meta-data/ram/security-credentials/{role}",
            {"X-aliyun-ecs-metadata-token": token} if (token := _fetch_token(base)) else {},
        )
        credentials = json.loads(text)
        expires = datetime.datetime.fromisoformat(credentials["Expiration"])
        expires = expires if expires.tzinfo else expires.replace(tzinfo=datetime.UTC)
        return AccessKey(
            str(credentials["AccessKeyId"]),
            str(credentials["AccessKeySecret"]),
            str(credentials["SecurityToken"]),
            expires,
        )
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):
            raise PermissionDenied(
                f"ramRole {role}: this node's instance has no such RAM role; attach it, or name a Secret"
            ) from error
        raise OriginUnavailable(
            f"ramRole {role}: the instance's metadata service answered {error.code}; trying again may help"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OriginUnavailable(
            f"ramRole {role}: no metadata service of an Alibaba Cloud instance answers on this node; name a Secret instead"
        ) from error


def _fetch_token(base: str) -> str:
    """The token of a hardened service, empty where it asks for none."""
    try:
        return _request(f"{base}api/token", {"X-aliyun-ecs-metadata-token-ttl-seconds": "300"}, "PUT")
    except urllib.error.HTTPError:
        return ""


def _request(url: str, headers: dict[str, str], method: str = "GET") -> str:
    with _opener.open(
        urllib.request.Request(url, headers=headers, method=method), timeout=_METADATA_TIMEOUT
    ) as response:
        return str(response.read(1 << 16).decode())
