"""Whether the driver's programs run in a cluster: the controller plugin and its leader, the node plugins, and what nodes say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from csi import __version__
from csi.topology import node_segments, volume_segments
from datacache.cluster.doctor import Checks, Installed
from datacache.cluster.pod_state import ended, why_not_ready
from datacache.cluster.reading import Reading, Thing, has_condition, labels_of, plural, seconds
from datacache.findings import Finding, Verdict, at_most, fault, ok, warning
from node_plugin.topology import REFUSED, UNABLE

_LEASE_SECONDS, _CLOCK_WRONG, _CLOCK_OFF = 60.0, 300.0, 30.0
# A kubelet renews its lease every ten seconds, and is ready for another forty without.
_SILENCE = 30.0
_MOST_PODS = 5
_INSTALL = "install the chart (docs/install.md), or name its namespace in --namespace"
_VERSION = re.compile(r"v?(\d+\.\d+\.\d+\S*)")


def controller(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether the controller plugin runs, in as many pods as it should."""
    owners = _owners(reading, installed, "deployments", "controller")
    if not owners:
        yield fault("controller", f"there is no controller Deployment in {installed.namespace}", _INSTALL)
        return
    pods, wanted = _pods(reading, installed, "controller"), sum(owner["spec"].get("replicas", 1) for owner in owners)
    if len(pods) < wanted:
        yield fault("controller", f"{len(pods)} of {wanted} pods are there: {_refused(owners)}", "mend what it names, or scale the Deployment")
    yield from _states(reading, installed, "controller", pods)
    yield from _versions("controller", owners, pods)


