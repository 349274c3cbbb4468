"""The door to the lab's API: the real kubectl, run on this machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.spaces import wait_for

ADMIN = "admin"
Object = dict[str, Any]
_CALL_SECONDS = 120.0
WAIT_SECONDS = 120.0


@dataclass(frozen=True)
class Kubectl:
    """kubectl with the identity of `kubeconfig`."""

    programs: Path
    kubeconfig: Path

    def argv(self, *words: str) -> list[str]:
        """The command line."""
        return [str(self.programs / "kubectl"), f"--kubeconfig={self.kubeconfig}", *words]

    def run(self, *words: str, input: str = "", seconds: float = _CALL_SECONDS) -> str:
        """Its standard output; AssertionError with its standard error where it fails."""
        done = subprocess.run(self.argv(*words), input=input, capture_output=True, text=True, timeout=seconds)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr.strip()}"
        return done.stdout

    def apply(self, *objects: Object) -> None:
        """Apply objects on the server's side."""
        whole = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.run("apply", "--server-side", "-f", "-", input=json.dumps(whole))

    def get(self, kind: str, name: str, namespace: str = "default") -> Object:
        """An object; empty where there is none."""
        found = self.run("-n", namespace, "get", kind, name, "--ignore-not-found", "-o", "json")
        return json.loads(found) if found else {}

    def list(self, kind: str, namespace: str = "default", selector: str = "") -> list[Object]:
        """The objects of a kind; of all namespaces where `namespace` is empty."""
        where = ["-n", namespace] if namespace else ["-A"]
        return list(json.loads(self.run("get", kind, *where, "-l", selector, "-o", "json"))["items"])

    def delete(self, kind: str, name: str, namespace: str = "default", *words: str) -> None:
        """Delete an object and wait until it is gone."""
        self.run("-n", namespace, "delete", kind, name, *words)

    def wait(
        self,
        kind: str,
        name: str,
        ready: Callable[[Object], object],
        namespace: str = "default",
        seconds: float = WAIT_SECONDS,
    ) -> Object:
        """The object once `ready(object)` is true.

        AssertionError with its status and events where that does not come.
        """
        last: list[Object] = [{}]

        def look() -> bool:
            last[0] = self.get(kind, name, namespace)
            return bool(last[0] and ready(last[0]))

        try:
            wait_for(look, seconds, f"{kind} {name}")
        except AssertionError as error:
            raise AssertionError(
                f"{error}\n{json.dumps(last[0].get('status'), indent=1)}\n{self.events(name, namespace)}"
            ) from None
        return last[0]

    def wait_running(self, pod: str, namespace: str = "default", seconds: float = WAIT_SECONDS) -> Object:
        """The pod once its containers are ready."""
        return self.wait("pod", pod, lambda found: condition(found, "Ready") == "True", namespace, seconds)

    def logs(self, pod: str, namespace: str = "default", *words: str) -> str:
        """What a pod's container wrote."""
        return self.run("-n", namespace, "logs", pod, *words)

    def exec(self, pod: str, argv: Sequence[str], namespace: str = "default") -> str:
        """Run a program in a pod; its standard output."""
        return self.run("-n", namespace, "exec", pod, "--", *argv)

    def events(self, name: str, namespace: str = "default") -> str:
        """The events of an object, a line each: reason and message."""
        found = self.run(
            "-n", namespace, "get", "events", "--field-selector", f"involvedObject.name={name}", "-o", "json"
        )
        return "\n".join(
            f"{event['reason']}: {event.get('message', '')}" for event in json.loads(found)["items"]
        )


def condition(thing: Object, kind: str) -> str:
    """An object's condition: True, False, Unknown, or empty where it has none."""
    found = [one["status"] for one in thing.get("status", {}).get("conditions", []) if one["type"] == kind]
    return str(found[0]) if found else ""
