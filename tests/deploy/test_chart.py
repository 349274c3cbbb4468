"""What deploy/manifests promises, and with it the chart with its own values."""

from __future__ import annotations

import argparse
import re

import pytest
import yaml

from controller_plugin.__main__ import build_parser as controller_flags
from csi.program.flags import DRIVER_NAME
from node_plugin.__main__ import build_parser as node_flags
from tests.deploy.chart import (
    CHART,
    NAMESPACE,
    Object,
    container,
    generator,
    helm,
    kinds,
    manifests,
    pod,
    programs,
    rules,
)
from tests.deploy.objects import ROOT

THINGS = manifests()
NODE, CONTROLLER = pod(THINGS, "DaemonSet"), pod(THINGS, "Deployment")
PLUGIN = container(NODE, "datacache-node")
KUBELET = "/var/lib/kubelet"
CONTAINERS = [pytest.param(one, id=one["name"]) for spec in (NODE, CONTROLLER) for one in spec["containers"]]
PARSERS = {"datacache-node": node_flags, "datacache-controller": controller_flags}


def flags(of: Object, program: str) -> argparse.Namespace:
    """What the program would make of a container's arguments, on the node node-1 with the address
    10.0.0.1."""
    parser, own = PARSERS[program](), {"NODE_NAME": "node-1", "POD_IP": "10.0.0.1"}
    assert own.keys() - {"NODE_NAME"} <= {entry["name"] for entry in of["env"]}
    unknown = [word for word in of["args"] if word.partition("=")[0] not in parser._option_string_actions]
    assert unknown == [], f"{program} has no such flags"
    return parser.parse_args(
        [re.sub(r"\$\((\w+)\)", lambda match: own[match[1]], word) for word in of["args"]]
    )


def host_paths(spec: Object) -> dict[str, str]:
    """The host's paths by where the first container has them."""
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    return {
        mount["mountPath"]: paths[mount["name"]]
        for mount in spec["containers"][0]["volumeMounts"]
        if mount["name"] in paths
    }


def test_the_manifests_are_what_the_chart_makes() -> None:
    done = generator()
    if not done.helm():
        pytest.skip(done.NOT_RUN.format(what="deploy/manifests is not compared with deploy/chart"))
    assert done.stale(done.build_outputs(True), True) == []


def test_a_manifest_that_nothing_makes_any_more_is_stale() -> None:
    done = generator()
    assert done.MANIFESTS / "node-rbac.yaml" in done.stale({}, True)


