"""The server both plugins run on, over a real socket: codes, log lines, the socket itself."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from csi import errors
from csi.errors import AlreadyExists, DataCacheError, InvalidParameter
from csi.pb import csi_pb2 as pb
from csi.pb import csi_pb2_grpc
from csi.server import grpc_server
from csi.server.grpc_server import (
    CODES,
    ErrorInterceptor,
    call_deadline,
    code_of,
    remove_stale_socket,
    require_fields,
)
from csi.server.identity import IdentityServicer
from datacache.client import PluginClient

SECRET = "hf_verySecret123"


class Scripted(csi_pb2_grpc.NodeServicer):
    """A node service whose every unstage does what the test wants.

    Other methods are the base class's, which has none.
    """

    def __init__(self) -> None:
        self.behaviour: Callable[[pb.NodeUnstageVolumeRequest, grpc.ServicerContext], object] = (
            lambda request, context: None
        )

    def NodeUnstageVolume(
        self, request: pb.NodeUnstageVolumeRequest, context: grpc.ServicerContext
    ) -> pb.NodeUnstageVolumeResponse:
        self.behaviour(request, context)
        return pb.NodeUnstageVolumeResponse()


class Line(logging.Handler):
    """Keeps the fields of each log record."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: list[dict] = []
        self.levels: list[int] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.fields.append(record.fields)  # type: ignore[attr-defined]
        self.levels.append(record.levelno)


@pytest.fixture
def lines() -> Iterator[Line]:
    handler, logger = Line(), logging.getLogger("datacache.rpc")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.fixture
def node() -> Scripted:
    return Scripted()


@pytest.fixture
def client(tmp_path: Path, node: Scripted) -> Iterator[PluginClient]:
    endpoint = f"unix://{tmp_path}/csi.sock"
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[ErrorInterceptor()])
    csi_pb2_grpc.add_NodeServicer_to_server(node, server)
    csi_pb2_grpc.add_IdentityServicer_to_server(IdentityServicer("datacache.csi.io"), server)
    server.add_insecure_port(f"unix:{remove_stale_socket(grpc_server.parse_socket_path(endpoint))}")
    server.start()
    with PluginClient(endpoint, timeout=10) as plugin:
        yield plugin
    server.stop(None).wait()


def raising(error: BaseException) -> Callable[[object, object], None]:
    def behaviour(request: object, context: object) -> None:
        raise error

    return behaviour


def call(client: PluginClient, volume_id: str = "vol-1") -> grpc.RpcError | None:
    try:
        client.node.NodeUnstageVolume(
            pb.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path="/s"), timeout=10
        )
    except grpc.RpcError as error:
        return error
    return None


def all_errors(root: type[DataCacheError] = DataCacheError) -> list[type[DataCacheError]]:
    """The classes of `csi.errors`."""
    below = [kind for child in root.__subclasses__() for kind in all_errors(child)]
    return [kind for kind in (root, *below) if kind.__module__ == DataCacheError.__module__]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_each_error_has_one_code_and_its_message_reaches_the_caller(
    kind: type[DataCacheError], client: PluginClient, node: Scripted
) -> None:
    node.behaviour = raising(kind("what, where, what to do"))
    error = call(client)
    assert error is not None
    assert error.details() == "what, where, what to do"
    expected = next((CODES[cls] for cls in kind.__mro__ if cls in CODES), grpc.StatusCode.INTERNAL)
    assert error.code() is expected
    assert (expected is grpc.StatusCode.INTERNAL) == (kind is DataCacheError)


def test_every_call_is_observed_with_its_code(tmp_path: Path, node: Scripted) -> None:
    seen: list[tuple[str, str]] = []
    server = grpc_server.start_server(
        f"{tmp_path}/csi.sock",
        4,
        lambda server: csi_pb2_grpc.add_NodeServicer_to_server(node, server),
        lambda method, code, seconds: seen.append((method, code)) if seconds >= 0 else None,
    )
    with PluginClient(f"unix://{tmp_path}/csi.sock", timeout=10) as plugin:
        call(plugin)
        node.behaviour = raising(errors.Busy("later"))
        call(plugin)
    server.stop(None).wait()
    assert seen == [("NodeUnstageVolume", "OK"), ("NodeUnstageVolume", "ABORTED")]


