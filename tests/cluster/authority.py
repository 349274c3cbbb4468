"""Who is who in the lab: a certificate authority, and tokens of the cluster's own users."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30".split()


@dataclass
class Authority:
    """Makes keys, certificates and kubeconfigs in `folder`, which only root reads."""

    folder: Path
    _tokens: dict[str, tuple[str, Sequence[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(mode=0o700)
        _openssl(
            "req",
            "-x509",
            *_KEY,
            "-subj",
            "/CN=lab",
            "-keyout",
            self.key("ca"),
            "-out",
            self.certificate("ca"),
        )

    def key(self, name: str) -> Path:
        """The private key of `name` (PEM)."""
        return self.folder / f"{name}.key"

    def certificate(self, name: str) -> Path:
        """The certificate of `name` (PEM)."""
        return self.folder / f"{name}.crt"

    def certify(self, name: str, subject: str, addresses: Sequence[str] = ()) -> None:
        """A key and a certificate for `subject` (as /O=x/CN=y), valid for these IP addresses."""
        more = (
            ["-addext", "subjectAltName=" + ",".join(f"IP:{address}" for address in addresses)]
            if addresses
            else []
        )
        signed: list[str | Path] = ["-CA", self.certificate("ca"), "-CAkey", self.key("ca")]
        _openssl(
            "req",
            "-x509",
            *_KEY,
            *signed,
            "-subj",
            subject,
            *more,
            "-keyout",
            self.key(name),
            "-out",
            self.certificate(name),
        )

    def signing_key(self, name: str) -> None:
        """A key without a certificate, as for the tokens of service accounts."""
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", self.key(name))

    def user(self, name: str, groups: Sequence[str] = ()) -> str:
        """The token of a user; its own from now on."""
        token = secrets.token_hex(16)
        self._tokens[name] = (token, groups)
        return token

    def write_tokens(self) -> Path:
        """What kube-apiserver reads as --token-auth-file: one line a user so far,
        `token,user,uid,"groups"`."""
        lines = [
            f'{token},{name},{name},"{",".join(groups)}"\n' for name, (token, groups) in self._tokens.items()
        ]
        (self.folder / "tokens.csv").write_text("".join(lines))
        return self.folder / "tokens.csv"

    def kubeconfig(self, name: str, server: str) -> Path:
        """A kubeconfig of a user."""
        cluster = {"server": server, "certificate-authority": str(self.certificate("ca"))}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": name, "user": {"token": self._tokens[name][0]}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": name}}],
        }
        path = self.folder / f"{name.replace(':', '-')}.kubeconfig"
        path.write_text(json.dumps(config, indent=1))
        return path


def _openssl(*words: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, f"openssl {words[0]}: {done.stderr.strip()}"
