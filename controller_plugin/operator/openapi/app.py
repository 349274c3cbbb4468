"""The OpenAPI over HTTP: every call is a GET or POST of /, answered in JSON with a RequestId."""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from controller_plugin.operator.openapi.actions import VERSION, Actions
from controller_plugin.operator.openapi.calls import ApiCall
from controller_plugin.operator.openapi.parameters import ApiParameters
from controller_plugin.operator.openapi.refusals import ApiRefusal, refusal_from_error
from controller_plugin.operator.openapi.signatures import SignatureVerifier
from csi.errors import DataCacheError

log = logging.getLogger("datacache.openapi")

_MAX_BODY_BYTES = 2**20
_FORM = "application/x-www-form-urlencoded"


def openapi_app(actions: Actions, signatures: SignatureVerifier) -> Starlette:
    """Build the application. It logs one line for each answered or refused call, without its parameters."""
    api = _OpenApiHandler(actions, signatures)
    return Starlette(
        routes=[Route("/healthz", _answer_health), Route("/", api.call, methods=["GET", "POST"])]
    )


async def _answer_health(request: Request) -> Response:
    return PlainTextResponse("ok")


class _OpenApiHandler:
    def __init__(self, actions: Actions, signatures: SignatureVerifier) -> None:
        self._actions, self._signatures = actions, signatures

    async def call(self, request: Request) -> Response:
        request_id = str(uuid.uuid4()).upper()
        try:
            call = await _read_call(request)
            return await run_in_threadpool(
                self._authenticate_and_call, call, request_id, request.headers.get("host", "")
            )
        except ApiRefusal as refusal:
            return _refusal_response(refusal, request_id, request.headers.get("host", ""), "", "")

    def _authenticate_and_call(self, call: ApiCall, request_id: str, host: str) -> Response:
        key_id = ""
        try:
            key_id = self._signatures.verify(call, time.time())
            if call.version != VERSION:
                raise ApiRefusal(
                    404, "InvalidVersion", f"This is version {VERSION} of the API; use that one."
                )
            answer = self._actions.call(call.action, ApiParameters(call.parameters), request_id)
        except ApiRefusal as refusal:
            return _refusal_response(refusal, request_id, host, call.action, key_id)
        except DataCacheError as error:
            return _refusal_response(refusal_from_error(error), request_id, host, call.action, key_id)
        except Exception as error:
            # A foreign exception's text is not vetted for secrets.
            log.error(
                "call failed", extra={"fields": {"request": request_id, "reason": type(error).__name__}}
            )
            return _refusal_response(
                refusal_from_error(DataCacheError()), request_id, host, call.action, key_id
            )
        log.info(
            "call answered", extra={"fields": {"request": request_id, "action": call.action, "key": key_id}}
        )
        return JSONResponse({"RequestId": request_id, **answer})


async def _read_call(request: Request) -> ApiCall:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY_BYTES:
            raise ApiRefusal(413, "RequestTooLarge", f"A request has at most {_MAX_BODY_BYTES} bytes.")
    query = parse_qsl(request.scope["query_string"].decode("ascii", "replace"), keep_blank_values=True)
    is_form = request.headers.get("content-type", "").partition(";")[0].strip().lower() == _FORM
    form = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True) if is_form else []
    headers = {name.lower(): value for name, value in request.headers.items()}
    return ApiCall(request.method, request.url.path, query, form, headers, body)


def _refusal_response(refusal: ApiRefusal, request_id: str, host: str, action: str, key_id: str) -> Response:
    fields: dict[str, Any] = {
        "request": request_id,
        "action": action[:64],
        "key": key_id,
        "code": refusal.code,
    }
    log.info("call refused", extra={"fields": fields})
    body = {"RequestId": request_id, "HostId": host, "Code": refusal.code, "Message": refusal.message}
    return JSONResponse(body, refusal.status)
