"""The webhook as a real API server asks it: pods are patched there, objects refused there, and nothing
depends on it that need not."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller_plugin.operator.data_cache_index import DataCacheIndex
from controller_plugin.operator.https_server import ReloadableTls, serve_app
from controller_plugin.operator.webhook.admission import AdmissionReviewer
from controller_plugin.operator.webhook.app import DATA_CACHES, PODS, webhook_app
from controller_plugin.operator.webhook.pod_volumes import BUCKET_ANNOTATION, PodMutator
from controller_plugin.operator.webhook.trust import WebhookTrust
from csi.cluster.api_server import ApiServer as Client
from csi.destinations import allow_list
from csi.destinations.allow_list import AllowList
from csi.errors import ClusterConflict, ClusterForbids, DataCacheError, InvalidParameter
from csi.parameters.data_cache import parse_data_cache
from csi.registry.datacaches.data_caches import DataCache
from tests.apiserver import ApiServer
from tests.origins.onc_rpc import wait_until

HUB = {"repoSource": "HuggingFace/Model", "repoId": "org/name"}
DRIVER = "datacache.csi.io"
PODS_PATH, CACHES_PATH = "/api/v1/namespaces/default/pods", "/apis/eci.aliyun.com/v1alpha1/datacaches"
CHART = Path(__file__).parents[4] / "deploy/chart/datacache-csi/templates/operator-service.yaml"


def conditions_of_the_chart() -> list[dict[str, str]]:
    """The conditions under which the installed webhook is called for a pod."""
    text = CHART.read_text()
    block = re.search(r"matchConditions:\n((?: {6,}.*\n)+)", text)
    assert block
    conditions: list[dict[str, str]] = yaml.safe_load(block[1])
    return conditions


class Hooked:
    """An API server that asks a webhook of this process.

    `matched` are the paths of the caches that pods asked for.
    """

    def __init__(self, cluster: ApiServer, name: str = "datacache-operator") -> None:
        self.name = name
        self.client: Client = cluster.client()
        self.known, self.matched = DataCacheIndex(), list[str]()
        pods = PodMutator(self.known, DRIVER)
        allowed = AllowList((), (), allow_list.DATA_CACHE_OBJECTS)
        self.admission = AdmissionReviewer(
            self.known, pods, allowed, lambda cache, when: self.matched.append(cache.spec.path)
        )
        self.app = webhook_app(self.admission)
        self.trust = WebhookTrust(self.client, ["localhost"], name, name)

    def learn(self, path: str, **more: Any) -> None:
        self.known.apply_event(
            path, DataCache(path, path, 1, 1.0, parse_data_cache("", path, "URL", HUB, **more))
        )

    def configure(self, port: int) -> None:
        kinds = (
            (
                "Mutating",
                PODS,
                "",
                "pods",
                {"matchConditions": conditions_of_the_chart(), "failurePolicy": "Fail"},
            ),
            ("Validating", DATA_CACHES, "eci.aliyun.com", "datacaches", {"failurePolicy": "Ignore"}),
        )
        for kind, path, group, resource, more in kinds:
            rules = [
                {
                    "apiGroups": [group],
                    "apiVersions": ["*"],
                    "operations": ["CREATE", "UPDATE"],
                    "resources": [resource],
                }
            ]
            hook = {
                "name": f"{resource}.datacache.csi.io",
                "rules": rules,
                "clientConfig": {"url": f"https://localhost:{port}{path}"},
                **more,
            }
            hook |= {"sideEffects": "NoneOnDryRun", "admissionReviewVersions": ["v1"], "timeoutSeconds": 5}
            body = {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": f"{kind}WebhookConfiguration",
                "metadata": {"name": self.name},
                "webhooks": [hook],
            }
            self.client.call(
                "POST",
                f"/apis/admissionregistration.k8s.io/v1/{kind.lower()}webhookconfigurations",
                body=body,
            )

    def remove(self) -> None:
        for kind in ("mutating", "validating"):
            self.client.call(
                "DELETE", f"/apis/admissionregistration.k8s.io/v1/{kind}webhookconfigurations/{self.name}"
            )
        self.client.call("DELETE", f"/api/v1/namespaces/default/secrets/{self.name}")

    def made(self, thing: Mapping[str, Any], path: str = PODS_PATH) -> dict[str, Any]:
        """What the server would make of an object; raises what it refuses it with."""
        return self.client.call("POST", path, {"dryRun": "All", "fieldValidation": "Strict"}, thing)


@pytest.fixture(scope="module", autouse=True)
def account(api_server: ApiServer) -> Iterator[None]:
    """The service account that pods have, which a controller of Kubernetes would make."""
    path, body = (
        "/api/v1/namespaces/default/serviceaccounts",
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}},
    )
    # Others of the session may have made it.
    with suppress(ClusterConflict):
        api_server.client().call("POST", path, body=body)
    yield
    api_server.client().call("DELETE", f"{path}/default")


@pytest.fixture(scope="module")
def hooked(api_server: ApiServer) -> Iterator[Hooked]:
    found = Hooked(api_server)
    found.trust.renew()
    certificates = found.trust.read()
    assert certificates
    with serve_app(found.app, "127.0.0.1", 0, ReloadableTls(certificates)) as port:
        found.configure(port)
        found.trust.renew()
        for path, more in (
            ("/models/llama", {}),
            ("/models/llama/lora", {}),
            ("/secret", {"namespaces": ["team"]}),
        ):
            found.learn(path, **more)
        # The server hears of its configurations by a watch of its own.
        assert wait_until(
            lambda: "csi" in found.made(pod(volume("v", "/models/llama")))["spec"]["volumes"][0], 30
        )
        yield found
    found.remove()


def volume(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "hostPath": {"path": path}}


def pod(
    *volumes: dict[str, Any],
    annotations: Mapping[str, str] | None = None,
    mounts: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    shown = (
        [{"name": one["name"], "mountPath": f"/{one['name']}"} for one in volumes]
        if mounts is None
        else mounts
    )
    given = {BUCKET_ANNOTATION: "default"} if annotations is None else dict(annotations)
    meta = {"name": "p", "annotations": given, "labels": {"alibabacloud.com/eci": "true"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": {
            "automountServiceAccountToken": False,
            "containers": [{"name": "c", "image": "i", "volumeMounts": shown}],
            "volumes": list(volumes),
        },
    }


def test_a_pod_of_eci_is_one_of_this_driver_when_it_is_there(hooked: Hooked) -> None:
    found = hooked.made(
        pod(
            volume("a", "/models/llama/x"),
            volume("b", "/data"),
            annotations={BUCKET_ANNOTATION: "default", "k8s.aliyun.com/eci-spot": "x"},
        )
    )
    assert found["metadata"]["annotations"] == {BUCKET_ANNOTATION: "default", "k8s.aliyun.com/eci-spot": "x"}
    one, other = found["spec"]["volumes"]
    assert one["csi"]["volumeAttributes"] == {
        "cacheBucket": "default",
        "cachePath": "/models/llama",
        "performanceLevel": "PL1",
    }
    assert other["hostPath"]["path"] == "/data"
    assert found["spec"]["containers"][0]["volumeMounts"][0] == {
        "name": "a",
        "mountPath": "/a",
        "readOnly": True,
        "subPath": "x",
    }


def test_paths_that_no_cache_holds_are_warned_of_beside_those_that_one_does(hooked: Hooked) -> None:
    def answer(*volumes: dict[str, Any]) -> dict[str, Any]:
        request = {"uid": "u", "namespace": "default", "object": pod(*volumes), "dryRun": True}
        return dict(hooked.admission.review_pod({"request": request})["response"])

    one, typo = volume("a", "/models/llama"), volume("b", "/model/llama")
    assert answer(one)["patch"]
    assert "warnings" not in answer(one)
    for volumes in ((one, typo), (typo,)):
        (warning,) = answer(*volumes)["warnings"]
        assert "/model/llama" in warning
        assert "/models/llama" not in warning
        assert ("patch" in answer(*volumes)) == (one in volumes)


def test_a_dry_run_asks_for_no_cache_and_a_pod_does_once_a_minute(hooked: Hooked) -> None:
    hooked.matched.clear()
    hooked.made(pod(volume("a", "/models/llama/lora")))
    assert hooked.matched == []
    for _ in range(2):
        hooked.client.call("POST", PODS_PATH, body=pod(volume("a", "/models/llama/lora")))
        hooked.client.call("DELETE", f"{PODS_PATH}/p", body={"gracePeriodSeconds": 0})
    assert hooked.matched == ["/models/llama/lora"]


def test_refusals_reach_whoever_makes_the_pod(hooked: Hooked) -> None:
    with pytest.raises(ClusterForbids, match="not for namespace default"):
        hooked.made(pod(volume("a", "/secret")))
    with pytest.raises(InvalidParameter, match="eci-data-cache-pl"):
        hooked.made(
            pod(
                volume("a", "/models/llama"),
                annotations={BUCKET_ANNOTATION: "default", "k8s.aliyun.com/eci-data-cache-pl": "fast"},
            )
        )


NAMES = st.lists(st.sampled_from("abcde"), unique=True, max_size=4)
PATHS = st.sampled_from(
    [
        "/models/llama",
        "/models/llama/",
        "//models/llama/lora/x",
        "/models/llama/a/b",
        "/models",
        "/etc",
        "/models/llama-2",
        "/",
    ]
)
SUB_PATHS = st.sampled_from(
    [{}, {"subPath": "s"}, {"subPath": "s/t"}, {"readOnly": True}, {"mountPropagation": "HostToContainer"}]
)
OTHERS = st.dictionaries(
    st.sampled_from(["k8s.aliyun.com/eci-use-specs", "other.example/x"]), st.text("abc", max_size=3)
)


@st.composite
def pods(draw: st.DrawFn) -> dict[str, Any]:
    volumes = [
        volume(name, draw(PATHS)) if draw(st.booleans()) else {"name": name, "emptyDir": {}}
        for name in draw(NAMES)
    ]
    mounts = [
        {"name": one["name"], "mountPath": f"/{one['name']}{number}", **draw(SUB_PATHS)}
        for one in volumes
        for number in range(draw(st.integers(0, 2)))
    ]
    made = pod(
        *volumes,
        annotations=draw(OTHERS)
        | draw(st.sampled_from([{}, {BUCKET_ANNOTATION: "default"}, {BUCKET_ANNOTATION: "other"}])),
        mounts=mounts,
    )
    if draw(st.booleans()):
        made["spec"]["initContainers"] = [{**copy.deepcopy(made["spec"]["containers"][0]), "name": "i"}]
    return made


def expected(path: str) -> tuple[str, str] | None:
    """The cache's path and what is below it, of a host path."""
    clean = "/" + "/".join(filter(None, path.split("/")))
    for cache in ("/models/llama/lora", "/models/llama"):
        if clean == cache or clean.startswith(cache + "/"):
            return cache, clean[len(cache) + 1 :]
    return None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(thing=pods())
