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
from datacache.cluster.crd_fields import Fields, list_crd_fields, load_known_fields
from datacache.cluster.reading import ClusterReader, KubeObject, format_count, get_labels, has_condition
from datacache.findings import Finding, fault_finding, ok_finding, warning_finding

_APPLY = "kubectl apply --server-side -f deploy/crds/"
_OLDEST, _ATTRIBUTES = (1, 31), (1, 34)
# As the chart has them (csidriver.yaml).
_DRIVER = {"attachRequired": False, "podInfoOnMount": True, "fsGroupPolicy": "None", "storageCapacity": False}
_MODES = {"Persistent", "Ephemeral"}
_MAX_CLOCK_SKEW = 30.0
_MAX_NAMED = 3


@dataclass(frozen=True)
class InstalledDriver:
    """What is looked at: the driver of that name, and the namespace that its Helm release is in."""

    driver: str
    namespace: str


Check = Callable[[ClusterReader, InstalledDriver], Iterator[Finding]]
Checks = tuple[tuple[str, Check], ...]


def run_checks(
    server: ApiServer, installed: InstalledDriver, checks: Sequence[tuple[str, Check]]
) -> Iterator[Finding]:
    """All findings, as they are found: those of the API server, then of `checks` by their names. One that fails hides no other."""
    try:
        version = server.call("GET", "/version")
    except DataCacheError as error:
        fix = "look at KUBECONFIG and --context, at the network, and at who you are (kubectl auth whoami)"
        yield fault_finding("API server", _describe_error(error), fix)
        return
    yield check_api_version(version)
    reading = ClusterReader(server)
    for name, check in checks:
        try:
            yield from check(reading, installed)
        except ClusterForbids as error:
            yield forbidden_finding(name, error)
        except ClusterUnavailable as error:
            yield fault_finding(name, _describe_error(error), "look again when the API server answers")
        except DataCacheError as error:
            yield fault_finding(name, str(error), "look at the API server's log")


def forbidden_finding(
    check: str,
    error: ClusterForbids,
    fix: str = "have somebody give you that right: deploy/examples/doctor-rights.yaml",
) -> Finding:
    """What could not be looked at, and the right that is missing."""
    return warning_finding(check, f"not looked at: {_describe_error(error)}", fix)


def _describe_error(error: DataCacheError) -> str:
    """Without the advice, which is for the driver's programs."""
    return str(error).rpartition("; ")[0] or str(error)


def check_api_version(found: KubeObject) -> Finding:
    """Whether the API server is new enough for the driver, and for all of it."""
    number = (int(found.get("major", 0)), int(re.sub(r"\D", "", str(found.get("minor", "0"))) or 0))
    shown = found.get("gitVersion", "of an unknown version")
    if number < _OLDEST:
        return fault_finding(
            "API server",
            f"it is {shown}; the driver needs {_OLDEST[0]}.{_OLDEST[1]} or newer",
            "upgrade the cluster",
        )
    if number < _ATTRIBUTES:
        what = f"it is {shown}, which has no VolumeAttributesClasses: the performance of a volume cannot be changed"
        return warning_finding(
            "API server", what, f"upgrade the cluster to {_ATTRIBUTES[0]}.{_ATTRIBUTES[1]} for that"
        )
    return ok_finding("API server", f"{shown} answers")


def check_clock(reading: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """How far this machine's clock is from the API server's, by the Date of an answer, which is in whole seconds."""
    off = time.time() - reading.server.read_clock()
    if abs(off) < _MAX_CLOCK_SKEW:
        yield ok_finding("clock", "this machine's is as the API server's")
        return
    what = f"this machine's clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the API server's"
    yield warning_finding(
        "clock",
        f"{what}: tokens and certificates are judged by both",
        "keep both by NTP; `date -u` tells which of the two is wrong",
    )


def check_crds(reading: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Whether the driver's custom resources are there, served, and as new as this command."""
    there = {
        thing["metadata"]["name"]: thing
        for thing in reading.list_objects("apis", "apiextensions.k8s.io", "v1", "customresourcedefinitions")
    }
    wanted = load_known_fields()
    wrong = [
        f"{name} {why}"
        for name, fields in wanted.items()
        if (why := _explain_bad_crd(there.get(name), fields))
    ]
    if wrong:
        yield fault_finding("CRDs", "; ".join(wrong), f"{_APPLY} (of this version, {__version__})")
    else:
        yield ok_finding(
            "CRDs", f"{format_count(len(wanted), 'kind')}, with all fields of version {__version__}"
        )


def _explain_bad_crd(thing: KubeObject | None, wanted: Fields) -> str:
    if thing is None:
        return "is missing"
    if not has_condition(thing, "Established"):
        return "is not established"
    served = list_crd_fields(thing)
    if unserved := sorted(wanted.keys() - served.keys()):
        return f"does not serve {', '.join(unserved)}"
    lacks = [field for version, fields in wanted.items() for field in fields if field not in served[version]]
    if not lacks:
        return ""
    more = f" and {len(lacks) - _MAX_NAMED} more" if len(lacks) > _MAX_NAMED else ""
    return f"is older than this driver: it does not know {', '.join(lacks[:_MAX_NAMED])}{more}"


def check_csi_driver(reading: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Whether Kubernetes knows the driver, and as it has to be known."""
    thing = reading.get_object("apis", "storage.k8s.io", "v1", "csidrivers", installed.driver)
    fix = "install the chart, or apply deploy/manifests/csidriver.yaml; where a field cannot change, delete the CSIDriver first"
    if thing is None:
        yield fault_finding("CSIDriver", f"there is no CSIDriver {installed.driver}", fix)
        return
    spec = thing["spec"]
    wrong = [
        f"{key} is {_format_value(spec.get(key))}, it has to be {_format_value(value)}"
        for key, value in _DRIVER.items()
        if spec.get(key) != value
    ]
    if missing := _MODES - set(spec.get("volumeLifecycleModes") or ()):
        wrong.append(f"volumeLifecycleModes lacks {', '.join(sorted(missing))}")
    yield (
        fault_finding("CSIDriver", "; ".join(wrong), fix)
        if wrong
        else ok_finding("CSIDriver", f"{installed.driver} is known")
    )


def _format_value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_namespace(reading: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Whether the namespace is there and lets privileged pods run."""
    name = installed.namespace
    thing = reading.get_object("api", "v1", "namespaces", name)
    if thing is None:
        yield fault_finding(
            "namespace",
            f"there is no namespace {name}",
            "kubectl apply -f deploy/namespace.yaml, or name another in --namespace",
        )
        return
    level = get_labels(thing).get("pod-security.kubernetes.io/enforce", "")
    if level not in ("", "privileged"):
        what = f"{name} enforces Pod Security {level}, and node pods are privileged: they are refused"
        yield fault_finding(
            "namespace",
            what,
            f"kubectl label --overwrite namespace {name} pod-security.kubernetes.io/enforce=privileged",
        )
    else:
        yield ok_finding("namespace", f"{name} lets node pods run")


INSTALLATION: Checks = (
    ("clock", check_clock),
    ("CRDs", check_crds),
    ("CSIDriver", check_csi_driver),
    ("namespace", check_namespace),
)
