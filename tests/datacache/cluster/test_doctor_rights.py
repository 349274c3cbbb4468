"""The rights that `datacache doctor --cluster` needs: those of the documents are enough, and one that is
missing is named."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.apiserver import STRANGER
from tests.datacache.cluster.well_cluster import DEPLOY, DRIVER, INSTALLED, RUNNING, Cluster
from tests.origins.onc_rpc import wait_until

RBAC = "rbac.authorization.k8s.io"
ROLE = yaml.safe_load((DEPLOY / "examples/doctor-rights.yaml").read_text())
RULES = [
    (rule["apiGroups"][0], resource, verb)
    for rule in ROLE["rules"]
    for resource in rule["resources"]
    for verb in rule["verbs"]
]


def grant(cluster: Cluster, rules: list[tuple[str, str, str]]) -> None:
    """Give STRANGER these rights and no others, and return when the server knows."""
    rights = [
        {"apiGroups": [group], "resources": [resource], "verbs": [verb]} for group, resource, verb in rules
    ]
    cluster.made(
        f"/apis/{RBAC}/v1/clusterroles",
        {"metadata": {"name": "doctor"}, "rules": rights},
        f"{RBAC}/v1",
        "ClusterRole",
    )
    subjects = [{"kind": "User", "apiGroup": RBAC, "name": STRANGER}]
    binding = {
        "metadata": {"name": "doctor"},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "doctor"},
        "subjects": subjects,
    }
    cluster.made(f"/apis/{RBAC}/v1/clusterrolebindings", binding, f"{RBAC}/v1", "ClusterRoleBinding")
    assert wait_until(lambda: [rule for rule in RULES if may(cluster, rule)] == rules, 60)


def may(cluster: Cluster, rule: tuple[str, str, str]) -> bool:
    group, resource, verb = rule
    spec = {"user": STRANGER, "resourceAttributes": {"group": group, "resource": resource, "verb": verb}}
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    return bool(
        cluster.put(path, {"spec": spec}, "authorization.k8s.io/v1", "SubjectAccessReview")["status"][
            "allowed"
        ]
    )


def full(cluster: Cluster) -> None:
    """Something of everything that is looked at, Secrets apart."""
    cluster.storage_class()
    cluster.event(cluster.claim("waits"), "PersistentVolumeClaim", "ProvisioningFailed", "code = Aborted")
    cluster.pod("waits", {"csi": {"driver": DRIVER, "volumeAttributes": {"repoId": "org/name"}}})


def test_the_rights_of_the_documents_are_enough_and_read_only(well: Cluster) -> None:
    full(well)
    assert {verb for _, _, verb in RULES} <= {"get", "list"}
    assert "secrets" not in {resource for _, resource, _ in RULES}
    grant(well, RULES)
    done = well.examine(user=STRANGER)
    assert done.wrong() == []
    assert {one.check for one in done.found} == {
        *INSTALLED,
        *RUNNING,
        "StorageClasses",
        "PVCs",
        "pods",
        "caches",
    }


@pytest.mark.parametrize("rule", RULES, ids=" ".join)
def test_a_right_that_is_missing_is_named(well: Cluster, rule: tuple[str, str, str]) -> None:
    full(well)
    well.status_of_test(
        well.daemon_set, {"desiredNumberScheduled": 3}, {"desiredNumberScheduled": 2}
    )  # its Events are asked for then
    grant(well, [other for other in RULES if other != rule])
    done = well.examine(user=STRANGER)
    missing = [one for one in done.found if one.verdict == "warning"]
    assert missing, done.found
    assert all(
        f'cannot {rule[2]} resource "{rule[1]}" in API group "{rule[0]}"' in one.what for one in missing
    ), done.found
    assert all("not checked" in one.what and "doctor-rights.yaml" in one.fix for one in missing)
    told = {one.check for one in done.found}
    assert {*INSTALLED, *RUNNING, "StorageClasses", "PVCs", "pods", "caches"} <= told


def test_who_may_read_nothing_is_told_which_rights_are_missing(well: Cluster) -> None:
    well.storage_class()
    done = well.examine(user=STRANGER)
    refused = {one.check for one in done.found if one.verdict == "warning"}
    looked_at = {
        "StorageClasses",
        "VolumeAttributesClasses",
        "Secrets",
        "PVCs",
        "pods",
        "caches",
        "DataCaches",
    }
    assert refused == {*INSTALLED[2:], *RUNNING, "operator", *looked_at}
    assert done.status == 0
    assert json.dumps(done.found).count("cannot") >= len(refused)