def test_whatever_a_pod_is_its_matching_volumes_change_and_nothing_else(
    hooked: Hooked, thing: dict[str, Any]
) -> None:
    found = hooked.made(thing)
    annotated = thing["metadata"].get("annotations", {}).get(BUCKET_ANNOTATION) == "default"
    assert found["metadata"].get("annotations", {}) == thing["metadata"]["annotations"]
    rests: dict[str, str] = {}
    for before, after in zip(thing["spec"]["volumes"], found["spec"].get("volumes", []), strict=True):
        match = expected(before["hostPath"]["path"]) if annotated and "hostPath" in before else None
        if match:
            assert after["name"] == before["name"]
            assert after.keys() == {"name", "csi"}
            assert after["csi"]["driver"] == DRIVER
            assert after["csi"]["readOnly"]
            assert after["csi"]["volumeAttributes"]["cachePath"] == match[0]
            rests[before["name"]] = match[1]
        else:
            assert after["name"] == before["name"]
            assert "csi" not in after
            assert ("hostPath" in after) == ("hostPath" in before)
    for kind in ("containers", "initContainers"):
        for before, after in zip(thing["spec"].get(kind, []), found["spec"].get(kind, []), strict=True):
            for mount, shown in zip(before["volumeMounts"], after.get("volumeMounts", []), strict=True):
                if mount["name"] not in rests:
                    assert shown == mount
                    continue
                below = "/".join(filter(None, (rests[mount["name"]], mount.get("subPath", ""))))
                assert shown == {**mount, "readOnly": True, **({"subPath": below} if below else {})}


