"""Checks of the driver in a cluster: the API server, and the installed objects.

All checks only read; a missing permission is a finding of its own.
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
# Oldest supported Kubernetes, and the first with VolumeAttributesClasses.
_MIN_KUBERNETES, _ATTRIBUTES_KUBERNETES = (1, 31), (1, 34)
# As in the chart (csidriver.yaml).
_EXPECTED_CSI_DRIVER = {
    "attachRequired": False,
    "podInfoOnMount": True,
    "fsGroupPolicy": "None",
    "storageCapacity": False,
}
_MODES = {"Persistent", "Ephemeral"}
_MAX_CLOCK_SKEW = 30.0
_MAX_NAMED = 3


@dataclass(frozen=True)
class InstalledDriver:
    """The installation to check: name of the driver, and the namespace of its Helm release."""

    driver: str
    namespace: str


Check = Callable[[ClusterReader, InstalledDriver], Iterator[Finding]]
Checks = tuple[tuple[str, Check], ...]


def run_checks(
    server: ApiServer, installed: InstalledDriver, checks: Sequence[tuple[str, Check]]
) -> Iterator[Finding]:
    """Run all checks and yield their findings: those of the API server, then of `checks` in order.

    A failing check hides no other.
    """
    try:
        version = server.call("GET", "/version")
    except DataCacheError as error:
        fix = "check KUBECONFIG and --context, the network, and who you are (kubectl auth whoami)"
        yield fault_finding("API server", _describe_error(error), fix)
        return
    yield check_api_version(version)
    reader = ClusterReader(server)
    for name, check in checks:
        try:
            yield from check(reader, installed)
        except ClusterForbids as error:
            yield forbidden_finding(name, error)
        except ClusterUnavailable as error:
            yield fault_finding(name, _describe_error(error), "try again when the API server answers")
        except DataCacheError as error:
            yield fault_finding(name, str(error), "see the API server's log")


def forbidden_finding(
    check: str,
    error: ClusterForbids,
    fix: str = "ask for this permission: deploy/examples/doctor-rights.yaml",
) -> Finding:
    """Build the finding of a check that lacks a permission."""
    return warning_finding(check, f"not checked: {_describe_error(error)}", fix)


def _describe_error(error: DataCacheError) -> str:
    """Return the message without its advice, which is meant for the driver's programs."""
    return str(error).rpartition("; ")[0] or str(error)


def check_api_version(version: KubeObject) -> Finding:
    """Check that the API server is new enough for the driver, and for all its features."""
    number = (int(version.get("major", 0)), int(re.sub(r"\D", "", str(version.get("minor", "0"))) or 0))
    git_version = version.get("gitVersion", "of an unknown version")
    if number < _MIN_KUBERNETES:
        return fault_finding(
            "API server",
            f"it is {git_version}; the driver needs {_MIN_KUBERNETES[0]}.{_MIN_KUBERNETES[1]} or newer",
            "upgrade the cluster",
        )
    if number < _ATTRIBUTES_KUBERNETES:
        what = (
            f"it is {git_version}, which has no VolumeAttributesClasses: "
            "the performance of a volume cannot be changed"
        )
        return warning_finding(
            "API server",
            what,
            "upgrade the cluster to {}.{} for that".format(*_ATTRIBUTES_KUBERNETES),
        )
    return ok_finding("API server", f"{git_version} answers")


def check_clock(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Compare this machine's clock with the API server's. The Date header of an answer has whole seconds."""
    offset = time.time() - reader.server.read_clock()
    if abs(offset) < _MAX_CLOCK_SKEW:
        yield ok_finding("clock", "this machine's clock agrees with the API server's")
        return
    what = (
        f"this machine's clock is {abs(offset):.0f} s "
        f"{'ahead of' if offset > 0 else 'behind'} the API server's"
    )
    yield warning_finding(
        "clock",
        f"{what}: tokens and certificates are judged by both",
        "synchronize both by NTP; `date -u` tells which of the two is wrong",
    )


def check_crds(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Check that the driver's custom resources exist, are served, and are as new as this command."""
    crds = {
        crd["metadata"]["name"]: crd
        for crd in reader.list_objects("apis", "apiextensions.k8s.io", "v1", "customresourcedefinitions")
    }
    known_fields = load_known_fields()
    wrong = [
        f"{name} {why}"
        for name, fields in known_fields.items()
        if (why := _explain_bad_crd(crds.get(name), fields))
    ]
    if wrong:
        yield fault_finding("CRDs", "; ".join(wrong), f"{_APPLY} (of this version, {__version__})")
    else:
        yield ok_finding(
            "CRDs", f"{format_count(len(known_fields), 'kind')}, with all fields of version {__version__}"
        )


def _explain_bad_crd(crd: KubeObject | None, known_fields: Fields) -> str:
    if crd is None:
        return "is missing"
    if not has_condition(crd, "Established"):
        return "is not established"
    served = list_crd_fields(crd)
    if unserved := sorted(known_fields.keys() - served.keys()):
        return f"does not serve {', '.join(unserved)}"
    missing = [
        field for version, fields in known_fields.items() for field in fields if field not in served[version]
    ]
    if not missing:
        return ""
    more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
    return f"is older than this driver: it does not know {', '.join(missing[:_MAX_NAMED])}{more}"


def check_csi_driver(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Check that the CSIDriver exists, with the required fields."""
    csi_driver = reader.get_object("apis", "storage.k8s.io", "v1", "csidrivers", installed.driver)
    fix = (
        "install the chart, or apply deploy/manifests/csidriver.yaml; "
        "where a field cannot change, delete the CSIDriver first"
    )
    if csi_driver is None:
        yield fault_finding("CSIDriver", f"there is no CSIDriver {installed.driver}", fix)
        return
    spec = csi_driver["spec"]
    wrong = [
        f"{key} is {_format_value(spec.get(key))}, it must be {_format_value(value)}"
        for key, value in _EXPECTED_CSI_DRIVER.items()
        if spec.get(key) != value
    ]
    if missing := _MODES - set(spec.get("volumeLifecycleModes") or ()):
        wrong.append(f"volumeLifecycleModes lacks {', '.join(sorted(missing))}")
    yield (
        fault_finding("CSIDriver", "; ".join(wrong), fix)
        if wrong
        else ok_finding("CSIDriver", f"{installed.driver} is installed")
    )


def _format_value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_namespace(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Check that the namespace exists and admits privileged pods."""
    name = installed.namespace
    namespace = reader.get_object("api", "v1", "namespaces", name)
    if namespace is None:
        yield fault_finding(
            "namespace",
            f"there is no namespace {name}",
            "kubectl apply -f deploy/namespace.yaml, or name another in --namespace",
        )
        return
    level = get_labels(namespace).get("pod-security.kubernetes.io/enforce", "")
    if level not in ("", "privileged"):
        what = f"{name} enforces Pod Security {level}, but node pods are privileged, so they are rejected"
        yield fault_finding(
            "namespace",
            what,
            f"kubectl label --overwrite namespace {name} pod-security.kubernetes.io/enforce=privileged",
        )
    else:
        yield ok_finding("namespace", f"{name} admits node pods")


INSTALLATION: Checks = (
    ("clock", check_clock),
    ("CRDs", check_crds),
    ("CSIDriver", check_csi_driver),
    ("namespace", check_namespace),
)
