"""Checks of the driver's programs in a cluster: controller, operator, node plugins, and nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from csi import __version__
from csi.topology import node_segments, volume_segments
from datacache.cluster.doctor import Checks, InstalledDriver
from datacache.cluster.pod_state import explain_not_ready, list_recent_crashes
from datacache.cluster.reading import (
    ClusterReader,
    KubeObject,
    format_count,
    get_labels,
    has_condition,
    parse_seconds,
)
from datacache.findings import Finding, Verdict, fault_finding, limit_findings, ok_finding, warning_finding
from node_plugin.topology import CANNOT_MOUNT_REASON, REGISTRATION_REFUSED_REASON

# Seconds: a leader silent for longer has stopped; clocks off by more make signatures fail, or are worth a
# warning.
_LEASE_SECONDS, _CLOCK_FAULT_SECONDS, _CLOCK_WARNING_SECONDS = 60.0, 300.0, 30.0
# A kubelet renews its lease every 10 s, and its node stays Ready for another 40 s without.
_MAX_LEASE_AGE = 30.0
_MAX_LISTED_PODS = 5
_INSTALL_FIX = "install the chart (docs/install.md), or name its namespace in --namespace"
_VERSION = re.compile(r"v?(\d+\.\d+\.\d+\S*)")


def check_controller(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Check that the controller plugin runs in as many pods as its Deployment wants."""
    owners = _list_owners(reader, installed, "deployments", "controller")
    if not owners:
        yield fault_finding(
            "controller", f"there is no controller Deployment in {installed.namespace}", _INSTALL_FIX
        )
        return
    pods, wanted = (
        _list_pods(reader, installed, "controller"),
        sum(owner["spec"].get("replicas", 1) for owner in owners),
    )
    if len(pods) < wanted:
        yield fault_finding(
            "controller",
            f"{len(pods)} of {wanted} pods exist: {_explain_refused_pods(owners)}",
            "fix what it names, or scale the Deployment",
        )
    yield from _pod_findings(reader, installed, "controller", pods)
    yield from _version_findings("controller", owners, pods)


