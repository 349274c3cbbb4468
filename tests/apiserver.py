"""A real etcd and kube-apiserver on loopback, RBAC on: `with ApiServer() as cluster`. No kubelet, no
controller of Kubernetes.

The programs come from the cache folder of the test cluster where they are there already; nothing is built
here.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from csi.cluster.access import ClusterAccess
from csi.cluster.api_server import ApiServer as Client
from csi.errors import DataCacheError
from csi.registry.custom_resource import GROUP, VERSION
from csi.registry.pins.kubernetes import pins_path
from csi.registry.volumes.codec import PLURAL
from tests.origins.onc_rpc import free_port, wait_until

CRDS = Path(__file__).parents[1] / "deploy/crds"
VOLUMES = f"/apis/{GROUP}/{VERSION}/{PLURAL}"
PINS = f"/apis/{GROUP}/{VERSION}/cachepins"
PREWARMS = f"/apis/{GROUP}/{VERSION}/cacheprewarms"
DATA_CACHES = "/apis/eci.aliyun.com/v1alpha1/datacaches"
ADMIN, STRANGER, NODE = "admin", "stranger", "node-plugin"
NOT_RUN = "NOT RUN: tests on a real kube-apiserver, because etcd, kube-apiserver and kubectl are not built (make test builds them, with Go)"  # noqa: E501
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}
"""Everything that anybody asks, without bodies: what the rights of a component are compared with."""
_PROGRAMS = ("etcd", "kube-apiserver", "kubectl")
_START_SECONDS, _STOP_SECONDS = 60.0, 20.0


def programs() -> Path | None:
    """The folder that has the programs, None where they are not built; of several the newest."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "datacache-csi/cluster"
    complete = (
        folder for folder in cache.glob("programs-*") if all((folder / name).exists() for name in _PROGRAMS)
    )
    return max(complete, key=lambda folder: folder.stat().st_mtime, default=None)


