"""Errors of the OpenAPI, with ECI's codes.

Source: Alibaba Cloud, ECI 2018-08-08, "Error codes", and the common errors of its gateways.
"""

from __future__ import annotations

from csi.errors import (
    AlreadyExists,
    Busy,
    ClusterUnavailable,
    DataCacheError,
    FailedPrecondition,
    InvalidParameter,
    NotFound,
    OriginUnavailable,
    OutOfRange,
    PermissionDenied,
)


class ApiRefusal(Exception):
    """Refused call: an HTTP status, a code for programs, a message for people.

    The message holds no secret.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def missing_parameter(name: str) -> ApiRefusal:
    """Return the refusal for a required parameter that is missing."""
    return ApiRefusal(400, "MissingParameter", f"The parameter {name} is missing; give it.")


def invalid_parameter(name: str, why: str) -> ApiRefusal:
    """Return the refusal for a parameter with an invalid value."""
    return ApiRefusal(400, "InvalidParameter", f"The parameter {name} is invalid: {why}.")


def unknown_data_cache(name: str) -> ApiRefusal:
    """Return the refusal for a DataCache that does not exist."""
    return ApiRefusal(404, "InvalidParameter.NotFound", f"The DataCache {name} does not exist.")


_CODES: tuple[tuple[type[DataCacheError], int, str], ...] = (
    (AlreadyExists, 400, "InvalidParameter.Duplicate"),
    (InvalidParameter, 400, "InvalidParameter"),
    (OutOfRange, 400, "InvalidParameter"),
    (NotFound, 404, "InvalidParameter.NotFound"),
    (PermissionDenied, 403, "Forbidden"),
    (Busy, 403, "IncorrectStatus"),
    (FailedPrecondition, 403, "IncorrectStatus"),
    (ClusterUnavailable, 503, "ServiceUnavailable"),
    (OriginUnavailable, 503, "ServiceUnavailable"),
)


def refusal_from_error(error: DataCacheError) -> ApiRefusal:
    """Return the refusal that reports an error of the driver."""
    for kind, status, code in _CODES:
        if isinstance(error, kind):
            return ApiRefusal(status, code, str(error))
    return ApiRefusal(
        500, "InternalError", "the request failed inside datacache-operator; its log has this RequestId"
    )
