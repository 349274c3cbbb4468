"""What is wrong with the driver in a cluster, and what to do about it: what is installed, whether it runs, and what nodes say.

Reads alone; a right that is missing is a finding of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from csi import __version__
from csi.cluster.api_server import ApiServer, path_of
from csi.errors import ClusterForbids, ClusterUnavailable, DataCacheError
from csi.registry import data_cache_object as data_caches
from csi.registry.custom_resource import GROUP, VERSION
from csi.topology import node_segments, volume_segments
from datacache.cluster_reading import Reading, Thing, plural, why_not_ready
from datacache.findings import Finding, Verdict, fault, ok, warning

_APPLY = "kubectl apply --server-side -f deploy/crds/"
_OLDEST, _ATTRIBUTES = (1, 31), (1, 34)
# A field that this version's CRD has and older ones do not, by the kind's plural.
_FIELDS = {
    f"cachevolumes.{GROUP}": ("spec", "properties", "pinNamespace"),
    f"cachepins.{GROUP}": ("spec", "properties", "pinned"),
    f"cacheprewarms.{GROUP}": ("spec", "properties", "caches", "items", "properties", "dataCache"),
    f"{data_caches.PLURAL}.{data_caches.GROUP}": ("spec", "properties", "dataSource"),
}
_DRIVER = {"attachRequired": False, "podInfoOnMount": True, "storageCapacity": False}
_MODES = {"Persistent", "Ephemeral"}
_LEASE_SECONDS, _CLOCK_WRONG, _CLOCK_OFF = 60.0, 300.0, 30.0


@dataclass(frozen=True)
class Installed:
    """What is looked at: the driver of that name, and the namespace that its Helm release is in."""

    driver: str
    namespace: str


Check = Callable[[Reading, Installed], Iterator[Finding]]


def examine(server: ApiServer, installed: Installed, more: Sequence[tuple[str, Check]] = ()) -> Iterator[Finding]:
    """All findings, as they are found: those of this module, then of `more` checks by their names. One that fails hides no other."""
    try:
        version = server.call("GET", "/version")
    except DataCacheError as error:
        fix = "look at KUBECONFIG and --context, at the network, and at who you are (kubectl auth whoami)"
        yield fault("API server", str(error), fix)
        return
    yield api_version(version)
    reading = Reading(server)
    for name, check in (*_CHECKS, *more):
        try:
            yield from check(reading, installed)
        except ClusterForbids as error:
            yield warning(name, str(error), "look as somebody who may read this, or give yourself the right")
        except ClusterUnavailable as error:
            yield fault(name, str(error), "look again when the API server answers")
        except DataCacheError as error:
            yield fault(name, str(error), "look at the API server's log")


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


def crds(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether the driver's custom resources are there, served, and as new as this command."""
    there = {thing["metadata"]["name"]: thing for thing in reading.all("apis", "apiextensions.k8s.io", "v1", "customresourcedefinitions")}
    wrong = [f"{name} {why}" for name, field in _FIELDS.items() if (why := _crd_wrong(there.get(name), field))]
    if wrong:
        yield fault("CRDs", "; ".join(wrong), f"{_APPLY} (of this version, {__version__})")
    else:
        yield ok("CRDs", f"all {len(_FIELDS)} are there")


def _crd_wrong(thing: Thing | None, field: tuple[str, ...]) -> str:
    if thing is None:
        return "is missing"
    if not any(one["type"] == "Established" and one["status"] == "True" for one in thing.get("status", {}).get("conditions") or ()):
        return "is not established"
    served = [version for version in thing["spec"]["versions"] if version["name"] == VERSION and version["served"]]
    if not served:
        return f"does not serve {VERSION}"
    part = served[0]["schema"]["openAPIV3Schema"]["properties"]
    for key in field:
        part = part.get(key) or {}
    return "" if part else f"is older than this driver (it does not know {field[-1]})"


