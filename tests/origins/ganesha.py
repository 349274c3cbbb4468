"""A real NFS server (nfs-ganesha, VFS) on loopback for tests, the demo and benchmarks.

    with Ganesha([Export(Path("/srv/models"))]) as nas:
        NasSpec(server=nas.server, path="/srv/models", port=nas.port, mount_port=nas.mount_port)

As a program: `python -m tests.origins.ganesha --export DIR --port 0` prints `server=... port=...
mountport=...` and serves until it is interrupted. Needs root and the Debian packages nfs-ganesha,
nfs-ganesha-vfs, rpcbind.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from csi.parameters.dialects.nas import NasSpec
from tests.origins import onc_rpc
from tests.origins.onc_rpc import free_port, wait_until

_START_SECONDS = 60.0
_STOP_SECONDS = 4.0
_TRIES = 4
_KEPT = "DATACACHE_TESTS_KEEP_RPCBIND"

_CORE = """
NFS_CORE_PARAM {{
  NFS_Port = {port}; MNT_Port = {mount_port}; Bind_addr = {server}; Protocols = 3, 4;
  Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; {core}
}}
{more}
NFS_KRB5 {{ Active_krb5 = false; }}
NFSv4 {{ Graceless = true; Minor_Versions = 0; Only_Numeric_Owners = true; RecoveryRoot = "{folder}/recovery"; }}
LOG {{ Default_Log_Level = EVENT; }}
"""  # noqa: E501
_EXPORT = """
EXPORT {{
  Export_Id = {number}; Path = "{export.path}"; Pseudo = "{pseudo}"; Protocols = 3, 4; SecType = sys;
  Access_Type = {access}; Squash = {export.squash}; PrivilegedPort = {privileged}; Attr_Expiration_Time = {export.attribute_seconds};
  FSAL {{ Name = VFS; }} {clients}
}}
"""  # noqa: E501


# From version 6 on it ends where the kernel does not let it flush before others (PR_SET_IO_FLUSHER), unless
# it is told that it may go on,
# and believes the names of a folder that it has seen, whatever Attr_Expiration_Time says, unless it keeps
# none.
_FLUSHER, _NO_NAMES = "allow_set_io_flusher_fail = true;", "MDCACHE { Dir_Chunk = 0; }"
_VERSION = re.compile(r"Release = V(\d+)")


@dataclass(frozen=True)
class Export:
    """One exported folder.

    `pseudo` is its path in NFSv4 (default: the same as `path`), `access` RO, RW or None, `squash` ganesha's
    word (No_Root_Squash, Root_Squash, All_Squash), `privileged_port` whether only source ports below 1024 may
    ask, `clients` the only addresses that may (empty: all), `attribute_seconds` how long the server may
    believe attributes (0: it sees at once what tests change behind it).
    """

    path: Path
    pseudo: str = ""
    access: str = "RO"
    squash: str = "No_Root_Squash"
    privileged_port: bool = False
    clients: str = ""
    attribute_seconds: int = 0

    def configuration(self, number: int) -> str:
        """The EXPORT block of ganesha.conf; `number` is unique in it."""
        clients = (
            f"CLIENT {{ Clients = {self.clients}; Access_Type = {self.access}; }}" if self.clients else ""
        )
        return _EXPORT.format(
            number=number, export=self, pseudo=self.pseudo or self.path, clients=clients,
            access="None" if self.clients else self.access, privileged=str(self.privileged_port).lower(),
        )  # fmt: skip


class _Rpcbind:
    """ganesha insists on registering with a portmapper; one is started when none answers, and stopped with
    the last server.

    There is one a machine. Where several processes run tests, one of them keeps it for all: others would end
    it for each other.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._users = 0
        self._over = threading.Event()

    @staticmethod
    def _answers() -> bool:
        return onc_rpc.answers("127.0.0.1", 111, onc_rpc.PORTMAPPER)

    def keep(self) -> Callable[[], None]:
        """Have one answer from now on, in the place of another checkout's when that ends, until what is
        returned is called."""
        os.environ[_KEPT] = "1"
        self._start()
        keeper = threading.Thread(target=self._watch, name="rpcbind", daemon=True)
        keeper.start()

        def end() -> None:
            self._over.set()
            keeper.join()
            self._stop()

        return end

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            if not self._answers():
                self._stop()
                self._start()

    def acquire(self) -> None:
        """Have one answer."""
        self._users += 1
        if _KEPT not in os.environ:
            self._start()
        if not wait_until(self._answers, 30.0):
            self.release()
            raise RuntimeError(
                "rpcbind does not answer on 127.0.0.1:111; is the Debian package rpcbind installed?"
            )

    def release(self) -> None:
        """Let go of it."""
        self._users -= 1
        if not self._users and _KEPT not in os.environ:
            self._stop()

    def _start(self) -> None:
        if not self._answers():
            self._process = subprocess.Popen(
                ["rpcbind", "-f"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(5)
            self._process = None


rpcbind = _Rpcbind()


class Ganesha:
    """A ganesha server; `server`, `port` and `mount_port` say where it is.

    Entering starts it, leaving removes every trace.
    """

    def __init__(
        self, exports: list[Export], *, port: int = 0, mount_port: int = 0, server: str = "127.0.0.1"
    ) -> None:
        self.exports, self.server = exports, server
        self.port = port or free_port()
        self.mount_port = mount_port or free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()

    def __enter__(self) -> Ganesha:
        self._folder = Path(tempfile.mkdtemp(prefix="ganesha-"))
        (self._folder / "recovery").mkdir()
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self._folder)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None, "the server is stopped"
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether the server was started and not stopped since."""
        return self._process is not None

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        path = self._folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def spec(
        self,
        path: str | Path,
        version: str = "3",
        *,
        timeout: float = 5.0,
        retries: int = 1,
        uid: int = 0,
        gid: int = 0,
    ) -> NasSpec:
        """A spec for `path` on this server, with short timeouts (seconds)."""
        return NasSpec(
            server=self.server, path=str(path), version=version, port=self.port, mount_port=self.mount_port,
            timeout=timeout, retries=retries, uid=uid, gid=gid,
        )  # fmt: skip

    def start(self) -> None:
        """Start the server and wait until it answers.

        Another process may stop the shared rpcbind just then: tried a few times.
        """
        for _ in range(_TRIES):
            rpcbind.acquire()
            self._spawn()
            if wait_until(lambda: self._ended() or self._answers(), _START_SECONDS) and not self._ended():
                return
            self.stop()
        raise RuntimeError(f"nfs-ganesha did not start; the end of its log:\n{self.log[-3000:]}")

    def stop(self) -> None:
        """Stop the server; one that hangs is killed."""
        if self._process is None:
            return
        self.resume()
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        rpcbind.release()

    def kill(self) -> None:
        """End the server as a crash would."""
        self.pause()
        os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def pause(self) -> None:
        """Keep the sockets open and answer nothing, as a server that hangs."""
        os.kill(self.pid, signal.SIGSTOP)
        # The signal returns before the last thread stands.
        if not wait_until(self._stands, 30.0):
            raise RuntimeError("nfs-ganesha did not stop at SIGSTOP")

    def resume(self) -> None:
        """Undo `pause`."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self.pid, signal.SIGCONT)

    def _spawn(self) -> None:
        blocks = [export.configuration(number) for number, export in enumerate(self.exports, 1)]
        configuration = self._folder / "ganesha.conf"
        configuration.write_text(
            _CORE.format(
                server=self.server,
                port=self.port,
                mount_port=self.mount_port,
                folder=self._folder,
                **self._of_version(),
            )
            + "".join(blocks)
        )
        command = [
            "ganesha.nfsd",
            "-F",
            "-f",
            str(configuration),
            "-L",
            str(self._folder / "log"),
            "-p",
            str(self._folder / "pid"),
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def _of_version(self) -> dict[str, str]:
        """What only newer versions know, which older ones would refuse."""
        if _version() < 6:
            return {"core": "", "more": ""}
        at_once = any(not export.attribute_seconds for export in self.exports)
        return {"core": _FLUSHER, "more": _NO_NAMES if at_once else ""}

    def _stands(self) -> bool:
        states = [
            path.read_text().rpartition(")")[2].split()[0]
            for path in Path(f"/proc/{self.pid}/task").glob("*/stat")
        ]
        return set(states) == {"T"}

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _answers(self) -> bool:
        return onc_rpc.answers(self.server, self.port, onc_rpc.NFS) and onc_rpc.answers(
            self.server, self.mount_port, onc_rpc.MOUNT
        )


@functools.cache
def _version() -> int:
    """The server's major version."""
    found = _VERSION.search(
        subprocess.run(["ganesha.nfsd", "-v"], capture_output=True, text=True, check=True).stdout
    )
    assert found
    return int(found[1])


def main() -> None:
    """Serve folders until interrupted."""
    parser = argparse.ArgumentParser(description="Serve folders over NFS v3 and v4 on 127.0.0.1.")
    parser.add_argument(
        "--export",
        type=Path,
        action="append",
        required=True,
        help="folder to serve, read-only; may be given again",
    )
    parser.add_argument("--port", type=int, default=0, help="NFS port, 0 for a free one")
    parser.add_argument("--mount-port", type=int, default=0, help="MOUNT port, 0 for a free one")
    parser.add_argument("--squash", default="No_Root_Squash")
    arguments = parser.parse_args()
    exports = [
        Export(folder.resolve(), squash=arguments.squash, attribute_seconds=60) for folder in arguments.export
    ]
    with Ganesha(exports, port=arguments.port, mount_port=arguments.mount_port) as nas:
        # Blocked only now: the server would inherit the mask and never stop.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        print(f"server={nas.server} port={nas.port} mountport={nas.mount_port}", flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