def test_the_code_is_that_of_the_nearest_class() -> None:
    assert code_of(errors.VolumeNotFound("")) is grpc.StatusCode.NOT_FOUND
    assert code_of(errors.OriginThrottled("", 3.0)) is grpc.StatusCode.UNAVAILABLE
    assert code_of(errors.FillStopped("")) is code_of(errors.InvalidToken("")) is grpc.StatusCode.ABORTED
    assert (
        code_of(errors.SourceChanged(""))
        is code_of(errors.UnsafeContent(""))
        is grpc.StatusCode.FAILED_PRECONDITION
    )
    assert code_of(ValueError()) is code_of(KeyError()) is grpc.StatusCode.INTERNAL


def test_the_client_turns_each_code_back_into_an_error_of_its_family(
    client: PluginClient, node: Scripted
) -> None:
    for kind in CODES:
        if issubclass(kind, DataCacheError):
            node.behaviour = raising(kind("told"))
            with pytest.raises(DataCacheError, match="told") as error:
                client.unstage("v", "/s")
            assert code_of(error.value) is CODES[kind]


def test_errors_cross_a_pipe_by_name_and_foreign_ones_without_their_text() -> None:
    for kind in all_errors():
        again = errors.from_wire(errors.to_wire(kind("text")))
        assert type(again) is kind
        assert str(again) == "text"
    foreign = errors.from_wire(errors.to_wire(ValueError(SECRET)))
    assert type(foreign) is DataCacheError
    assert SECRET not in str(foreign)
    assert "ValueError" in str(foreign)
    assert type(errors.from_wire({"kind": "FromTomorrow", "message": "x"})) is DataCacheError


def test_errors_have_names_on_the_pipe_that_are_not_those_of_their_classes() -> None:
    names = {errors.to_wire(kind("text"))["kind"] for kind in all_errors()}
    assert names == {
        "DataCacheError", "InvalidParameter", "OutOfRange", "NotFound", "VolumeNotFound", "SourceNotFound", "AlreadyExists",  # noqa: E501
        "Unauthenticated", "PermissionDenied", "OriginUnavailable", "OriginThrottled", "OriginTimedOut", "OriginUntrusted",  # noqa: E501
        "RangesIgnored", "Busy", "FillStopped", "InvalidToken", "NoSpace", "FailedPrecondition", "SourceChanged", "UnsafeContent",  # noqa: E501
        "UnsupportedByNode", "ClusterUnavailable", "ClusterForbids", "ClusterConflict", "CorruptContent", "WorkerDied",  # noqa: E501
    }  # fmt: skip


def test_an_error_without_a_name_on_the_pipe_goes_by_that_of_its_base() -> None:
    class OfAnAdapter(errors.OriginTimedOut):
        """An error that one module alone knows."""

    again = errors.from_wire(errors.to_wire(OfAnAdapter("text")))
    assert type(again) is errors.OriginTimedOut
    assert str(again) == "text"


def test_how_long_an_origin_wants_us_to_wait_crosses_the_pipe() -> None:
    wire = errors.to_wire(errors.OriginThrottled("later", 17.5))
    assert wire == {"kind": "OriginThrottled", "message": "later", "retry_after": 17.5}
    again = errors.from_wire(wire)
    assert isinstance(again, errors.OriginThrottled)
    assert again.retry_after == 17.5
    silent = errors.from_wire({"kind": "OriginThrottled", "message": "later"})
    assert isinstance(silent, errors.OriginThrottled)
    assert silent.retry_after == 0


