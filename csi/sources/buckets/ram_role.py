"""The access key of the instance's RAM role, from the instance metadata service.

Source: Alibaba Cloud, "Instance RAM roles": GET .../latest/meta-data/ram/security-credentials/ROLE, in
hardened mode with a token from PUT .../latest/api/token. ALIBABA_CLOUD_ECS_METADATA replaces the address
100.100.100.200.
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
    """Turns a redirect into an error, since token and key must not leave this service."""

    def redirect_request(self, *_: object) -> None:
        return None


# No proxy: the metadata service is local to the instance.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _RejectRedirects)


def fetch_role_key(role: str) -> AccessKey:
    """Fetch the temporary key of `role`.

    Raises PermissionDenied if the instance has no such role, OriginUnavailable if no service answers.
    """
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
            f"ramRole {role}: the instance's metadata service answered {error.code}; a retry may help"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OriginUnavailable(
            f"ramRole {role}: no metadata service of an Alibaba Cloud instance answers on this node; "
            "name a Secret instead"
        ) from error


def _fetch_token(base: str) -> str:
    """Fetch the token of a hardened metadata service, "" if it needs none."""
    try:
        return _request(f"{base}api/token", {"X-aliyun-ecs-metadata-token-ttl-seconds": "300"}, "PUT")
    except urllib.error.HTTPError:
        return ""


def _request(url: str, headers: dict[str, str], method: str = "GET") -> str:
    with _opener.open(
        urllib.request.Request(url, headers=headers, method=method), timeout=_METADATA_TIMEOUT
    ) as response:
        return str(response.read(1 << 16).decode())