def leader(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether one replica of the controller plugin leads, and has said so lately."""
    path = ("apis", "coordination.k8s.io", "v1", "namespaces", installed.namespace, "leases", f"{installed.driver.lower()}-controller")
    spec = (reading.one(*path) or {}).get("spec", {})
    silent = reading.server.clock() - seconds(spec["renewTime"]) if spec.get("renewTime") else float("inf")
    if silent <= _LEASE_SECONDS:
        if spec.get("holderIdentity"):
            yield ok("leader", f"{spec['holderIdentity']} leads")
        else:
            what = f"no replica leads at the moment; the last one let go {max(0.0, silent):.0f} s ago"
            yield warning("leader", what, "look again in a minute: another one takes over, as in every upgrade")
        return
    what = "no replica leads" + (f"; the last one was heard {silent:.0f} s ago" if silent < float("inf") else "")
    yield fault("leader", what, "look at the controller's log: it has to get and update Leases of its namespace (RBAC)")


def operator(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether the operator runs, where it is installed."""
    owners, pods = _owners(reading, installed, "deployments", "operator"), _pods(reading, installed, "operator")
    if owners and not pods:
        yield fault("operator", f"no pod of it is there: {_refused(owners)}", _INSTALL)
    if owners:
        yield from _states(reading, installed, "operator", pods)
        yield from _versions("operator", owners, pods)


def node_plugins(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether the plugin runs on every node that it should."""
    owners = _owners(reading, installed, "daemonsets", "node")
    if not owners:
        yield fault("node plugins", f"there is no node DaemonSet in {installed.namespace}", _INSTALL)
        return
    pods, wanted = _pods(reading, installed, "node"), sum(owner.get("status", {}).get("desiredNumberScheduled", 0) for owner in owners)
    if len(pods) < wanted:
        words = next(filter(None, (reading.said(owner, "DaemonSet") for owner in owners)), "no Event says why")
        yield fault("node plugins", f"{len(pods)} of {wanted} pods are there: {words}", "mend what the DaemonSet's Events name")
    yield from _states(reading, installed, "node", pods)
    yield from _versions("node plugins", owners, pods)


def registration(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether the kubelet of every node whose plugin is ready has taken the driver."""
    plugins = {pod["spec"]["nodeName"] for pod in _pods(reading, installed, "node") if has_condition(pod, "Ready")}
    taken = {thing["metadata"]["name"] for thing in reading.all("apis", "storage.k8s.io", "v1", "csinodes") if _has_driver(thing, installed.driver)}
    missing = sorted(plugins - taken)
    yield from at_most("registration", (_not_taken(reading, name) for name in missing), len(missing))
    if plugins and not missing:
        yield ok("registration", f"{plural(len(plugins), 'kubelet')} took {installed.driver}")


def _not_taken(reading: Reading, name: str) -> Finding:
    words = reading.said(_named(name), "Node", REFUSED) or "its CSINode does not list the driver"
    fix = "kubeletDir of the chart has to be kubelet's folder (--root-dir) on that node; see kubelet's log"
    return fault("registration", f"kubelet of {name} has not taken the driver: {words}", fix)


def mounting(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Which nodes run the plugin and can mount no image."""
    plugin, mounts = (next(iter(pair)) for pair in (node_segments(installed.driver, mounts=False), volume_segments(installed.driver)))
    nodes = [node for node in reading.all("api", "v1", "nodes") if plugin in labels_of(node)]
    unable = [node for node in nodes if mounts not in labels_of(node)]
    able = len(nodes) - len(unable)
    yield from at_most("mounting", (_cannot_mount(reading, node) for node in unable), len(unable))
    if nodes and not able:
        yield fault("mounting", "no node can mount volumes", "see docs/install.md, what is needed")
    elif able:
        yield ok("mounting", f"{plural(able, 'node')} can mount volumes")


def _cannot_mount(reading: Reading, node: Thing) -> Finding:
    words = reading.said(node, "Node", UNABLE) or "the log of its plugin says why"
    what = f"{node['metadata']['name']} can mount no volumes: {words}"
    return warning("mounting", what, "put the node right, then delete its plugin pod; other nodes go on")


def clocks(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """How far each node's clock is from the API server's, by the lease that its kubelet renews every ten seconds."""
    ready = {node["metadata"]["name"] for node in reading.all("api", "v1", "nodes") if has_condition(node, "Ready")}
    leases = [
        lease
        for lease in reading.all("apis", "coordination.k8s.io", "v1", "namespaces", "kube-node-lease", "leases")
        if lease["metadata"]["name"] in ready and lease["spec"].get("renewTime")
    ]
    now = reading.server.clock()
    wrong = [found for lease in leases if (found := _clock(lease["metadata"]["name"], seconds(lease["spec"]["renewTime"]) - now))]
    yield from at_most("clocks", iter(wrong), len(wrong))
    if leases and not wrong:
        yield ok("clocks", f"{plural(len(leases), 'node')} as the API server")


def _clock(node: str, off: float) -> Finding | None:
    if -_CLOCK_OFF - _SILENCE < off < _CLOCK_OFF:
        return None
    verdict = Verdict.FAULT if abs(off) > _CLOCK_WRONG else Verdict.WARNING
    what = f"the clock of {node} is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the API server's: signatures are judged by it"
    return Finding("clocks", verdict, what, "keep the node's clock by NTP")


PROGRAMS: Checks = (
    ("controller", controller),
    ("leader", leader),
    ("operator", operator),
    ("node plugins", node_plugins),
    ("registration", registration),
    ("mounting", mounting),
    ("clocks", clocks),
)


def _owners(reading: Reading, installed: Installed, kind: str, component: str) -> list[Thing]:
    return reading.all("apis", "apps", "v1", "namespaces", installed.namespace, kind, labels=_selector(component))


def _pods(reading: Reading, installed: Installed, component: str) -> list[Thing]:
    found = reading.all("api", "v1", "namespaces", installed.namespace, "pods", labels=_selector(component))
    return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]


def _selector(component: str) -> str:
    return f"app.kubernetes.io/name=datacache-csi,app.kubernetes.io/component={component}"


def _refused(owners: Sequence[Thing]) -> str:
    """Why a Deployment has fewer pods than it should."""
    said = [one for owner in owners for one in owner.get("status", {}).get("conditions") or () if one["type"] == "ReplicaFailure"]
    return str(said[0].get("message", "")) if said else "no condition of the Deployment says why"


def _states(reading: Reading, installed: Installed, component: str, pods: Sequence[Thing]) -> Iterator[Finding]:
    """Whether the pods are ready, and have been for an hour."""
    check = {"controller": "controller", "node": "node plugins", "operator": "operator"}[component]
    logs = f"kubectl -n {installed.namespace} logs POD -c datacache-{component}"
    why = [f"{_placed(pod)}: {words}" for pod in pods if (words := why_not_ready(reading, pod))]
    if why:
        fix = f"{logs} (--previous for what ended), kubectl -n {installed.namespace} describe pod POD; docs/troubleshooting.md"
        yield fault(check, f"{len(why)} of {plural(len(pods), 'pod')} not ready: {_few(why)}", fix)
    elif pods:
        yield ok(check, f"{plural(len(pods), 'pod')} ready")
    now = reading.server.clock()
    restarts = [f"{_placed(pod)}: {words}" for pod in pods if has_condition(pod, "Ready") for words in ended(pod, now)]
    if restarts:
        yield warning(check, f"within an hour, {_few(restarts)}", f"{logs} --previous")


def _few(words: Sequence[str]) -> str:
    more = f"; and {len(words) - _MOST_PODS} more" if len(words) > _MOST_PODS else ""
    return "; ".join(words[:_MOST_PODS]) + more


def _placed(pod: Thing) -> str:
    node = pod["spec"].get("nodeName", "")
    return f"{pod['metadata']['name']}{f' on {node}' if node else ''}"


def _versions(check: str, owners: Sequence[Thing], pods: Sequence[Thing]) -> Iterator[Finding]:
    """A command of another version may know other messages and CRDs than what runs."""
    wanted = {version for owner in owners if (version := _version(owner["spec"]["template"]) or labels_of(owner).get("app.kubernetes.io/version"))}
    running = {version for pod in pods if (version := _version(pod))}
    for version in sorted((wanted | running) - {__version__}):
        said = "runs" if version in running else "is installed"
        yield warning(check, f"version {version} {said}, and this command is {__version__}", "look with the command of the same version")


def _version(pod: Thing) -> str:
    """The version in the tag of the driver's own image, "" where that is no version."""
    images = [container["image"] for container in pod["spec"]["containers"] if container["name"].startswith("datacache-")]
    tags = [image.partition("@")[0].rpartition("/")[2].partition(":")[2] for image in images]
    return next((found[1] for tag in tags if (found := _VERSION.fullmatch(tag))), "")


def _has_driver(thing: Thing, driver: str) -> bool:
    return any(one["name"] == driver for one in thing["spec"].get("drivers") or ())


def _named(node: str) -> Thing:
    return {"metadata": {"name": node, "uid": node}}
