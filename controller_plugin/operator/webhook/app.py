"""HTTP application of the webhook: reviews for the API server, and a health check for the kubelet."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from controller_plugin.operator.webhook.admission import AdmissionReviewer

PODS, DATA_CACHES = "/pods", "/datacaches"
# The API server's own limit for a request is 3 MiB; a review may hold an object twice.
_MAX_BODY_BYTES = 8 * 2**20


def webhook_app(admission: AdmissionReviewer) -> Starlette:
    """Build the application."""
    return Starlette(
        routes=[
            Route(PODS, _review_route(admission.review_pod), methods=["POST"]),
            Route(DATA_CACHES, _review_route(admission.review_data_cache), methods=["POST"]),
            Route("/healthz", _answer_health),
        ]
    )


async def _answer_health(request: Request) -> Response:
    return PlainTextResponse("ok")


def _review_route(answer: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Callable[[Request], Any]:
    async def review(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MAX_BODY_BYTES:
                return PlainTextResponse(f"the review has more than {_MAX_BODY_BYTES} bytes", 413)
        try:
            return JSONResponse(await run_in_threadpool(answer, json.loads(body)))
        except (ValueError, KeyError, TypeError):
            return PlainTextResponse("the body is not an AdmissionReview", 400)

    return review
