"""The one tree of errors that a user of the driver can meet.

Every message says what was wrong, where, and what to do about it, and holds no secret. The gRPC code of
each class is given once, in `csi.server.grpc_server`. Errors cross the worker's pipe by the names of `_WIRE_NAMES` (`to_wire`, `from_wire`).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any


class DataCacheError(Exception):
    """Base of all errors of this driver; by itself it means a fault of the driver (INTERNAL)."""


class InvalidParameter(DataCacheError):
    """A key or value that the caller gave cannot be used; the message names the key and the fix."""


class OutOfRange(DataCacheError):
    """A size that was asked for and the size of the content do not fit; the message has both numbers."""


class NotFound(DataCacheError):
    """What the call is about does not exist."""


class VolumeNotFound(NotFound):
    """No volume with that id."""


class SourceNotFound(NotFound):
    """The origin has no such repository, revision, export or folder."""


class AlreadyExists(DataCacheError):
    """The name or path is taken by something that differs from what is asked."""


class Unauthenticated(DataCacheError):
    """The origin wants a credential, or refuses the one it was given."""


class PermissionDenied(DataCacheError):
    """The origin knows who asks and does not let them read, or the operator does not let them ask."""


class OriginUnavailable(DataCacheError):
    """The origin cannot be reached or answers with a passing fault; trying again may help."""


class OriginThrottled(OriginUnavailable):
    """The origin asks for patience (429, 503); `retry_after` is in seconds, 0 where it named none."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OriginTimedOut(OriginUnavailable):
    """No byte came for as long as one waits."""


class OriginUntrusted(OriginUnavailable):
    """The origin's TLS certificate is not trusted: trying again does not help, until somebody changes what is trusted."""


class RangesIgnored(OriginUnavailable):
    """The origin sends whole files where a part was asked for; trying again helps where files are read in order, by one reader."""


class Busy(DataCacheError):
    """Work on this volume goes on; the same call later finds it further on."""


class FillStopped(DataCacheError):
    """A fill was told to stop; what it has written and verified stays, and the next fill goes on from there."""


class InvalidToken(DataCacheError):
    """A page token that this controller did not give out (CSI wants ABORTED)."""


class NoSpace(DataCacheError):
    """The node's store has no room; the message has what is needed and what there is."""


class FailedPrecondition(DataCacheError):
    """The call is right, the state of things is not; the message says what has to change first."""


class SourceChanged(FailedPrecondition):
    """The source is not what the volume was created from any more."""


class UnsafeContent(FailedPrecondition):
    """The source holds something that must not reach a node: a special file, a path that leaves the tree."""


class UnsupportedByNode(FailedPrecondition):
    """The node's kernel or system lacks something the driver needs."""


class ClusterUnavailable(DataCacheError):
    """The Kubernetes API server cannot be reached or answers with a passing fault; trying again may help."""


class ClusterForbids(FailedPrecondition):
    """The Kubernetes API server does not let this program do that; the message names the right that is missing."""


class ClusterConflict(Busy):
    """An object of the cluster was changed by somebody else meanwhile; the same call later finds what it is now."""


class CorruptContent(DataCacheError):
    """The origin sent other bytes than its own digest says."""


class WorkerDied(DataCacheError):
    """A worker process ended in the middle of its work."""


ORIGIN_LOST = (OriginUnavailable, SourceChanged, SourceNotFound)
"""What is said of an origin that is gone or has changed."""
STORE_FALLBACK_ERRORS = (*ORIGIN_LOST, Unauthenticated, PermissionDenied)
"""What an image store helps against; hubs say of what was deleted that one has to log in."""
_WIRE_NAMES: dict[type[DataCacheError], str] = {
    DataCacheError: "DataCacheError",
    InvalidParameter: "InvalidParameter",
    OutOfRange: "OutOfRange",
    NotFound: "NotFound",
    VolumeNotFound: "VolumeNotFound",
    SourceNotFound: "SourceNotFound",
    AlreadyExists: "AlreadyExists",
    Unauthenticated: "Unauthenticated",
    PermissionDenied: "PermissionDenied",
    OriginUnavailable: "OriginUnavailable",
    OriginThrottled: "OriginThrottled",
    OriginTimedOut: "OriginTimedOut",
    OriginUntrusted: "OriginUntrusted",
    RangesIgnored: "RangesIgnored",
    Busy: "Busy",
    FillStopped: "FillStopped",
    InvalidToken: "InvalidToken",
    NoSpace: "NoSpace",
    FailedPrecondition: "FailedPrecondition",
    SourceChanged: "SourceChanged",
    UnsafeContent: "UnsafeContent",
    UnsupportedByNode: "UnsupportedByNode",
    ClusterUnavailable: "ClusterUnavailable",
    ClusterForbids: "ClusterForbids",
    ClusterConflict: "ClusterConflict",
    CorruptContent: "CorruptContent",
    WorkerDied: "WorkerDied",
}
"""What each class is called on the worker's pipe, whatever it is called here."""
_OF_WIRE_NAME = {name: kind for kind, name in _WIRE_NAMES.items()}


def as_disk_full_error(error: BaseException) -> BaseException:
    """`error`, or NoSpace where it is the kernel's word for a full disk, which may come from any write."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" (writing {error.filename})" if error.filename else ""
        return NoSpace(f"a disk of this machine is full{where}; free or add space on the node")
    return error


def with_message(error: DataCacheError, message: str) -> DataCacheError:
    """Return an error of the same class with another message; what else the class holds is kept."""
    if isinstance(error, OriginThrottled):
        return type(error)(message, error.retry_after)
    return type(error)(message)


def to_wire(error: BaseException) -> dict[str, Any]:
    """Return `{"kind": wire name, "message": text}`, with `retry_after` (seconds) where the origin throttles.

    A class without a wire name goes by that of its nearest base. A foreign exception keeps only its class name, since its
    text is not vetted for secrets.
    """
    if not isinstance(error, DataCacheError):
        return {
            "kind": "DataCacheError",
            "message": f"unexpected {type(error).__name__} in a worker; its log has the place",
        }
    name = next(_WIRE_NAMES[base] for base in type(error).__mro__ if base in _WIRE_NAMES)
    wire: dict[str, Any] = {"kind": name, "message": str(error)}
    return wire | ({"retry_after": error.retry_after} if isinstance(error, OriginThrottled) else {})


def from_wire(wire: Mapping[str, Any]) -> DataCacheError:
    """Return the error that `to_wire` wrote; an unknown kind becomes the base class."""
    kind = _OF_WIRE_NAME.get(wire["kind"], DataCacheError)
    if issubclass(kind, OriginThrottled):
        return kind(wire["message"], wire.get("retry_after", 0.0))
    return kind(wire["message"])
