"""What the chart makes of values that are not its own."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from tests.deploy.chart import (
    CHART,
    Object,
    container,
    environment,
    helm,
    kinds,
    pod,
    programs,
    refusal,
    rendered,
    rules,
)
from tests.deploy.objects import ROOT
from tests.deploy.test_chart import flags

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
FULL: dict[str, Any] = {
    "registry": "registry.example.com:5000/storage",
    "image": {"digest": f"sha256:{'0' * 64}"},
    "imagePullSecrets": [{"name": "pull"}],
    "kubeletDir": "/var/lib/k0s/kubelet",
    "driverName": "cache.example.com",
    "logFormat": "json",
    "logLevel": "DEBUG",
    "allowOrigins": ["files.example.com", "*.example.net", "10.1.0.0/16"],
    "allowInlineNas": ["nas.example.com:/share/models"],
    "egressProfiles": [
        {"name": "storage", "netns": "/run/netns/storage"},
        {"name": "slow", "rate": "500mbit"},
    ],
    "hfEndpoint": "https://hub.example.com",
    "modelscopeEndpoint": "https://scope.example.com",
    "proxy": {"httpProxy": "http://proxy:3128", "httpsProxy": "http://proxy:3128", "noProxy": "10.0.0.0/8"},
    "caBundle": {"configMap": "company-ca"},
    "extraEnv": [{"name": "ALL_PROXY", "valueFrom": {"secretKeyRef": {"name": "proxy", "key": "url"}}}],
    "commonLabels": {"team": "storage"},
    "controller": {
        "replicas": 3,
        "secretNamespaces": ["team-a", "team-b"],
        "extraArgs": ["--resolve-workers=8"],
        "podAnnotations": {"a": "b"},
    },
    "node": {
        "storePath": "/data/cache",
        "storeSize": "500Gi",
        "requireThrottle": True,
        "loadModules": False,
        "extraArgs": ["--fill-workers=4"],
        "registrar": {"enabled": True},
        "livenessProbe": {"enabled": True},
        "updateStrategy": {"type": "OnDelete", "rollingUpdate": None},
    },
    "metrics": {
        "enabled": True,
        "service": {"enabled": True},
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    },
}


@pytest.fixture(scope="module")
def full() -> list[Object]:
    return rendered(FULL)


def test_each_value_reaches_the_programs_as_a_flag(full: list[Object]) -> None:
    both = {program: flags(one, program) for program, one in programs(full)}
    for told in both.values():
        assert (told.driver_name, told.log_format, told.log_level) == ("cache.example.com", "json", "DEBUG")
        assert told.metrics_address == ("10.0.0.1", 9808)
        assert told.egress_profile.keys() == {"storage", "slow"}
        assert told.egress_profile["slow"].rate == 500_000_000
        assert told.allow_origins
    node, controller = both["datacache-node"], both["datacache-controller"]
    assert (str(node.store), node.store_size, node.require_throttle, node.fill_workers) == (
        "/data/cache",
        500 << 30,
        True,
        4,
    )
    assert node.allow_inline_nas
    assert node.egress_profile["storage"].netns == "/run/netns/storage"
    assert controller.resolve_workers == 8


def test_a_controller_without_privileges_is_told_of_no_network_namespace(full: list[Object]) -> None:
    told = flags(container(pod(full, "Deployment"), "datacache-controller"), "datacache-controller")
    assert {profile.netns for profile in told.egress_profile.values()} == {""}


def test_network_namespaces_of_the_host_are_seen_where_a_profile_names_one(full: list[Object]) -> None:
    (mount,) = (
        mount
        for mount in container(pod(full, "DaemonSet"), "datacache-node")["volumeMounts"]
        if mount["mountPath"] == "/run/netns"
    )
    assert mount["mountPropagation"] == "HostToContainer"
    plain = container(pod(rendered({}), "DaemonSet"), "datacache-node")
    assert "/run/netns" not in [mount["mountPath"] for mount in plain["volumeMounts"]]


def test_proxies_hubs_and_trust_are_the_environment_of_both_programs(full: list[Object]) -> None:
    for _, one in programs(full):
        found = environment(one)
        assert (found["HF_ENDPOINT"], found["MODELSCOPE_ENDPOINT"]) == (
            "https://hub.example.com",
            "https://scope.example.com",
        )
        assert (found["HTTPS_PROXY"], found["NO_PROXY"]) == ("http://proxy:3128", "10.0.0.0/8")
        assert found["SSL_CERT_FILE"] == found["REQUESTS_CA_BUNDLE"] == "/etc/datacache/ca/ca.crt"
        assert "secretKeyRef" in found["ALL_PROXY"]
        assert "/etc/datacache/ca" in [mount["mountPath"] for mount in one["volumeMounts"]]


def test_no_secret_is_in_an_argument_or_a_plain_variable(full: list[Object]) -> None:
    ours = [one for kind in ("DaemonSet", "Deployment") for one in pod(full, kind)["containers"]]
    words = [word for one in ours for word in one["args"]] + [
        entry["name"] for one in ours for entry in one.get("env", []) if "value" in entry
    ]
    assert words
    assert not [
        word
        for word in words
        if any(part in word.lower() for part in ("token", "secret", "password", "accesskey", "@"))
    ]


def test_the_usual_sidecars_take_over_registration_and_health(full: list[Object]) -> None:
    spec = pod(full, "DaemonSet")
    assert [one["name"] for one in spec["containers"]] == [
        "datacache-node",
        "node-driver-registrar",
        "liveness-probe",
    ]
    plugin, registrar, liveness = spec["containers"]
    told = flags(plugin, "datacache-node")
    assert not told.plugins_registry
    assert not told.health_address
    assert f"--kubelet-registration-path={told.endpoint.removeprefix('unix://')}" in registrar["args"]
    assert f"--http-endpoint=:{plugin['livenessProbe']['httpGet']['port']}" in liveness["args"]
    for one in (registrar, liveness):
        assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in one["securityContext"]


def test_another_folder_of_kubelet_is_meant_everywhere(full: list[Object]) -> None:
    assert "/var/lib/kubelet" not in yaml.safe_dump(full)


def test_another_name_of_the_driver_is_meant_everywhere(full: list[Object]) -> None:
    (driver,) = kinds(full, "CSIDriver")
    assert driver["metadata"]["name"] == "cache.example.com"
    named = [rule.get("resourceNames", []) for thing in kinds(full, "Role") for rule in thing["rules"]]
    assert [
        "cache.example.com-controller",
        "cache-example-com",
        "external-resizer-cache-example-com",
    ] in named
    assert "/plugins/datacache.csi.io" not in yaml.safe_dump(full)


def test_one_value_names_the_registry_of_all_images(full: list[Object]) -> None:
    images = {
        one["name"]: one["image"]
        for kind in ("DaemonSet", "Deployment")
        for one in pod(full, kind)["containers"]
    }
    assert len(images) == 6
    assert [
        image for image in images.values() if not image.startswith("registry.example.com:5000/storage/")
    ] == []
    assert images["datacache-node"] == f"registry.example.com:5000/storage/datacache-csi@sha256:{'0' * 64}"


def test_an_image_may_have_a_registry_of_its_own() -> None:
    things = rendered({"registry": "a.example.com", "image": {"registry": "b.example.com/c/", "tag": "1"}})
    assert container(pod(things, "DaemonSet"), "datacache-node")["image"] == "b.example.com/c/datacache-csi:1"


def test_secrets_may_be_read_in_named_namespaces_alone(full: list[Object]) -> None:
    assert ("", "secrets", "get") not in rules(kinds(full, "ClusterRole"), "datacache-csi-provisioner")
    roles = [
        thing
        for thing in kinds(full, "Role")
        if thing["metadata"]["name"] == "datacache-csi-provisioner-secrets"
    ]
    assert [role["metadata"]["namespace"] for role in roles] == ["team-a", "team-b"]
    bound = [
        thing
        for thing in kinds(full, "RoleBinding")
        if thing["roleRef"]["name"] == "datacache-csi-provisioner-secrets"
    ]
    assert {(thing["metadata"]["namespace"], thing["subjects"][0]["namespace"]) for thing in bound} == {
        ("team-a", "datacache-csi"),
        ("team-b", "datacache-csi"),
    }


def test_without_the_resizer_its_rights_are_gone() -> None:
    things = rendered({"controller": {"resizer": {"enabled": False}}})
    assert "csi-resizer" not in [one["name"] for one in pod(things, "Deployment")["containers"]]
    assert "resizer" not in yaml.safe_dump(things)


def test_roles_and_accounts_may_be_somebody_elses() -> None:
    own = {"serviceAccount": {"create": False, "name": "given"}}
    things = rendered({"rbac": {"create": False}, "controller": own, "node": own})
    assert {thing["kind"] for thing in things} == {"CSIDriver", "DaemonSet", "Deployment"}
    assert {pod(things, kind)["serviceAccountName"] for kind in ("DaemonSet", "Deployment")} == {"given"}


def test_metrics_have_a_port_a_service_and_a_monitor(full: list[Object]) -> None:
    for _, one in programs(full):
        assert {"name": "metrics", "containerPort": 9808} in one["ports"]
    assert len(kinds(full, "Service")) == 2
    (monitor,) = kinds(full, "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_releases_do_not_share_names_and_select_their_own_pods() -> None:
    done = helm("template", "second", CHART, "--namespace", "other")
    things = [thing for thing in yaml.safe_load_all(done.stdout) if thing]
    assert {thing["metadata"]["name"] for thing in things if thing["kind"] != "CSIDriver"} >= {
        "second-datacache-csi-node"
    }
    for kind in ("DaemonSet", "Deployment"):
        (owner,) = kinds(things, kind)
        chosen, labels = (
            owner["spec"]["selector"]["matchLabels"],
            owner["spec"]["template"]["metadata"]["labels"],
        )
        assert chosen["app.kubernetes.io/instance"] == "second"
        assert chosen.items() <= labels.items()
    assert {thing["metadata"].get("namespace", "other") for thing in things} == {"other"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"controller": {"replica": 2}}, "at '/controller': additional properties 'replica' not allowed"),
        ({"controller": {"replicas": 0}}, "at '/controller/replicas': minimum: got 0, want 1"),
        ({"node": {"storeSize": "50GB"}}, "at '/node/storeSize': '50GB' does not match pattern"),
        ({"kubeletDir": "var/lib/kubelet"}, "at '/kubeletDir': 'var/lib/kubelet' does not match pattern"),
        ({"kubeletDir": "/var/lib/kubelet/"}, "at '/kubeletDir'"),
        ({"driverName": "Cache_1"}, "at '/driverName'"),
        ({"logLevel": "TRACE"}, "at '/logLevel': value must be one of 'DEBUG', 'INFO', 'WARNING', 'ERROR'"),
        ({"allowOrigins": ["a.example.com,b.example.com"]}, "at '/allowOrigins/0'"),
        ({"allowInlineNas": ["nas.example.com"]}, "at '/allowInlineNas/0'"),
        ({"egressProfiles": [{"name": "storage"}]}, "at '/egressProfiles/0'"),
        ({"egressProfiles": [{"name": "storage", "rate": "fast"}]}, "at '/egressProfiles/0/rate'"),
        ({"image": {"digest": "sha256:0"}}, "at '/image/digest'"),
        ({"registry": "https://registry.example.com"}, "at '/registry'"),
        ({"node": {"healthPort": 70000}}, "at '/node/healthPort': maximum: got 70,000, want 65,535"),
        ({"node": {"extraArgs": ["fill-workers=4"]}}, "at '/node/extraArgs/0'"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_value_that_cannot_be_is_refused_with_its_name(values: dict[str, Any], says: str) -> None:
    assert says in refusal(values)


def test_a_proxy_with_a_login_is_refused_without_repeating_it() -> None:
    said = refusal({"proxy": {"httpsProxy": "http://user:s3cr3t@proxy:3128"}})
    assert "the value for HTTPS_PROXY has a login in its URL; put the URL into a Secret" in said
    assert "s3cr3t" not in said


@pytest.mark.parametrize(
    "values",
    re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs/install.md").read_text(), re.MULTILINE | re.DOTALL),
)
def test_the_values_that_the_installation_shows_are_taken_and_reach_the_operator(values: str) -> None:
    shown = yaml.safe_load(values)
    store, operator = shown.get("imageStore", {}), shown.get("operator", {})
    regions = operator.get("copyRegions", [])
    store_of_copies = {"imageStore": {"url": "s3://images"}} if regions else {}
    things = rendered(store_of_copies | shown | {"operator": {**operator, "enabled": True}})
    (deployment,) = (
        one for one in kinds(things, "Deployment") if one["metadata"]["name"].endswith("-operator")
    )
    told = container(deployment["spec"]["template"]["spec"], "datacache-operator")
    words, mounts = " ".join(told["args"]), {mount["mountPath"] for mount in told["volumeMounts"]}
    assert f"--image-store={store['url']} " in words if store else regions or "--image-store=" not in words
    assert all(f"--copy-region={one['region']}={one['url']} " in words for one in regions)
    assert all(f"/etc/datacache/copy-regions/{one['region']}" in mounts for one in regions)
    assert ("/etc/datacache/image-store" in mounts, "/mnt/images" in mounts) == (
        "secret" in store,
        "volume" in store,
    )
    assert ("--api-address=" in words) == ("api" in operator)


def test_regions_to_copy_to_are_flags_with_what_they_need_mounted_beside_the_cluster_s_own_store() -> None:
    regions = [
        {"region": "cn-a", "url": "s3://a", "secret": "key-of-a"},
        {"region": "cn-b", "url": "file:///mnt/b", "volume": {"nfs": {"server": "nas", "path": "/b"}}},
    ]
    values = {
        "imageStore": {"url": "s3://own", "secret": "own-key"},
        "operator": {"enabled": True, "copyRegions": regions},
    }
    (deployment,) = (
        one for one in kinds(rendered(values), "Deployment") if one["metadata"]["name"].endswith("-operator")
    )
    pod = deployment["spec"]["template"]["spec"]
    told = container(pod, "datacache-operator")
    assert [word for word in told["args"] if "copy-region" in word] == [
        "--copy-region=cn-a=s3://a",
        "--copy-region-secret=cn-a=/etc/datacache/copy-regions/cn-a",
        "--copy-region=cn-b=file:///mnt/b",
    ]
    where = {mount["mountPath"]: mount["name"] for mount in told["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[where["/etc/datacache/copy-regions/cn-a"]]["secret"]["secretName"] == "key-of-a"
    assert volumes[where["/mnt/b"]]["nfs"]["path"] == "/b"
    assert volumes[where["/etc/datacache/image-store"]]["secret"]["secretName"] == "own-key"


@pytest.mark.parametrize(
    ("store", "region", "says"),
    [
        ("", {"region": "cn-a", "url": "s3://a"}, "there is none; set imageStore.url"),
        (
            "s3://own",
            {"region": "cn-a", "url": "s3://a", "volume": {"emptyDir": {}}},
            "the volume of cn-a is for a file:// URL",
        ),
        ("s3://own", {"region": "cn-a", "url": "nfs://a"}, "at '/operator/copyRegions/0/url'"),
        ("s3://own", {"url": "s3://a"}, "missing property 'region'"),
    ],
)
def test_a_region_that_cannot_be_copied_to_is_refused(store: str, region: dict[str, Any], says: str) -> None:
    assert says in refusal(
        {"imageStore": {"url": store}, "operator": {"enabled": True, "copyRegions": [region]}}
    )


def test_the_schema_knows_every_value_and_no_other() -> None:
    def known(schema: dict[str, Any], values: Any, path: str) -> list[str]:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        if "properties" not in schema:
            return []
        assert schema["additionalProperties"] is False, path
        odd = [
            f"{path}/{key}"
            for key in schema["properties"].keys() ^ values.keys()
            if f"{path}/{key}" != "/global"
        ]
        return odd + [
            odd for key in values for odd in known(schema["properties"][key], values[key], f"{path}/{key}")
        ]

    assert known(SCHEMA, VALUES, "") == []
