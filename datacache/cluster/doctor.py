"""What is wrong with the driver in a cluster, and what to do about it: the API server, and what is installed there.

Reads alone; a right that is missing is a finding of its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from csi import __version__
from csi.cluster.api_server import ApiServer
from csi.errors import ClusterForbids, ClusterUnavailable, DataCacheError
from datacache.cluster.crd_fields import Fields, fields_of, known
from datacache.cluster.reading import Reading, Thing, has_condition, labels_of, plural
from datacache.findings import Finding, fault, ok, warning

_APPLY = "kubectl apply --server-side -f deploy/crds/"
_OLDEST, _ATTRIBUTES = (1, 31), (1, 34)
# As the chart has them (csidriver.yaml).
_DRIVER = {"attachRequired": False, "podInfoOnMount": True, "fsGroupPolicy": "None", "storageCapacity": False}
_MODES = {"Persistent", "Ephemeral"}
_CLOCK_OFF = 30.0
_MOST_NAMED = 3


@dataclass(frozen=True)
class Installed:
    """What is looked at: the driver of that name, and the namespace that its Helm release is in."""

    driver: str
    namespace: str


Check = Callable[[Reading, Installed], Iterator[Finding]]
Checks = tuple[tuple[str, Check], ...]


def examine(server: ApiServer, installed: Installed, checks: Sequence[tuple[str, Check]]) -> Iterator[Finding]:
    """All findings, as they are found: those of the API server, then of `checks` by their names. One that fails hides no other."""
    try:
        version = server.call("GET", "/version")
    except DataCacheError as error:
        fix = "look at KUBECONFIG and --context, at the network, and at who you are (kubectl auth whoami)"
        yield fault("API server", _what(error), fix)
        return
    yield api_version(version)
    reading = Reading(server)
    for name, check in checks:
        try:
            yield from check(reading, installed)
        except ClusterForbids as error:
            yield forbidden(name, error)
        except ClusterUnavailable as error:
            yield fault(name, _what(error), "look again when the API server answers")
        except DataCacheError as error:
            yield fault(name, str(error), "look at the API server's log")


def forbidden(check: str, error: ClusterForbids, fix: str = "have somebody give you that right: deploy/examples/doctor-rights.yaml") -> Finding:
    """What could not be looked at, and the right that is missing."""
    return warning(check, f"not looked at: {_what(error)}", fix)


def _what(error: DataCacheError) -> str:
    """Without the advice, which is for the driver's programs."""
    return str(error).rpartition("; ")[0] or str(error)


def api_version(found: Thing) -> Finding:
    """Whether the API server is new enough for the driver, and for all of it."""
    number = (int(found.get("major", 0)), int(re.sub(r"\D", "", str(found.get("minor", "0"))) or 0))
    shown = found.get("gitVersion", "of an unknown version")
    if number < _OLDEST:
        return fault("API server", f"it is {shown}; the driver needs {_OLDEST[0]}.{_OLDEST[1]} or newer", "upgrade the cluster")
    if number < _ATTRIBUTES:
        what = f"it is {shown}, which has no VolumeAttributesClasses: the performance of a volume cannot be changed"
        return warning("API server", what, f"upgrade the cluster to {_ATTRIBUTES[0]}.{_ATTRIBUTES[1]} for that")
    return ok("API server", f"{shown} answers")


def clock(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """How far this machine's clock is from the API server's, by the Date of an answer, which is in whole seconds."""
    off = time.time() - reading.server.clock()
    if abs(off) < _CLOCK_OFF:
        yield ok("clock", "this machine's is as the API server's")
        return
    what = f"this machine's clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the API server's"
    yield warning("clock", f"{what}: tokens and certificates are judged by both", "keep both by NTP; `date -u` tells which of the two is wrong")


def crds(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether the driver's custom resources are there, served, and as new as this command."""
    there = {thing["metadata"]["name"]: thing for thing in reading.all("apis", "apiextensions.k8s.io", "v1", "customresourcedefinitions")}
    wanted = known()
    wrong = [f"{name} {why}" for name, fields in wanted.items() if (why := _crd_wrong(there.get(name), fields))]
    if wrong:
        yield fault("CRDs", "; ".join(wrong), f"{_APPLY} (of this version, {__version__})")
    else:
        yield ok("CRDs", f"{plural(len(wanted), 'kind')}, with all fields of version {__version__}")


def _crd_wrong(thing: Thing | None, wanted: Fields) -> str:
    if thing is None:
        return "is missing"
    if not has_condition(thing, "Established"):
        return "is not established"
    served = fields_of(thing)
    if unserved := sorted(wanted.keys() - served.keys()):
        return f"does not serve {', '.join(unserved)}"
    lacks = [field for version, fields in wanted.items() for field in fields if field not in served[version]]
    if not lacks:
        return ""
    more = f" and {len(lacks) - _MOST_NAMED} more" if len(lacks) > _MOST_NAMED else ""
    return f"is older than this driver: it does not know {', '.join(lacks[:_MOST_NAMED])}{more}"


def csi_driver(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether Kubernetes knows the driver, and as it has to be known."""
    thing = reading.one("apis", "storage.k8s.io", "v1", "csidrivers", installed.driver)
    fix = "install the chart, or apply deploy/manifests/csidriver.yaml; where a field cannot change, delete the CSIDriver first"
    if thing is None:
        yield fault("CSIDriver", f"there is no CSIDriver {installed.driver}", fix)
        return
    spec = thing["spec"]
    wrong = [f"{key} is {_written(spec.get(key))}, it has to be {_written(value)}" for key, value in _DRIVER.items() if spec.get(key) != value]
    if missing := _MODES - set(spec.get("volumeLifecycleModes") or ()):
        wrong.append(f"volumeLifecycleModes lacks {', '.join(sorted(missing))}")
    yield fault("CSIDriver", "; ".join(wrong), fix) if wrong else ok("CSIDriver", f"{installed.driver} is known")


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def namespace(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether the namespace is there and lets privileged pods run."""
    name = installed.namespace
    thing = reading.one("api", "v1", "namespaces", name)
    if thing is None:
        yield fault("namespace", f"there is no namespace {name}", "kubectl apply -f deploy/namespace.yaml, or name another in --namespace")
        return
    level = labels_of(thing).get("pod-security.kubernetes.io/enforce", "")
    if level not in ("", "privileged"):
        what = f"{name} enforces Pod Security {level}, and node pods are privileged: they are refused"
        yield fault("namespace", what, f"kubectl label --overwrite namespace {name} pod-security.kubernetes.io/enforce=privileged")
    else:
        yield ok("namespace", f"{name} lets node pods run")


INSTALLATION: Checks = (("clock", clock), ("CRDs", crds), ("CSIDriver", csi_driver), ("namespace", namespace))
