"""The gRPC server both plugins run on: the socket, the one interceptor (codes, log lines), and leaving in peace."""

from __future__ import annotations

import logging
import os
import socket
import stat
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import grpc

from csi import errors
from csi.concurrency.deadline import Deadline
from csi.concurrency.thread_pool import ShrinkingPool
from csi.concurrency.wait_limiter import WaitLimiter
from csi.program import lifecycle

if TYPE_CHECKING:
    _ServerInterceptor = grpc.ServerInterceptor[Any, Any]
else:
    _ServerInterceptor = grpc.ServerInterceptor

log = logging.getLogger("datacache.rpc")

CODES: dict[type[BaseException], grpc.StatusCode] = {
    errors.InvalidParameter: grpc.StatusCode.INVALID_ARGUMENT,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.OriginUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.WorkerDied: grpc.StatusCode.UNAVAILABLE,
    errors.ClusterUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Busy: grpc.StatusCode.ABORTED,
    errors.FillStopped: grpc.StatusCode.ABORTED,
    errors.InvalidToken: grpc.StatusCode.ABORTED,
    errors.NoSpace: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CorruptContent: grpc.StatusCode.DATA_LOSS,
    NotImplementedError: grpc.StatusCode.UNIMPLEMENTED,
}
_SHUTDOWN_TIMEOUT = 25.0


def code_of(error: BaseException) -> grpc.StatusCode:
    """The gRPC code of an error: that of the nearest class in its MRO, INTERNAL where there is none."""
    return next((CODES[cls] for cls in type(error).__mro__ if cls in CODES), grpc.StatusCode.INTERNAL)


def call_deadline(context: grpc.ServicerContext, max_seconds: float) -> Deadline:
    """How long this call may wait: `max_seconds` seconds, less where the caller's deadline is nearer; over when the caller hangs up."""
    remaining = context.time_remaining()
    deadline = Deadline(max_seconds if remaining is None else min(max_seconds, max(0.0, remaining - 1.0)))

    def on_hang_up() -> None:
        deadline.cancel("the caller has hung up")

    # A call whose caller left while it stood in the queue takes no callback any more.
    if not context.add_callback(on_hang_up):
        on_hang_up()
    return deadline


def require_fields(request: Any, *fields: str) -> None:
    """Raise InvalidParameter naming the first of `fields` that is not set in `request`."""
    for field in fields:
        value = getattr(request, field)
        if not value or (hasattr(value, "ByteSize") and not request.HasField(field)):
            raise errors.InvalidParameter(f"{field} is missing in {type(request).__name__}")


CallObserver = Callable[[str, str, float], None]
"""Told of every call: its method, the name of its code, its seconds."""


def ignore_call(method: str, code: str, seconds: float) -> None:
    """Nobody wants to know."""


class ErrorInterceptor(_ServerInterceptor):
    """Turns what a servicer raises into a gRPC status, writes one log line for each call and tells `observe` of it."""

    def __init__(self, observe: CallObserver = ignore_call) -> None:
        self._observe = observe

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Wrap the method's handler; methods that do not exist stay UNIMPLEMENTED."""
        handler = continuation(details)
        if handler is None or not handler.unary_unary:
            return handler
        method = details.method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: _handle_call(
                method, handler.unary_unary, request, context, self._observe
            ),
            handler.request_deserializer,
            handler.response_serializer,
        )


def _handle_call(
    method: str,
    method_handler: Callable[[Any, Any], Any],
    request: Any,
    context: grpc.ServicerContext,
    observe: CallObserver,
) -> Any:
    started = time.monotonic()
    try:
        reply = method_handler(request, context)
    except Exception as raised:
        error = errors.as_disk_full_error(raised)
        code = code_of(error)
        message = (
            "this driver does not have this call" if code is grpc.StatusCode.UNIMPLEMENTED else str(error)
        )
        if not isinstance(error, (errors.DataCacheError, NotImplementedError)):
            message = f"unexpected {type(error).__name__}; the plugin's log has the place"
        _log_call(
            method, request, code, started, message, error if code is grpc.StatusCode.INTERNAL else None
        )
        observe(method, code.name, time.monotonic() - started)
        context.abort(code, message)
    _log_call(method, request, grpc.StatusCode.OK, started, "", None)
    observe(method, grpc.StatusCode.OK.name, time.monotonic() - started)
    return reply