def check_leader(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Check that one replica of the controller plugin leads, and has renewed its lease lately."""
    path = (
        "apis",
        "coordination.k8s.io",
        "v1",
        "namespaces",
        installed.namespace,
        "leases",
        f"{installed.driver.lower()}-controller",
    )
    spec = (reader.get_object(*path) or {}).get("spec", {})
    silent_for = (
        reader.server.read_clock() - parse_seconds(spec["renewTime"])
        if spec.get("renewTime")
        else float("inf")
    )
    if silent_for <= _LEASE_SECONDS:
        if spec.get("holderIdentity"):
            yield ok_finding("leader", f"{spec['holderIdentity']} leads")
        else:
            what = (
                "no replica leads at the moment; "
                f"the last one released the lease {max(0.0, silent_for):.0f} s ago"
            )
            yield warning_finding(
                "leader", what, "check again in a minute: another one takes over, as in every upgrade"
            )
        return
    what = "no replica leads" + (
        f"; the last one renewed the lease {silent_for:.0f} s ago" if silent_for < float("inf") else ""
    )
    yield fault_finding(
        "leader",
        what,
        "see the controller's log: it must be allowed to get and update Leases of its namespace (RBAC)",
    )


def check_operator(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Check that the operator runs, if it is installed."""
    owners, pods = (
        _list_owners(reader, installed, "deployments", "operator"),
        _list_pods(reader, installed, "operator"),
    )
    if owners and not pods:
        yield fault_finding("operator", f"it has no pod: {_explain_refused_pods(owners)}", _INSTALL_FIX)
    if owners:
        yield from _pod_findings(reader, installed, "operator", pods)
        yield from _version_findings("operator", owners, pods)


def check_node_plugins(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Check that the plugin runs on every node that its DaemonSet selects."""
    owners = _list_owners(reader, installed, "daemonsets", "node")
    if not owners:
        yield fault_finding(
            "node plugins", f"there is no node DaemonSet in {installed.namespace}", _INSTALL_FIX
        )
        return
    pods, wanted = (
        _list_pods(reader, installed, "node"),
        sum(owner.get("status", {}).get("desiredNumberScheduled", 0) for owner in owners),
    )
    if len(pods) < wanted:
        reason = next(
            filter(None, (reader.describe_warnings(owner, "DaemonSet") for owner in owners)),
            "no Event says why",
        )
        yield fault_finding(
            "node plugins",
            f"{len(pods)} of {wanted} pods exist: {reason}",
            "fix what the DaemonSet's Events name",
        )
    yield from _pod_findings(reader, installed, "node", pods)
    yield from _version_findings("node plugins", owners, pods)


def check_registration(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Check that kubelet has registered the driver on every node whose plugin is ready."""
    plugins = {
        pod["spec"]["nodeName"]
        for pod in _list_pods(reader, installed, "node")
        if has_condition(pod, "Ready")
    }
    registered = {
        csi_node["metadata"]["name"]
        for csi_node in reader.list_objects("apis", "storage.k8s.io", "v1", "csinodes")
        if _has_driver(csi_node, installed.driver)
    }
    missing = sorted(plugins - registered)
    yield from limit_findings(
        "registration", (_unregistered_finding(reader, name) for name in missing), len(missing)
    )
    if plugins and not missing:
        yield ok_finding(
            "registration", f"{format_count(len(plugins), 'kubelet')} registered {installed.driver}"
        )


def _unregistered_finding(reader: ClusterReader, name: str) -> Finding:
    reason = (
        reader.describe_warnings(_node_object(name), "Node", REGISTRATION_REFUSED_REASON)
        or "its CSINode does not list the driver"
    )
    fix = "kubeletDir of the chart must be kubelet's folder (--root-dir) on that node; see kubelet's log"
    return fault_finding("registration", f"kubelet of {name} has not registered the driver: {reason}", fix)


def check_mounting(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Check which nodes run the plugin but cannot mount images."""
    plugin, mounts = (
        next(iter(pair))
        for pair in (node_segments(installed.driver, can_mount=False), volume_segments(installed.driver))
    )
    nodes = [node for node in reader.list_objects("api", "v1", "nodes") if plugin in get_labels(node)]
    unable = [node for node in nodes if mounts not in get_labels(node)]
    able = len(nodes) - len(unable)
    yield from limit_findings(
        "mounting", (_cannot_mount_finding(reader, node) for node in unable), len(unable)
    )
    if nodes and not able:
        yield fault_finding(
            "mounting", "no node can mount volumes", "see the requirements in docs/install.md"
        )
    elif able:
        yield ok_finding("mounting", f"{format_count(able, 'node')} can mount volumes")


def _cannot_mount_finding(reader: ClusterReader, node: KubeObject) -> Finding:
    reason = reader.describe_warnings(node, "Node", CANNOT_MOUNT_REASON) or "the log of its plugin says why"
    what = f"{node['metadata']['name']} can mount no volumes: {reason}"
    return warning_finding(
        "mounting", what, "fix the node, then delete its plugin pod; other nodes are not affected"
    )


def check_node_clocks(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Compare each node's clock with the API server's, by the lease that its kubelet renews every 10 s."""
    ready = {
        node["metadata"]["name"]
        for node in reader.list_objects("api", "v1", "nodes")
        if has_condition(node, "Ready")
    }
    leases = [
        lease
        for lease in reader.list_objects(
            "apis", "coordination.k8s.io", "v1", "namespaces", "kube-node-lease", "leases"
        )
        if lease["metadata"]["name"] in ready and lease["spec"].get("renewTime")
    ]
    now = reader.server.read_clock()
    wrong = [
        finding
        for lease in leases
        if (
            finding := _clock_finding(
                lease["metadata"]["name"], parse_seconds(lease["spec"]["renewTime"]) - now
            )
        )
    ]
    yield from limit_findings("clocks", iter(wrong), len(wrong))
    if leases and not wrong:
        yield ok_finding("clocks", f"{format_count(len(leases), 'node')} agree with the API server")


def _clock_finding(node: str, offset: float) -> Finding | None:
    # The last renewal may be _MAX_LEASE_AGE old, which looks like a clock that is behind.
    if -_CLOCK_WARNING_SECONDS - _MAX_LEASE_AGE < offset < _CLOCK_WARNING_SECONDS:
        return None
    verdict = Verdict.FAULT if abs(offset) > _CLOCK_FAULT_SECONDS else Verdict.WARNING
    what = (
        f"the clock of {node} is {abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} "
        "the API server's: signatures depend on it"
    )
    return Finding("clocks", verdict, what, "synchronize the node's clock by NTP")


PROGRAMS: Checks = (
    ("controller", check_controller),
    ("leader", check_leader),
    ("operator", check_operator),
    ("node plugins", check_node_plugins),
    ("registration", check_registration),
    ("mounting", check_mounting),
    ("clocks", check_node_clocks),
)


def _list_owners(
    reader: ClusterReader, installed: InstalledDriver, kind: str, component: str
) -> list[KubeObject]:
    return reader.list_objects(
        "apis", "apps", "v1", "namespaces", installed.namespace, kind, labels=_label_selector(component)
    )


def _list_pods(reader: ClusterReader, installed: InstalledDriver, component: str) -> list[KubeObject]:
    pods = reader.list_objects(
        "api", "v1", "namespaces", installed.namespace, "pods", labels=_label_selector(component)
    )
    return [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]


def _label_selector(component: str) -> str:
    return f"app.kubernetes.io/name=datacache-csi,app.kubernetes.io/component={component}"


def _explain_refused_pods(owners: Sequence[KubeObject]) -> str:
    """Explain why a Deployment has fewer pods than it should."""
    failures = [
        condition
        for owner in owners
        for condition in owner.get("status", {}).get("conditions") or ()
        if condition["type"] == "ReplicaFailure"
    ]
    return str(failures[0].get("message", "")) if failures else "no condition of the Deployment says why"


def _pod_findings(
    reader: ClusterReader, installed: InstalledDriver, component: str, pods: Sequence[KubeObject]
) -> Iterator[Finding]:
    """Check that the pods are ready, and have not restarted within an hour."""
    check = {"controller": "controller", "node": "node plugins", "operator": "operator"}[component]
    logs = f"kubectl -n {installed.namespace} logs POD -c datacache-{component}"
    not_ready = [
        f"{_describe_placement(pod)}: {reason}" for pod in pods if (reason := explain_not_ready(reader, pod))
    ]
    if not_ready:
        fix = (
            f"{logs} (--previous for what ended), "
            f"kubectl -n {installed.namespace} describe pod POD; docs/troubleshooting.md"
        )
        yield fault_finding(
            check,
            f"{len(not_ready)} of {format_count(len(pods), 'pod')} not ready: {_join_few(not_ready)}",
            fix,
        )
    elif pods:
        yield ok_finding(check, f"{format_count(len(pods), 'pod')} ready")
    now = reader.server.read_clock()
    restarts = [
        f"{_describe_placement(pod)}: {reason}"
        for pod in pods
        if has_condition(pod, "Ready")
        for reason in list_recent_crashes(pod, now)
    ]
    if restarts:
        yield warning_finding(check, f"within an hour, {_join_few(restarts)}", f"{logs} --previous")


def _join_few(words: Sequence[str]) -> str:
    more = f"; and {len(words) - _MAX_LISTED_PODS} more" if len(words) > _MAX_LISTED_PODS else ""
    return "; ".join(words[:_MAX_LISTED_PODS]) + more


def _describe_placement(pod: KubeObject) -> str:
    node = pod["spec"].get("nodeName", "")
    return f"{pod['metadata']['name']}{f' on {node}' if node else ''}"


def _version_findings(
    check: str, owners: Sequence[KubeObject], pods: Sequence[KubeObject]
) -> Iterator[Finding]:
    """Warn of other versions in the cluster, whose messages and CRDs this command may not know."""
    wanted = {
        version
        for owner in owners
        if (
            version := _parse_version(owner["spec"]["template"])
            or get_labels(owner).get("app.kubernetes.io/version")
        )
    }
    running = {version for pod in pods if (version := _parse_version(pod))}
    for version in sorted((wanted | running) - {__version__}):
        state = "runs" if version in running else "is installed"
        yield warning_finding(
            check,
            f"version {version} {state}, and this command is {__version__}",
            "use the command of the same version",
        )


def _parse_version(pod: KubeObject) -> str:
    """Return the version in the tag of the driver's own image, "" if the tag is not a version."""
    images = [
        container["image"]
        for container in pod["spec"]["containers"]
        if container["name"].startswith("datacache-")
    ]
    tags = [image.partition("@")[0].rpartition("/")[2].partition(":")[2] for image in images]
    return next((match[1] for tag in tags if (match := _VERSION.fullmatch(tag))), "")


def _has_driver(csi_node: KubeObject, driver: str) -> bool:
    return any(entry["name"] == driver for entry in csi_node["spec"].get("drivers") or ())


def _node_object(node: str) -> KubeObject:
    return {"metadata": {"name": node, "uid": node}}
