"""The gRPC server of both plugins: socket, interceptor for status codes and log lines, graceful shutdown."""

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
# Below Kubernetes' default grace period of 30 s.
_SHUTDOWN_TIMEOUT = 25.0


def code_of(error: BaseException) -> grpc.StatusCode:
    """Return the gRPC code of the nearest class in the error's MRO, INTERNAL if there is none."""
    return next((CODES[cls] for cls in type(error).__mro__ if cls in CODES), grpc.StatusCode.INTERNAL)


def call_deadline(context: grpc.ServicerContext, max_seconds: float) -> Deadline:
    """Return the deadline of a call: `max_seconds`, less if the caller's own deadline is earlier.

    It is cancelled if the caller hangs up.
    """
    # One second is kept for the reply, which would otherwise arrive after the caller's deadline.
    remaining = context.time_remaining()
    deadline = Deadline(max_seconds if remaining is None else min(max_seconds, max(0.0, remaining - 1.0)))

    def on_hang_up() -> None:
        deadline.cancel("the caller has hung up")

    # add_callback refuses if the call ended already, which happens while it stands in the queue.
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
"""Callback for every finished call: its method, the name of its code, its duration in seconds."""


def ignore_call(method: str, code: str, seconds: float) -> None:
    """Do nothing (a CallObserver)."""


class ErrorInterceptor(_ServerInterceptor):
    """Interceptor that turns exceptions of a servicer into gRPC statuses.

    It also writes a log line for each call, and calls `observe`.
    """

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
            "this driver does not implement this call"
            if code is grpc.StatusCode.UNIMPLEMENTED
            else str(error)
        )
        if not isinstance(error, (errors.DataCacheError, NotImplementedError)):
            message = f"unexpected {type(error).__name__}; see the plugin's log for where it occurred"
        _log_call(
            method, request, code, started, message, error if code is grpc.StatusCode.INTERNAL else None
        )
        observe(method, code.name, time.monotonic() - started)
        # abort raises, so the rest of the function does not run.
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
    """Return the type and the frames of a fault, innermost first.

    Its text is left out, since it may quote secrets.
    """
    frames = traceback.extract_tb(fault.__traceback__)
    return type(fault).__name__ + "".join(f" < {frame.filename}:{frame.lineno}" for frame in reversed(frames))


def parse_socket_path(endpoint: str) -> str:
    """Return the path of a unix:// endpoint; raises InvalidParameter for any other."""
    path = endpoint.removeprefix("unix://")
    if not endpoint.startswith("unix://") or not path.startswith("/"):
        raise errors.InvalidParameter(f"--endpoint is {endpoint!r}; write it as unix:// and an absolute path")
    return path


def grpc_target(endpoint: str) -> str:
    """Return a unix:// endpoint as gRPC's clients expect it."""
    return endpoint.replace("unix://", "unix:", 1)


def remove_stale_socket(path: str) -> str:
    """Remove a stale socket at `path` and return `path`.

    Raises AlreadyExists for a socket in use or another kind of file.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not os.path.lexists(path):
        return path
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise errors.AlreadyExists(f"{path} exists and is not a socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(path)
        # Nothing listens: the socket was left by a process that was killed.
        except ConnectionRefusedError:
            os.unlink(path)
            return path
        except OSError as error:
            raise errors.AlreadyExists(
                f"{path} cannot be checked ({error.strerror}); stop the program that listens there"
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
    """Serve on `endpoint` until SIGTERM or SIGINT, then end all waiting and let running calls finish.

    `while_serving` is entered once calls are answered, and left before they stop being answered. `observe` is
    called for every call.
    """
    # Only this user may connect to the socket.
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
        wait_limiter.close("plugin is shutting down; retry")
        server.stop(_SHUTDOWN_TIMEOUT).wait()
    log.info("server stopped", extra={"fields": {"endpoint": endpoint}})


def start_server(
    path: str, threads: int, register: Callable[[grpc.Server], None], observe: CallObserver = ignore_call
) -> grpc.Server:
    """Start a server on the socket `path`, whose mode follows the umask.

    Raises AlreadyExists if another process uses the path.
    """
    pool = ShrinkingPool(threads, "rpc", on_shrink=lifecycle.release_free_memory)
    # The type stubs require a ThreadPoolExecutor, but gRPC accepts any Executor.
    server = grpc.server(pool, interceptors=[ErrorInterceptor(observe)])  # type: ignore[arg-type]
    register(server)
    remove_stale_socket(path)
    server.add_insecure_port(f"unix:{path}")
    server.start()
    return server
