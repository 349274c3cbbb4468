"""`datacache doctor` names what is wrong with a node, and how to put it right: each thing is broken here,
in namespaces of its own."""

from __future__ import annotations

import email.utils
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from csi.errors import NoSpace
from csi.pb import csi_pb2_grpc
from csi.server.grpc_server import start_server
from csi.server.identity import IdentityServicer
from datacache import doctor
from tests.kernel.disks import disk
from tests.kernel.machine import MIB
from tests.origins.scripted import Answer, Server

pytestmark = pytest.mark.kernel

_DATACACHE = Path(sys.executable).parent / "datacache"
CHECKS = ("erofs", "loop devices", "mounting an image", "propagation", "cgroups", "disk", "hub", "clock")


class Found(NamedTuple):
    """A finding, as the command prints it for programs."""

    check: str
    verdict: str
    what: str
    fix: str


class Examination(NamedTuple):
    status: int
    found: dict[str, Found]

    def only(self, check: str, verdict: str) -> Found:
        """The finding of `check`, when it alone is of this verdict and all others are ok."""
        others = {
            found.check: found
            for found in self.found.values()
            if found.verdict != "ok" and found.check != check
        }
        assert others == {}, self.found
        assert self.found[check].verdict == verdict, self.found
        assert self.status == (verdict == "fault")
        assert self.found[check].fix
        return self.found[check]


@pytest.fixture
def hub() -> Iterator[Server]:
    with Server() as running:
        running.behave["/"] = lambda answer: answer.say(200, b"a hub")
        yield running
        running.shutdown()


@pytest.fixture
def examine(hub: Server, tmp_path: Path) -> Callable[..., Examination]:
    """`examine(broken, *flags)`: in a mount namespace of its own, where all is well but what the shell
    commands `broken` do to it."""

    def examined(broken: str = "", *flags: str, store: Path = tmp_path, hub_at: str = hub.url) -> Examination:
        well = f"mount --bind {store} {store} && mount --make-shared {store}"
        script = f'{well}; {broken or ":"}; exec "$@"'
        command = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-ec",
            script,
            "sh",
            str(_DATACACHE),
            "doctor",
            str(store),
        ]
        done = subprocess.run(
            [*command, "--output", "json", "--hub", hub_at, *flags],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout, done.stderr
        found = [Found(**finding) for finding in json.loads(done.stdout)]
        assert [path.name for path in store.iterdir() if path.name.startswith(".doctor")] == []
        return Examination(done.returncode, {finding.check: finding for finding in found})

    return examined


Examine = Callable[..., Examination]


def test_a_good_node_has_nothing_wrong(examine: Examine) -> None:
    done = examine()
    assert done.status == 0
    assert tuple(done.found) == CHECKS
    assert {found.verdict for found in done.found.values()} == {"ok"}
    assert all(found.what for found in done.found.values())


def test_a_store_that_is_not_there_yet_is_looked_at_where_it_will_be(
    examine: Examine, tmp_path: Path
) -> None:
    assert examine("", "--mount-dir", str(tmp_path / "to/be/made")).status == 0
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_without_erofs(examine: Examine, tmp_path: Path) -> None:
    listed = tmp_path / "filesystems"
    listed.write_text(Path("/proc/filesystems").read_text().replace("erofs", "other"))
    found = examine(f"mount --bind {listed} /proc/filesystems").only("erofs", "fault")
    assert "no EROFS" in found.what
    assert "CONFIG_EROFS_FS" in found.fix


def test_a_node_without_loop_devices(examine: Examine) -> None:
    others = "mknod /dev/null c 1 3; mknod /dev/zero c 1 5; mknod /dev/urandom c 1 9; mknod /dev/random c 1 8"
    done = examine(f"mount -t tmpfs tmpfs /dev; {others}")
    assert {check for check, found in done.found.items() if found.verdict == "fault"} == {
        "loop devices",
        "mounting an image",
    }
    assert "/dev/loop-control" in done.found["loop devices"].what
    assert "module loop" in done.found["loop devices"].fix
    assert done.status == 1


def test_mounts_that_nobody_else_sees(examine: Examine, tmp_path: Path) -> None:
    found = examine(f"mount --make-private {tmp_path}").only("propagation", "fault")
    assert str(tmp_path) in found.what
    assert "Bidirectional" in found.fix


def test_a_kernel_that_mounts_nothing(examine: Examine) -> None:
    found = examine('set -- setpriv --bounding-set -sys_admin "$@"').only("mounting an image", "fault")
    assert "mounting /dev/loop" in found.what
    assert "Operation not permitted" in found.what
    assert "dmesg" in found.fix


def test_an_image_that_reads_otherwise_than_it_was_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A disk that loses writes cannot be had here: what is put on it is another file's bytes."""
    honest = doctor._render_layout
    monkeypatch.setattr(doctor, "_render_layout", lambda layout: honest(layout).replace(b"doctor", b"dictor"))
    found = doctor.check_image_mount(doctor.ExaminedNode(tmp_path, tmp_path, tmp_path, "http://127.0.0.1:1"))
    assert found.verdict == "fault"
    assert "differ from those written" in found.message
    assert "check the disk" in found.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ("mount -t tmpfs tmpfs /sys/fs/cgroup", "no cgroups with block I/O throttling"),
        (
            "mount -t tmpfs tmpfs /sys/fs/cgroup; echo cpu memory > /sys/fs/cgroup/cgroup.controllers",
            "no controller io",
        ),
        ("mount -t tmpfs tmpfs /sys/fs/cgroup; mkdir /sys/fs/cgroup/blkio", "cannot throttle"),
    ],
)
def test_cgroups_that_cannot_hold_limits_are_a_warning(examine: Examine, broken: str, what: str) -> None:
    found = examine(broken).only("cgroups", "warning")
    assert what in found.what + found.fix