def cache(path: str = "/new", name: str = "new", **options: str) -> dict[str, Any]:
    source = {"type": "URL", "options": {**HUB, **options}}
    return {
        "apiVersion": "eci.aliyun.com/v1alpha1",
        "kind": "DataCache",
        "metadata": {"name": name},
        "spec": {"path": path, "dataSource": source},
    }


def test_a_data_cache_that_cannot_be_is_refused_with_what_is_wrong(hooked: Hooked) -> None:
    assert hooked.made(cache(accessToken="hf_x"), CACHES_PATH)["spec"]["bucket"] == "default"
    for thing, words in (
        (cache(repoID2="x"), "unknown parameter 'repoID2'"),
        (cache("/models/llama/"), "name of the DataCache /models/llama already"),
        (
            {
                **cache(),
                "spec": {
                    "path": "/new",
                    "dataSource": {"type": "NAS", "options": {"server": "nas", "path": "/a"}},
                },
            },
            "--allow-inline-nas nas:/a",
        ),
    ):
        with pytest.raises(DataCacheError, match=words):
            hooked.made(thing, CACHES_PATH)


def test_with_its_server_down_only_pods_that_ask_for_a_cache_wait(api_server: ApiServer) -> None:
    hooked = Hooked(api_server, "down")
    hooked.trust.renew()
    hooked.configure(1)
    try:
        plain = pod(volume("a", "/models/llama"), annotations={"other.example/x": ""})
        asking = pod(volume("a", "/models/llama"))

        def is_refused() -> bool:
            try:
                hooked.made(asking)
            except DataCacheError as error:
                return "datacache.csi.io" in str(error)
            return False

        assert wait_until(is_refused, 30)
        assert hooked.made(plain)["spec"]["volumes"][0]["hostPath"]
        assert hooked.made(cache(), CACHES_PATH)
    finally:
        hooked.remove()
