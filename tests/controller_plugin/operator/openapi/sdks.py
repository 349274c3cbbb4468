"""Both SDKs of Alibaba Cloud, unmodified, behind one face, so that each test is one for both."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

from alibabacloud_eci20180808 import models
from alibabacloud_eci20180808.client import Client
from alibabacloud_tea_openapi.models import Config
from aliyunsdkcore.acs_exception.exceptions import ServerException
from aliyunsdkcore.client import AcsClient
from Tea.exceptions import TeaException

REGION = "cn-local"


class ApiError(Exception):
    """What the SDK's own exception said."""

    def __init__(self, status: int, code: str, message: str, request_id: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message, self.request_id = status, code, message, request_id


class Sdk(Protocol):
    """Makes calls: `sdk("CreateDataCache", Path="/a", ...)`, in the names of the wire; the answer as JSON.

    Raises ApiError.
    """

    def __call__(self, action: str, **parameters: Any) -> dict[str, Any]: ...

    def parameters(self, action: str) -> set[str]:
        """All that the SDK's own request of a call can be given."""


class Sdk1:
    """aliyun-python-sdk-eci, which signs with HMAC-SHA1."""

    name = "aliyun-python-sdk-eci"

    def __init__(
        self, port: int, key_id: str, secret: str, host: str = "127.0.0.1", region: str = REGION
    ) -> None:
        self._client = AcsClient(key_id, secret, region)
        self._client.add_endpoint(region, "Eci", f"{host}:{port}")

    def __call__(self, action: str, **parameters: Any) -> dict[str, Any]:
        request = self._kind(action)()
        request.set_protocol_type("http")
        request.set_accept_format("json")
        for name, value in parameters.items():
            getattr(request, "set_Tags" if name == "Tag" else f"set_{name}")(value)
        try:
            return dict(json.loads(self._client.do_action_with_exception(request)))
        except ServerException as error:
            raise ApiError(
                error.get_http_status(), error.get_error_code(), error.get_error_msg(), error.get_request_id()
            ) from error

    def parameters(self, action: str) -> set[str]:
        own = {name.removeprefix("set_") for name in vars(self._kind(action)) if name.startswith("set_")}
        return own - {"Tags"} | ({"Tag"} if "Tags" in own else set())

    @staticmethod
    def _kind(action: str) -> Any:
        return getattr(
            importlib.import_module(f"aliyunsdkeci.request.v20180808.{action}Request"), f"{action}Request"
        )


class Sdk2:
    """alibabacloud_eci20180808, which signs with ACS3-HMAC-SHA256."""

    name = "alibabacloud_eci20180808"

    def __init__(
        self, port: int, key_id: str, secret: str, host: str = "127.0.0.1", region: str = REGION
    ) -> None:
        config = Config(
            access_key_id=key_id,
            access_key_secret=secret,
            region_id=region,
            endpoint=f"{host}:{port}",
            protocol="http",
        )
        self._client, self._region = Client(config), region

    def __call__(self, action: str, **parameters: Any) -> dict[str, Any]:
        request = self._kind(action)().from_map({"RegionId": self._region, **parameters})
        method = re.sub(r"(?<!^)(?=[A-Z])", "_", action).lower()
        try:
            return dict(getattr(self._client, method)(request).body.to_map())
        except TeaException as error:
            data: Mapping[str, Any] = error.data or {}
            raise ApiError(
                int(data.get("statusCode", 0)), error.code, error.message or "", data.get("RequestId", "")
            ) from error

    def parameters(self, action: str) -> set[str]:
        names = inspect.signature(self._kind(action)).parameters
        return {"".join(word.capitalize() for word in name.split("_")) for name in names}

    @staticmethod
    def _kind(action: str) -> Any:
        return getattr(models, f"{action}Request")


KINDS = (Sdk1, Sdk2)