def csi_driver(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether Kubernetes knows the driver, and as it has to be known."""
    thing = reading.one("apis", "storage.k8s.io", "v1", "csidrivers", installed.driver)
    fix = "install the chart, or apply deploy/manifests/csidriver.yaml; where a field cannot change, delete the CSIDriver first"
    if thing is None:
        yield fault("CSIDriver", f"there is no CSIDriver {installed.driver}", fix)
        return
    spec = thing["spec"]
    wrong = [f"{key} is {spec.get(key)}, it has to be {value}" for key, value in _DRIVER.items() if bool(spec.get(key)) != value]
    if missing := _MODES - set(spec.get("volumeLifecycleModes") or ()):
        wrong.append(f"volumeLifecycleModes lacks {', '.join(sorted(missing))}")
    yield fault("CSIDriver", "; ".join(wrong), fix) if wrong else ok("CSIDriver", f"{installed.driver} is known")


def namespace(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether the namespace is there and lets privileged pods run."""
    thing = reading.one("api", "v1", "namespaces", installed.namespace)
    if thing is None:
        yield fault(
            "namespace", f"there is no namespace {installed.namespace}", "kubectl apply -f deploy/namespace.yaml, or name another in --namespace"
        )
        return
    level = (thing["metadata"].get("labels") or {}).get("pod-security.kubernetes.io/enforce", "")
    if level not in ("", "privileged"):
        what = f"{installed.namespace} enforces Pod Security {level}, and node pods are privileged: they are refused"
        yield fault("namespace", what, f"kubectl label --overwrite namespace {installed.namespace} pod-security.kubernetes.io/enforce=privileged")
    else:
        yield ok("namespace", f"{installed.namespace} lets node pods run")


def controller(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether the controller plugin runs, and one of its replicas leads."""
    pods, owners = _pods(reading, installed, "controller"), _owners(reading, installed, "deployments", "controller")
    if not owners:
        yield fault("controller", f"there is no controller Deployment in {installed.namespace}", "install the chart (docs/install.md)")
        return
    yield _ready("controller", pods, f"kubectl -n {installed.namespace} logs deployment/... -c datacache-controller")
    yield from _versions("controller", owners)
    lease = reading.one("apis", "coordination.k8s.io", "v1", "namespaces", installed.namespace, "leases", f"{installed.driver.lower()}-controller")
    spec = (lease or {}).get("spec", {})
    silent = reading.server.clock() - _seconds(spec["renewTime"]) if spec.get("renewTime") else float("inf")
    if not spec.get("holderIdentity") or silent > _LEASE_SECONDS:
        what = "no replica leads" + (f"; the last one was heard {silent:.0f} s ago" if silent < float("inf") else "")
        yield fault("leader", what, "look at the controller's log: it has to get and update Leases of its namespace (RBAC)")
    else:
        yield ok("leader", f"{spec['holderIdentity']} leads")


def operator(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether the operator runs, where it is installed."""
    owners = _owners(reading, installed, "deployments", "operator")
    if owners:
        yield _ready("operator", _pods(reading, installed, "operator"), f"kubectl -n {installed.namespace} logs deployment/... -c datacache-operator")
        yield from _versions("operator", owners)


def node_plugins(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether every node plugin runs and has been taken by its kubelet."""
    owners = _owners(reading, installed, "daemonsets", "node")
    if not owners:
        yield fault("node plugins", f"there is no node DaemonSet in {installed.namespace}", "install the chart (docs/install.md)")
        return
    pods = _pods(reading, installed, "node")
    wanted = sum(owner.get("status", {}).get("desiredNumberScheduled", 0) for owner in owners)
    if len(pods) < wanted:
        words = next(filter(None, (reading.last_warning(installed.namespace, owner["metadata"]["uid"]) for owner in owners)), "nobody says why")
        yield fault("node plugins", f"{len(pods)} of {wanted} pods are there ({words})", "mend what the DaemonSet's events name")
    yield _ready(
        "node plugins", pods, f"kubectl -n {installed.namespace} logs POD -c datacache-node; datacache doctor in that pod tries the node itself"
    )
    yield from _versions("node plugins", owners)
    taken = {thing["metadata"]["name"] for thing in reading.all("apis", "storage.k8s.io", "v1", "csinodes") if _has_driver(thing, installed.driver)}
    for node in sorted({pod["spec"]["nodeName"] for pod in pods if not why_not_ready(pod)} - taken):
        words = _of_node(reading, node, "RegistrationRefused") or "its CSINode does not list the driver"
        yield fault(
            "registration", f"kubelet of {node} has not taken the driver: {words}", "kubeletDir has to be kubelet's folder; see kubelet's log"
        )
    if taken:
        yield ok("registration", f"{plural(len(taken), 'kubelet')} took {installed.driver}")


def mounting(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Which nodes run the plugin and can mount no image."""
    plugin, mounts = (next(iter(pair)) for pair in (node_segments(installed.driver, mounts=False), volume_segments(installed.driver)))
    nodes = [node for node in reading.all("api", "v1", "nodes") if plugin in (node["metadata"].get("labels") or {})]
    unable = [node["metadata"]["name"] for node in nodes if mounts not in node["metadata"]["labels"]]
    for name in unable:
        words = _of_node(reading, name, "CannotMountVolumes") or "the log of its plugin says why"
        yield warning("mounting", f"{name} can mount no volumes: {words}", "put the node right, then delete its plugin pod; others go on")
    able = len(nodes) - len(unable)
    if nodes and not able:
        yield fault("mounting", "no node can mount volumes", "see docs/install.md, what is needed")
    elif able:
        yield ok("mounting", f"{plural(able, 'node')} can mount volumes")


def clocks(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """How far each node's clock is from the API server's, by the lease that its kubelet renews every ten seconds."""
    renewed: dict[str, float] = {}
    leases = reading.all("apis", "coordination.k8s.io", "v1", "namespaces", "kube-node-lease", "leases")
    ready = {node["metadata"]["name"] for node in reading.all("api", "v1", "nodes") if _is_ready(node)}
    for lease in leases:
        if lease["metadata"]["name"] in ready and lease["spec"].get("renewTime"):
            renewed[lease["metadata"]["name"]] = _seconds(lease["spec"]["renewTime"])
    now, worst = reading.server.clock(), 0.0
    for name, when in sorted(renewed.items()):
        off = when - now
        worst = max(worst, abs(off))
        if abs(off) > _CLOCK_OFF + 30.0 * (off < 0):
            verdict = Verdict.FAULT if abs(off) > _CLOCK_WRONG else Verdict.WARNING
            what = f"the clock of {name} is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the API server's: signatures are judged by it"
            yield Finding("clocks", verdict, what, "keep the node's clock by NTP")
    if renewed and worst <= _CLOCK_OFF:
        yield ok("clocks", f"{plural(len(renewed), 'node')} as the API server")


_CHECKS: tuple[tuple[str, Check], ...] = (
    ("CRDs", crds),
    ("CSIDriver", csi_driver),
    ("namespace", namespace),
    ("controller", controller),
    ("operator", operator),
    ("node plugins", node_plugins),
    ("mounting", mounting),
    ("clocks", clocks),
)


def _owners(reading: Reading, installed: Installed, kind: str, component: str) -> list[Thing]:
    return reading.all("apis", "apps", "v1", "namespaces", installed.namespace, kind, selector=_selector(component))


def _pods(reading: Reading, installed: Installed, component: str) -> list[Thing]:
    found = reading.all("api", "v1", "namespaces", installed.namespace, "pods", selector=_selector(component))
    return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]


def _selector(component: str) -> str:
    return f"app.kubernetes.io/name=datacache-csi,app.kubernetes.io/component={component}"


def _ready(check: str, pods: Sequence[Thing], fix: str) -> Finding:
    wrong = [f"{pod['metadata']['name']}{_on(pod)}: {why}" for pod in pods if (why := why_not_ready(pod))]
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        return fault(check, f"{len(wrong)} of {plural(len(pods), 'pod')} not ready: {'; '.join(wrong[:5])}{more}", fix)
    return ok(check, f"{plural(len(pods), 'pod')} ready") if pods else fault(check, "there is no pod", fix)


def _on(pod: Thing) -> str:
    node = pod["spec"].get("nodeName", "")
    return f" on {node}" if node else ""


def _versions(check: str, owners: Sequence[Thing]) -> Iterator[Finding]:
    """A command of another version may know other messages and CRDs than what runs."""
    labelled = {(owner["metadata"].get("labels") or {}).get("app.kubernetes.io/version", __version__) for owner in owners}
    for version in sorted(labelled - {__version__}):
        yield warning(check, f"version {version} is installed, and this command is {__version__}", "look with the command of the same version")


def _has_driver(thing: Thing, driver: str) -> bool:
    return any(one["name"] == driver for one in thing["spec"].get("drivers") or ())


def _of_node(reading: Reading, node: str, reason: str) -> str:
    """What the node's plugin has said of it; Events of nodes are in the namespace default."""
    query = {"fieldSelector": f"involvedObject.kind=Node,involvedObject.name={node},reason={reason}"}
    events = reading.server.call("GET", path_of("api", "v1", "namespaces", "default", "events"), query)["items"]
    return str(events[-1].get("message", "")) if events else ""


def _is_ready(node: Thing) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in node.get("status", {}).get("conditions") or ())


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