def _log_call(
    method: str, request: Any, code: grpc.StatusCode, started: float, reason: str, fault: BaseException | None
) -> None:
    fields = {
        "method": method,
        "volume": getattr(request, "volume_id", "") or getattr(request, "name", "") or "-",
        "code": code.name,
        "ms": round((time.monotonic() - started) * 1000, 1),
    }
    if reason:
        fields["reason"] = reason
    if fault:
        fields["at"] = _format_traceback(fault)
    log.log(logging.INFO if code is grpc.StatusCode.OK else logging.WARNING, "rpc", extra={"fields": fields})


def _format_traceback(fault: BaseException) -> str:
    """Where a fault came from, innermost first. A foreign exception's text is left out: it may quote what it was given."""
    frames = traceback.extract_tb(fault.__traceback__)
    return type(fault).__name__ + "".join(f" < {frame.filename}:{frame.lineno}" for frame in reversed(frames))


def parse_socket_path(endpoint: str) -> str:
    """The path in a unix:// endpoint; raises InvalidParameter for any other."""
    path = endpoint.removeprefix("unix://")
    if not endpoint.startswith("unix://") or not path.startswith("/"):
        raise errors.InvalidParameter(f"--endpoint is {endpoint!r}; it is unix:// and an absolute path")
    return path


def grpc_target(endpoint: str) -> str:
    """A unix:// endpoint as gRPC's clients want it."""
    return endpoint.replace("unix://", "unix:", 1)


def remove_stale_socket(path: str) -> str:
    """Make room for the socket: a stale one is removed, a live one or another kind of file raises AlreadyExists."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not os.path.lexists(path):
        return path
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise errors.AlreadyExists(f"{path} exists and is no socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return path
        except OSError as error:
            raise errors.AlreadyExists(
                f"{path} cannot be looked at ({error.strerror}); stop what listens there"
            ) from error
    raise errors.AlreadyExists(f"another process answers on {path}; stop it or choose another path")


def serve(
    endpoint: str,
    threads: int,
    wait_limiter: WaitLimiter,
    register: Callable[[grpc.Server], None],
    while_serving: Callable[[], AbstractContextManager[object]] = nullcontext,
    observe: CallObserver = ignore_call,
) -> None:
    """Serve on `endpoint` until SIGTERM or SIGINT, then end all waiting, let running calls finish and return.

    `while_serving` is entered when calls are answered, and left before that ends. `observe` is told of every call.
    """
    mask = os.umask(0o077)
    try:
        server = start_server(parse_socket_path(endpoint), threads, register, observe)
    finally:
        os.umask(mask)
    try:
        with while_serving():
            log.info("serving", extra={"fields": {"endpoint": endpoint}})
            lifecycle.wait_for_signal()
    finally:
        wait_limiter.close("the plugin is leaving; its successor goes on")
        server.stop(_SHUTDOWN_TIMEOUT).wait()
    log.info("left", extra={"fields": {"endpoint": endpoint}})


def start_server(
    path: str, threads: int, register: Callable[[grpc.Server], None], observe: CallObserver = ignore_call
) -> grpc.Server:
    """A server that answers on the socket `path`, of the mode that the umask leaves. Raises AlreadyExists where somebody else does."""
    pool = ShrinkingPool(threads, "rpc", on_shrink=lifecycle.release_free_memory)
    # The stubs ask for a ThreadPoolExecutor; any Executor does.
    server = grpc.server(pool, interceptors=[ErrorInterceptor(observe)])  # type: ignore[arg-type]
    register(server)
    remove_stale_socket(path)
    server.add_insecure_port(f"unix:{path}")
    server.start()
    return server