def test_a_hub_that_nobody_answers_for(examine: Examine, hub: Server) -> None:
    hub.shutdown()
    hub.server_close()
    done = examine()
    assert done.status == 1
    assert "127.0.0.1" in done.found["hub"].what
    assert "HTTPS_PROXY" in done.found["hub"].fix
    assert done.found["clock"].verdict == "warning"


def test_a_hub_whose_name_is_unknown(examine: Examine) -> None:
    assert "cannot be resolved" in examine(hub_at="http://hub.invalid").found["hub"].what


def test_a_hub_that_fails(examine: Examine, hub: Server) -> None:
    hub.behave["/"] = lambda answer: answer.say(502)
    assert "status 502" in examine().only("hub", "fault").what


@pytest.mark.parametrize(
    ("seconds", "verdict", "words"),
    [(-3600, "fault", "ahead of"), (7200, "fault", "behind"), (120, "warning", "behind")],
)
def test_a_clock_that_is_wrong(examine: Examine, hub: Server, seconds: int, verdict: str, words: str) -> None:
    def at_another_time(answer: Answer) -> None:
        answer.date_time_string = lambda timestamp=None: email.utils.formatdate(
            time.time() + seconds, usegmt=True
        )  # type: ignore[method-assign]
        answer.say(200)

    hub.behave["/"] = at_another_time
    found = examine().only("clock", verdict)
    assert words in found.what
    assert "NTP" in found.fix


def test_a_hub_that_tells_no_time(examine: Examine, hub: Server) -> None:
    def without_a_date(answer: Answer) -> None:
        answer.send_response_only(200)
        answer.send_header("Content-Length", "0")
        answer.end_headers()

    hub.behave["/"] = without_a_date
    assert "sends no Date" in examine().only("clock", "warning").what


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs"])
def test_a_store_on_another_machine(examine: Examine, tmp_path: Path, kind: str) -> None:
    """This kernel has no NFS: the mount table that the command reads has the store's file system by that
    name."""
    table = f"sed -E 's#( {tmp_path} .* - )[^ ]+ #\\1{kind} #' /proc/self/mountinfo > {tmp_path}/table"
    found = examine(f"{table}; mount --bind {tmp_path}/table /proc/$$/mountinfo").only("disk", "warning")
    assert f"the store {tmp_path} is on {kind}, a network file system" in found.what
    assert "local disk" in found.fix


def test_a_disk_that_is_full(examine: Examine, tmp_path: Path) -> None:
    with disk(tmp_path, 64 * MIB) as small:
        found = examine(store=small).only("disk", "fault")
    assert "MiB free" in found.what
    assert "--store" in found.fix


def test_a_store_in_memory(examine: Examine, tmp_path: Path) -> None:
    found = examine(f"mount -t tmpfs tmpfs {tmp_path}; mount --make-shared {tmp_path}").found["disk"]
    assert found.verdict == "fault"
    assert "tmpfs" in found.what
    assert "hostPath" in found.fix


def test_a_store_that_cannot_be_written(examine: Examine, tmp_path: Path) -> None:
    done = examine(f"mount -o remount,ro,bind {tmp_path}")
    assert done.found["disk"].verdict == "fault"
    assert done.status == 1


def test_a_plugin_that_does_not_answer_and_one_that_does(examine: Examine, tmp_path: Path) -> None:
    socket = tmp_path / "csi.sock"
    endpoint = ("--endpoint", f"unix://{socket}")
    assert "kubectl logs" in examine("", *endpoint).only("plugin", "fault").fix
    server = start_server(
        str(socket),
        2,
        lambda server: csi_pb2_grpc.add_IdentityServicer_to_server(
            IdentityServicer("datacache.csi.io"), server
        ),
    )
    try:
        assert examine("", *endpoint).found["plugin"].verdict == "ok"
    finally:
        server.stop(None).wait()


def test_a_plugin_that_answers_too_late_or_says_that_it_is_ill(examine: Examine, tmp_path: Path) -> None:
    late, ill = threading.Event(), False

    def healthy() -> None:
        if ill:
            raise NoSpace("the store is gone; mount it again")
        late.wait(60)

    socket = tmp_path / "csi.sock"
    servicer = IdentityServicer("datacache.csi.io", healthy)
    server = start_server(
        str(socket), 2, lambda server: csi_pb2_grpc.add_IdentityServicer_to_server(servicer, server)
    )
    try:
        slow = examine("", "--endpoint", f"unix://{socket}").only("plugin", "fault")
        ill = True
        late.set()
        unwell = examine("", "--endpoint", f"unix://{socket}").only("plugin", "fault")
    finally:
        server.stop(None).wait()
    assert "kubectl logs" in slow.fix
    assert slow.what
    assert "the store is gone" in unwell.what


def test_people_get_a_table(hub: Server, tmp_path: Path) -> None:
    command = [str(_DATACACHE), "doctor", str(tmp_path), "--hub", hub.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[:4] == ["check", "verdict", "what", "fix"]
    assert all(check in done.stdout for check in CHECKS)


def test_without_root_nothing_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = list(doctor.run_checks(doctor.ExaminedNode(tmp_path, tmp_path, tmp_path, "http://127.0.0.1:1")))
    assert [(one.check, one.verdict.value, one.fix) for one in found] == [("root", "fault", "run it as root")]