def test_an_error_with_another_message_keeps_the_rest() -> None:
    again = errors.with_message(errors.OriginThrottled("later", 17.5), "later (and more)")
    assert isinstance(again, errors.OriginThrottled)
    assert str(again) == "later (and more)"
    assert again.retry_after == 17.5
    assert type(errors.with_message(errors.SourceNotFound("gone"), "gone too")) is errors.SourceNotFound


def test_a_call_is_one_line_with_method_volume_code_and_milliseconds(
    client: PluginClient, lines: Line
) -> None:
    assert call(client) is None
    (fields,) = lines.fields
    assert lines.levels == [logging.INFO]
    assert {key: fields[key] for key in ("method", "volume", "code")} == {
        "method": "NodeUnstageVolume",
        "volume": "vol-1",
        "code": "OK",
    }
    assert fields["ms"] >= 0
    assert "reason" not in fields


def test_a_call_that_failed_says_why_in_its_line(client: PluginClient, node: Scripted, lines: Line) -> None:
    node.behaviour = raising(errors.NoSpace("needs 5 GiB, has 1 GiB"))
    call(client)
    (fields,) = lines.fields
    assert lines.levels == [logging.WARNING]
    assert (fields["code"], fields["reason"]) == (
        "RESOURCE_EXHAUSTED",
        "needs 5 GiB, has 1 GiB",
    )
    assert "at" not in fields


def test_a_fault_is_told_by_its_place_and_its_text_stays_out(
    client: PluginClient, node: Scripted, lines: Line
) -> None:
    node.behaviour = raising(ValueError(f"could not parse {SECRET}"))
    error = call(client)
    assert error is not None
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "unexpected ValueError; see the plugin's log for where it occurred"
    (fields,) = lines.fields
    assert "ValueError" in fields["at"]
    assert "test_grpc_server.py:" in fields["at"]
    assert SECRET not in str(fields)


def test_secrets_and_contexts_of_a_request_stay_out_of_the_log(client: PluginClient, lines: Line) -> None:
    request = pb.NodePublishVolumeRequest(
        volume_id="v", secrets={"token": SECRET}, volume_context={"x": SECRET}, publish_context={"y": SECRET}
    )
    with pytest.raises(grpc.RpcError) as error:
        client.node.NodePublishVolume(request, timeout=10)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert [fields["code"] for fields in lines.fields] == ["UNIMPLEMENTED"]
    assert SECRET not in str(lines.fields)


def test_a_call_this_driver_does_not_have_says_so(client: PluginClient) -> None:
    with pytest.raises(grpc.RpcError) as error:
        client.node.NodeExpandVolume(pb.NodeExpandVolumeRequest(volume_id="v"), timeout=10)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error.value.details() == "this driver does not implement this call"


@pytest.mark.parametrize(("deadline", "over"), [(30.0, False), (0.9, True), (None, False)])
def test_patience_ends_a_second_before_the_callers_deadline(
    client: PluginClient, node: Scripted, deadline: float | None, over: bool
) -> None:
    seen: list[bool] = []
    node.behaviour = lambda request, context: seen.append(call_deadline(context, 100.0).is_over)
    # On a busy machine a call of less than a second may end before it is heard.
    for _ in range(20):
        with suppress(grpc.RpcError):
            client.node.NodeUnstageVolume(pb.NodeUnstageVolumeRequest(volume_id="v"), timeout=deadline)
        if seen:
            break
    assert seen[0] is over


def test_patience_is_over_when_the_caller_hangs_up(client: PluginClient, node: Scripted) -> None:
    waiting, heard = threading.Event(), threading.Event()
    reasons: list[str] = []

    def wait(request: object, context: grpc.ServicerContext) -> None:
        waits = call_deadline(context, 60.0)
        waiting.set()
        while not waits.is_over:
            waits.sleep()
        reasons.append(waits.cancelled)
        heard.set()

    node.behaviour = wait
    running = client.node.NodeUnstageVolume.future(pb.NodeUnstageVolumeRequest(volume_id="v"), timeout=60)
    assert waiting.wait(10)
    running.cancel()
    assert heard.wait(10)
    assert reasons == ["the caller has hung up"]