class ApiServer:
    """An API server with an etcd of its own and the CRDs of deploy/crds; leaving removes every trace. `url`
    says where it is.

    `users` are those beside the administrator, with no right but what the administrator gives them. With
    `audit` all that anybody asks is in `audit_log`: an Event of audit.k8s.io/v1 a line, in JSON.
    """

    def __init__(self, users: Sequence[str] = (), crds: bool = True, audit: bool = False) -> None:
        self._audit = audit
        self._users, self._crds = {name: secrets.token_hex(16) for name in (ADMIN, *users)}, crds
        self._processes: list[subprocess.Popen[bytes]] = []
        self._kinds: tuple[str, ...] = ()
        self.folder, self.port = Path(), 0

    @property
    def url(self) -> str:
        """The server's URL."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def audit_log(self) -> Path:
        """What was asked, with `audit`."""
        return self.folder / "audit.log"

    def __enter__(self) -> ApiServer:
        self.folder = Path(tempfile.mkdtemp(prefix="apiserver-"))
        try:
            self._configure()
            self._start_etcd()
            self.start()
            if self._crds:
                self.kubectl("apply", "--server-side", "-f", str(CRDS))
                self.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRDS))
                self._kinds = (VOLUMES, PINS, PREWARMS, DATA_CACHES)
                # An established CRD may still be initialising its storage.
                assert wait_until(self._is_ready, 30)
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._processes:
            _end(self._processes.pop())
        shutil.rmtree(self.folder, ignore_errors=True)

    def _configure(self) -> None:
        lines = (
            f'{token},{name},{name},"{"system:masters" if name == ADMIN else ""}"\n'
            for name, token in self._users.items()
        )
        (self.folder / "tokens.csv").write_text("".join(lines))
        key = (
            "openssl",
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-noout",
            "-out",
            self.folder / "accounts.key",
        )
        subprocess.run(key, check=True, capture_output=True)

    def _start_etcd(self) -> None:
        self._etcd, peers = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
        flags = {
            "data-dir": self.folder / "etcd",
            "listen-client-urls": self._etcd,
            "advertise-client-urls": self._etcd,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"default={peers}",
        }
        self._run("etcd", flags, "--unsafe-no-fsync")

    def start(self) -> None:
        """Start the API server, again after `stop` with what it had, and return when it is ready."""
        self.port = self.port or free_port()
        flags = {
            "etcd-servers": self._etcd,
            "secure-port": self.port,
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "endpoint-reconciler-type": "none",
            "cert-dir": self.folder / "certificates",
            "token-auth-file": self.folder / "tokens.csv",
            "authorization-mode": "RBAC",
            "allow-privileged": "true",
            "service-cluster-ip-range": "10.96.0.0/16",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": self.folder / "accounts.key",
            "service-account-signing-key-file": self.folder / "accounts.key",
        }
        if self._audit:
            (self.folder / "audit-policy.json").write_text(json.dumps(AUDIT_POLICY))
            flags |= {
                "audit-policy-file": self.folder / "audit-policy.json",
                "audit-log-path": self.audit_log,
            }
        process = self._run("kube-apiserver", flags)
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end and process.poll() is None:
            if self._is_ready():
                return
            time.sleep(0.1)
        raise AssertionError(
            f"kube-apiserver did not start:\n{(self.folder / 'kube-apiserver.log').read_text()[-3000:]}"
        )

    def stop(self) -> None:
        """Kill the API server; etcd stays."""
        process = self._processes.pop()
        process.kill()
        process.wait()

    def _is_ready(self) -> bool:
        try:
            # Started anew, it says that it is ready before its custom resources are.
            ready = self.client()._send_authorized("GET", "/readyz", None, {}, 5.0).status == 200
            return ready and all(map(self._serves, self._kinds))
        except DataCacheError:
            return False

    def _serves(self, path: str) -> bool:
        try:
            return bool(self.client().call("GET", path))
        except DataCacheError:
            return False

    def _run(self, name: str, flags: Mapping[str, object], *more: str) -> subprocess.Popen[bytes]:
        folder = programs()
        assert folder, NOT_RUN
        command = [str(folder / name), *(f"--{flag}={value}" for flag, value in flags.items()), *more]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def access(self, user: str = ADMIN) -> ClusterAccess:
        """How `user` reaches it."""
        return ClusterAccess(
            self.url, token=self._users[user], ca_file=str(self.folder / "certificates/apiserver.crt")
        )

    def client(self, user: str = ADMIN) -> Client:
        """A client of its own for `user`."""
        return Client(self.access(user))

    def forget_volumes(self) -> None:
        """Delete every CacheVolume, CachePin, CachePrewarm and DataCache."""
        self.client().call("DELETE", VOLUMES)
        self.client().call("DELETE", DATA_CACHES)
        for pin in self.client().call("GET", PINS)["items"]:
            self.client().call("DELETE", pins_path(pin["metadata"]["namespace"], pin["metadata"]["name"]))
        for thing in self.client().call("GET", PREWARMS)["items"]:
            self.client().call(
                "DELETE",
                f"/apis/{GROUP}/{VERSION}/namespaces/{thing['metadata']['namespace']}/cacheprewarms/{thing['metadata']['name']}",
            )

    def kubeconfig(self, user: str = ADMIN) -> Path:
        """A kubeconfig file of `user`."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {"server": self.url, "certificate-authority": "certificates/apiserver.crt"},
                }
            ],
            "users": [{"name": user, "user": {"token": self._users[user]}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        }
        path = self.folder / f"{user}.kubeconfig"
        path.write_text(json.dumps(config))
        return path

    def kubectl(self, *words: str, stdin: object = None) -> str:
        """What kubectl prints as the administrator; AssertionError with its words where it fails.

        `stdin` is sent as JSON.
        """
        folder = programs()
        assert folder, NOT_RUN
        command = [
            str(folder / "kubectl"),
            f"--kubeconfig={self.kubeconfig()}",
            f"--cache-dir={self.folder}/kubectl",
            *words,
        ]
        done = subprocess.run(command, input=json.dumps(stdin), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
