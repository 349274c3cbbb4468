"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler, in a space of their own."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.apiserver import AUDIT_POLICY
from tests.cluster import network
from tests.cluster.authority import Authority
from tests.cluster.kubectl import ADMIN, Kubectl
from tests.cluster.network import Network
from tests.cluster.spaces import Daemon, Space, wait_for

_ETCD = "http://127.0.0.1:2379"
_START_SECONDS = 90.0
# kube-apiserver reads its users once.
MOST_NODES = 4
_SCHEDULER, _MANAGER = "system:kube-scheduler", "system:kube-controller-manager"


@dataclass
class ControlPlane:
    """The control plane in `space`, which is up and joined; `programs` is the folder of the programs."""

    space: Space
    network: Network
    programs: Path
    authority: Authority
    daemons: list[Daemon] = field(default_factory=list)

    @property
    def server(self) -> str:
        """Where the API server is, for nodes and for this machine."""
        return f"https://{self.network.control}"

    @property
    def audit_log(self) -> Path:
        """The API server's audit log: one Event of audit.k8s.io/v1 a line, in JSON."""
        return self.space.folder / "audit.log"

    def start(self) -> Kubectl:
        """Start it; the door for the administrator once it answers."""
        self._identities()
        self._daemon("etcd", _etcd(self.space.folder))
        self._daemon("kube-apiserver", self._apiserver())
        kubectl = Kubectl(self.programs, self.authority.kubeconfig(ADMIN, self.server))
        wait_for(lambda: self._ready(kubectl), _START_SECONDS, f"kube-apiserver:\n{self.daemons[-1].log}")
        self._daemon("kube-controller-manager", self._manager())
        self._daemon(
            "kube-scheduler", [*self._client(_SCHEDULER), "--leader-elect=false", "--bind-address=127.0.0.1"]
        )
        # No pod is admitted before its namespace has this one.
        wait_for(
            lambda: self._has_account(kubectl), _START_SECONDS, "the service account of the namespace default"
        )
        return kubectl

    def check(self) -> None:
        """AssertionError where one of the programs has ended."""
        for daemon in self.daemons:
            daemon.check()

    def _daemon(self, name: str, flags: list[str]) -> None:
        self.daemons.append(self.space.daemon(name, [str(self.programs / name), *flags]))

    def _ready(self, kubectl: Kubectl) -> bool:
        self.check()
        with suppress(AssertionError):
            return kubectl.run("get", "--raw", "/readyz") == "ok"
        return False

    def _has_account(self, kubectl: Kubectl) -> bool:
        self.check()
        return "default" in kubectl.run("get", "serviceaccounts", "-o", "name")

    def _identities(self) -> None:
        self.authority.user(ADMIN, ["system:masters"])
        for user in (_SCHEDULER, _MANAGER):
            self.authority.user(user)
        for number in range(1, MOST_NODES + 1):
            self.authority.user(f"system:node:node-{number}", ["system:nodes"])
        self.authority.certify(
            "apiserver", "/CN=kube-apiserver", [self.network.control, network.KUBERNETES, "127.0.0.1"]
        )
        self.authority.certify("apiserver-to-kubelet", "/O=system:masters/CN=kube-apiserver")
        self.authority.signing_key("service-accounts")

    def _client(self, user: str) -> list[str]:
        path = self.authority.kubeconfig(user, self.server)
        return [
            f"--{what}={path}"
            for what in ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
        ]

    def _apiserver(self) -> list[str]:
        policy = self.space.folder / "audit-policy.json"
        policy.write_text(json.dumps(AUDIT_POLICY))
        key, certificate = self.authority.key, self.authority.certificate
        flags = {
            "etcd-servers": _ETCD,
            "secure-port": 443,
            "advertise-address": self.network.control,
            "endpoint-reconciler-type": "none",
            "allow-privileged": "true",
            "service-cluster-ip-range": network.SERVICES,
            # Webhooks are asked at their pods: there is no kube-proxy behind a Service's address.
            "enable-aggregator-routing": "true",
            "tls-cert-file": certificate("apiserver"),
            "tls-private-key-file": key("apiserver"),
            "client-ca-file": certificate("ca"),
            "requestheader-client-ca-file": certificate("ca"),
            "requestheader-allowed-names": "aggregator",
            "kubelet-client-certificate": certificate("apiserver-to-kubelet"),
            "kubelet-client-key": key("apiserver-to-kubelet"),
            "kubelet-preferred-address-types": "InternalIP",
            "token-auth-file": self.authority.write_tokens(),
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": key("service-accounts"),
            "service-account-signing-key-file": key("service-accounts"),
            "audit-policy-file": policy,
            "audit-log-path": self.audit_log,
        }
        return [f"--{name}={value}" for name, value in flags.items()]

    def _manager(self) -> list[str]:
        keys = [
            f"--root-ca-file={self.authority.certificate('ca')}",
            f"--service-account-private-key-file={self.authority.key('service-accounts')}",
            "--use-service-account-credentials",
        ]
        # A node that is switched off is seen to be so in a quarter of a minute.
        return [
            *self._client(_MANAGER),
            *keys,
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--node-monitor-grace-period=16s",
        ]


def _etcd(folder: Path) -> list[str]:
    peers = "http://127.0.0.1:2380"
    clients = [f"--listen-client-urls={_ETCD}", f"--advertise-client-urls={_ETCD}"]
    members = [
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
    ]
    return [f"--data-dir={folder / 'etcd'}", *clients, *members, "--unsafe-no-fsync"]