def test_who_hung_up_before_the_call_began_is_not_waited_for(client: PluginClient, node: Scripted) -> None:
    begun, gone, heard = threading.Event(), threading.Event(), threading.Event()
    seen: list[bool] = []

    def late(request: object, context: grpc.ServicerContext) -> None:
        context.add_callback(gone.set)
        begun.set()
        assert gone.wait(10)
        seen.append(call_deadline(context, 60.0).is_over)
        heard.set()

    node.behaviour = late
    running = client.node.NodeUnstageVolume.future(pb.NodeUnstageVolumeRequest(volume_id="v"), timeout=60)
    assert begun.wait(10)
    running.cancel()
    assert heard.wait(10)
    assert seen == [True]


@pytest.mark.parametrize(
    ("request_", "missing"),
    [
        (pb.NodeStageVolumeRequest(), "volume_id"),
        (pb.NodeStageVolumeRequest(volume_id="v"), "staging_target_path"),
        (pb.NodeStageVolumeRequest(volume_id="v", staging_target_path="/s"), "volume_capability"),
    ],
)
def test_the_first_missing_field_is_named(request_: pb.NodeStageVolumeRequest, missing: str) -> None:
    with pytest.raises(InvalidParameter, match=f"{missing} is missing in NodeStageVolumeRequest"):
        require_fields(request_, "volume_id", "staging_target_path", "volume_capability")
    whole = pb.NodeStageVolumeRequest(
        volume_id="v", staging_target_path="/s", volume_capability=pb.VolumeCapability()
    )
    require_fields(whole, "volume_id", "staging_target_path", "volume_capability")


def test_the_folder_of_the_socket_is_made(tmp_path: Path) -> None:
    assert remove_stale_socket(f"{tmp_path}/a/b/csi.sock") == f"{tmp_path}/a/b/csi.sock"
    assert (tmp_path / "a/b").is_dir()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    remove_stale_socket(str(path))
    assert not path.exists()


def test_a_live_socket_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        with pytest.raises(AlreadyExists, match="another process answers"):
            remove_stale_socket(str(path))
        assert path.exists()


@pytest.mark.parametrize(
    "make",
    [Path.touch, Path.mkdir, lambda path: os.symlink("/etc/passwd", path)],
    ids=["file", "folder", "symlink"],
)
def test_what_is_no_socket_is_refused_and_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "csi.sock"
    make(path)
    with pytest.raises(AlreadyExists, match="is not a socket"):
        remove_stale_socket(str(path))
    assert os.path.lexists(path)


@pytest.mark.parametrize(
    "endpoint", ["/run/csi.sock", "tcp://127.0.0.1:1", "unix://relative/x", "unix:/x", ""]
)
def test_an_endpoint_that_is_no_absolute_socket_path_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidParameter, match="--endpoint"):
        grpc_server.parse_socket_path(endpoint)


def test_the_identity_is_told_and_an_unhealthy_plugin_says_why(client: PluginClient) -> None:
    info = client.identity.GetPluginInfo(pb.GetPluginInfoRequest(), timeout=10)
    assert (info.name, bool(info.vendor_version)) == ("datacache.csi.io", True)
    kinds = {
        capability.service.type
        for capability in client.identity.GetPluginCapabilities(
            pb.GetPluginCapabilitiesRequest(), timeout=10
        ).capabilities
    }
    assert kinds == {
        pb.PluginCapability.Service.CONTROLLER_SERVICE,
        pb.PluginCapability.Service.VOLUME_ACCESSIBILITY_CONSTRAINTS,
    }
    assert client.probe()

    def unhealthy() -> None:
        raise errors.FailedPrecondition("the store is gone")

    with pytest.raises(errors.FailedPrecondition, match="the store is gone"):
        IdentityServicer("x", unhealthy).Probe(pb.ProbeRequest(), None)  # type: ignore[arg-type]