def test_the_chart_is_lint_free() -> None:
    done = helm("lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_driver_object_says_what_the_driver_needs() -> None:
    (driver,) = kinds(THINGS, "CSIDriver")
    assert driver["metadata"]["name"] == DRIVER_NAME
    assert driver["metadata"]["labels"]["security.openshift.io/csi-ephemeral-volume-profile"] == "restricted"
    assert driver["spec"] == {
        "attachRequired": False,
        "podInfoOnMount": True,
        "volumeLifecycleModes": ["Persistent", "Ephemeral"],
        "fsGroupPolicy": "None",
        "seLinuxMount": False,
        "storageCapacity": False,
    }


def test_a_node_pod_is_one_container_that_registers_itself_with_kubelet() -> None:
    assert [one["name"] for one in NODE["containers"]] == ["datacache-node"]
    told = flags(PLUGIN, "datacache-node")
    assert str(told.plugins_registry) == f"{KUBELET}/plugins_registry"
    assert (
        f"unix://{told.host_endpoint}" == told.endpoint == f"unix://{KUBELET}/plugins/{DRIVER_NAME}/csi.sock"
    )


def test_mounts_of_the_node_plugin_are_on_a_path_that_the_host_shares() -> None:
    (mount,) = (mount for mount in PLUGIN["volumeMounts"] if mount.get("mountPropagation") == "Bidirectional")
    assert mount["mountPath"] == host_paths(NODE)[mount["mountPath"]] == KUBELET
    assert str(flags(PLUGIN, "datacache-node").mount_dir) == f"{KUBELET}/plugins/{DRIVER_NAME}/mounts"
    assert PLUGIN["securityContext"]["privileged"] is True


def test_the_node_plugin_has_the_devices_the_cgroups_and_the_store_of_its_node() -> None:
    told, paths = flags(PLUGIN, "datacache-node"), host_paths(NODE)
    assert paths["/dev"] == "/dev"
    assert paths[str(told.cgroup_root)] == "/sys/fs/cgroup"
    assert paths[str(told.store)] == str(told.store)
    assert not [
        mount
        for mount in PLUGIN["volumeMounts"]
        if mount["mountPath"] in ("/dev", str(told.cgroup_root)) and mount.get("readOnly")
    ]


def test_no_file_is_made_in_the_hosts_folder_of_devices() -> None:
    """kubelet makes the file that a termination message goes to, in /dev where nothing else is said."""
    assert not PLUGIN["terminationMessagePath"].startswith("/dev/")


@pytest.mark.parametrize("spec", [NODE, CONTROLLER], ids=["node", "controller"])
def test_a_pod_shares_no_namespace_of_its_host(spec: Object) -> None:
    assert not [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]


@pytest.mark.parametrize("one", CONTAINERS)
def test_a_container_cannot_write_to_its_image_and_is_looked_after(one: Object) -> None:
    assert one["securityContext"]["readOnlyRootFilesystem"] is True
    assert one["livenessProbe"]["httpGet"]["port"] in [port["containerPort"] for port in one["ports"]]
    assert {"cpu", "memory"} <= one["resources"]["requests"].keys()


@pytest.mark.parametrize(("program", "one"), list(programs(THINGS)), ids=["node", "controller"])
def test_a_program_says_when_it_is_ready_where_it_answers(program: str, one: Object) -> None:
    host, port = flags(one, program).health_address
    assert host == "10.0.0.1"
    found = [one[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert [(probe["path"], probe["port"]) for probe in found] == [
        ("/healthz", port),
        ("/healthz", port),
        ("/readyz", port),
    ]


@pytest.mark.parametrize("one", CONTROLLER["containers"], ids=lambda one: one["name"])
def test_the_controllers_containers_have_no_right_on_their_node(one: Object) -> None:
    assert CONTROLLER["securityContext"]["runAsNonRoot"] is True
    assert CONTROLLER["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert one["securityContext"]["allowPrivilegeEscalation"] is False
    assert not [volume for volume in CONTROLLER["volumes"] if "hostPath" in volume]


def test_critical_pods_are_called_so_and_a_node_plugin_runs_wherever_pods_do() -> None:
    assert (NODE["priorityClassName"], CONTROLLER["priorityClassName"]) == (
        "system-node-critical",
        "system-cluster-critical",
    )
    assert NODE["tolerations"] == [{"operator": "Exists"}]


def test_node_pods_are_replaced_some_at_a_time() -> None:
    (daemons,) = kinds(THINGS, "DaemonSet")
    assert daemons["spec"]["updateStrategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": "10%"},
    }


def test_one_replica_of_each_sidecar_leads_and_waits_as_long_as_the_controller_may_take() -> None:
    for name in ("csi-provisioner", "csi-resizer"):
        args = container(CONTROLLER, name)["args"]
        assert {"--leader-election", "--leader-election-namespace=$(POD_NAMESPACE)", "--timeout=10s"} <= set(
            args
        )
    assert "--extra-create-metadata" in container(CONTROLLER, "csi-provisioner")["args"]


def test_all_replicas_keep_their_volumes_in_the_cluster() -> None:
    assert [str(flags(one, program).registry) for program, one in programs(THINGS)] == [
        "kubernetes",
        "kubernetes",
    ]
    state = str(flags(container(CONTROLLER, "datacache-controller"), "datacache-controller").state_dir)
    (mount,) = (mount for mount in CONTROLLER["containers"][0]["volumeMounts"] if mount["mountPath"] == state)
    assert [
        volume for volume in CONTROLLER["volumes"] if volume["name"] == mount["name"] and "emptyDir" in volume
    ]


def test_a_node_plugin_may_read_volumes_hold_pins_and_tell_events_and_nothing_else() -> None:
    reads = {("datacache.csi.io", "cachevolumes", verb) for verb in ("get", "list", "watch")}
    pins = {("datacache.csi.io", "cachepins", verb) for verb in ("get", "list", "create", "patch", "delete")}
    prewarms = {("datacache.csi.io", "cacheprewarms", verb) for verb in ("get", "list", "watch")}
    told = {("datacache.csi.io", f"{kind}/status", "patch") for kind in ("cachevolumes", "cacheprewarms")}
    looked_at = {
        ("", "nodes", "get"),
        ("", "persistentvolumeclaims", "get"),
        *(("eci.aliyun.com", "datacaches", verb) for verb in ("get", "list")),
    }
    assert rules(THINGS, "datacache-csi-node") == reads | pins | prewarms | told | looked_at | {
        ("", "events", "create"),
        ("", "events", "patch"),
    }


def test_secrets_are_read_one_by_one_by_the_provisioner_alone() -> None:
    found = {
        (thing["metadata"]["name"], verb)
        for thing in THINGS
        if "rules" in thing
        for rule in thing["rules"]
        if "secrets" in rule["resources"]
        for verb in rule["verbs"]
    }
    assert found == {("datacache-csi-provisioner", "get")}


def test_leases_are_held_to_names_and_to_the_drivers_own_namespace() -> None:
    with_leases = [
        thing
        for thing in THINGS
        if "rules" in thing
        for rule in thing["rules"]
        if "leases" in rule["resources"]
    ]
    assert {(thing["kind"], thing["metadata"].get("namespace")) for thing in with_leases} == {
        ("Role", NAMESPACE)
    }
    lease = "coordination.k8s.io"
    assert {rule for rule in rules(THINGS, "datacache-csi-controller") if rule[0] == lease} == {
        (lease, "leases", "create"),
        (lease, "leases*", "get"),
        (lease, "leases*", "update"),
    }


def test_no_rule_is_for_everything() -> None:
    assert not [
        rule
        for thing in THINGS
        if "rules" in thing
        for rule in thing["rules"]
        if "*" in rule["verbs"] + rule["resources"] + rule["apiGroups"]
    ]


def test_every_role_is_bound_once_and_to_an_account_of_the_driver() -> None:
    accounts = {
        (thing["metadata"]["namespace"], thing["metadata"]["name"])
        for thing in kinds(THINGS, "ServiceAccount")
    }
    bound = [thing for thing in THINGS if "roleRef" in thing]
    assert {
        (subject["namespace"], subject["name"]) for thing in bound for subject in thing["subjects"]
    } == accounts
    roles = sorted((thing["kind"], thing["metadata"]["name"]) for thing in THINGS if "rules" in thing)
    assert sorted((thing["roleRef"]["kind"], thing["roleRef"]["name"]) for thing in bound) == roles
    assert {(NAMESPACE, spec["serviceAccountName"]) for spec in (NODE, CONTROLLER)} == accounts


def test_a_service_account_is_mounted_only_where_a_pod_asks_for_it() -> None:
    assert {thing["automountServiceAccountToken"] for thing in kinds(THINGS, "ServiceAccount")} == {False}
    assert NODE["automountServiceAccountToken"]
    assert CONTROLLER["automountServiceAccountToken"]


def test_images_are_bare_names_with_versions() -> None:
    images = [one["image"] for spec in (NODE, CONTROLLER) for one in spec["containers"]]
    assert [image for image in images if not re.fullmatch(r"[a-z-]+(/[a-z-]+)?:v?\d+\.\d+\.\d+", image)] == []


def test_the_namespace_lets_the_node_pods_in() -> None:
    namespace = yaml.safe_load((ROOT / "deploy/namespace.yaml").read_text())
    assert namespace["metadata"]["name"] == NAMESPACE
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    assert kinds(THINGS, "Namespace") == []


def test_nothing_in_the_manifests_says_that_helm_manages_it() -> None:
    assert not [
        thing
        for thing in THINGS
        if {"helm.sh/chart", "app.kubernetes.io/managed-by"} & thing["metadata"]["labels"].keys()
    ]
