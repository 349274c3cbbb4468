"""What is wrong with what people have made for the driver in a cluster: classes, their Secrets, claims, pods, caches."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from itertools import chain

from csi.cluster.api_server import api_path
from csi.errors import ClusterForbids, DataCacheError, NotFound
from csi.parameters.annotations import parse_allowed_keys
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.table import secret_key_names
from csi.parameters.volume_parameters import (
    PVC_ANNOTATIONS_KEY,
    canonical_keys,
    check_mutable,
    names_a_source,
    parse_volume_parameters,
)
from csi.registry.custom_resource import GROUP, VERSION
from csi.registry.datacaches import codec
from csi.sources.catalog import TOKEN_KEYS, check_secrets
from datacache.cluster.doctor import Checks, InstalledDriver, forbidden_finding
from datacache.cluster.reading import ClusterEvent, ClusterReader, KubeObject, format_count, qualified_name
from datacache.findings import Finding, Verdict, fault_finding, limit_findings, ok_finding, warning_finding

_SECRET = "csi.storage.k8s.io/{}-secret-{}"
_SECRETS = ("provisioner", "node-stage", "node-publish")
# What is answered while a resolve or a fill goes on (csi/errors.py, Busy): the same call comes again.
_RETRIED_MESSAGE = "code = Aborted"
_FAILED_PHASES = ("Failed", "UpdateFailed")
_CONDITIONS = (
    ("cachevolumes", "CacheVolume", "Resolved", "False"),
    ("cacheprewarms", "CachePrewarm", "Failed", "True"),
)


def check_storage_classes(reading: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Whether the driver understands each StorageClass and VolumeAttributesClass of its own."""
    mine = _list_storage_classes(reading, installed)
    found = [wrong for thing in mine if (wrong := _bad_parameters_finding(thing))]
    yield from found
    if mine and not found:
        yield ok_finding("StorageClasses", f"all {len(mine)} of the driver's are understood")


def check_attributes_classes(reading: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Whether the driver understands each VolumeAttributesClass of its own."""
    things = reading.list_objects("apis", "storage.k8s.io", "v1", "volumeattributesclasses")
    mine = [thing for thing in things if thing.get("driverName") == installed.driver]
    found = [wrong for thing in mine if (wrong := _bad_changes_finding(thing))]
    yield from found
    if mine and not found:
        yield ok_finding("VolumeAttributesClasses", f"all {len(mine)} of the driver's are understood")


def _list_storage_classes(reading: ClusterReader, installed: InstalledDriver) -> list[KubeObject]:
    return [
        thing
        for thing in reading.list_objects("apis", "storage.k8s.io", "v1", "storageclasses")
        if thing.get("provisioner") == installed.driver
    ]


def _parse_class_spec(thing: KubeObject) -> CacheSpec | None:
    """The source of a StorageClass, None where each PVC names it. Raises InvalidParameter."""
    parameters = thing.get("parameters") or {}
    given = canonical_keys(parameters)
    if PVC_ANNOTATIONS_KEY in given:
        parse_allowed_keys(given[PVC_ANNOTATIONS_KEY])
        return None
    # A class without a source is for clones.
    return (
        parse_volume_parameters(parameters, thing.get("mountOptions") or ()).spec
        if names_a_source(parameters)
        else None
    )


def _bad_parameters_finding(thing: KubeObject) -> Finding | None:
    fix = "delete it and make it anew: the parameters of a StorageClass cannot change (docs/parameters.md has all keys)"
    try:
        _parse_class_spec(thing)
    except DataCacheError as error:
        return fault_finding("StorageClasses", f"{qualified_name(thing)}: {error}", fix)
    return None


def _bad_changes_finding(thing: KubeObject) -> Finding | None:
    try:
        check_mutable(thing.get("parameters") or {})
    except DataCacheError as error:
        return fault_finding(
            "VolumeAttributesClasses", f"{qualified_name(thing)}: {error}", "delete it and make it anew"
        )
    return None


def check_secret_references(reading: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Whether the Secrets that StorageClasses name are there and hold what their sources read; no value of one is ever told.

    Names with templates (`${pvc.namespace}`) are of each PVC, and told with it.
    """
    looked_at, found, refused = 0, list[Finding](), list[Finding]()
    for thing in _list_storage_classes(reading, installed):
        for namespace, name in _list_named_secrets(thing):
            try:
                why = _explain_bad_secret(reading, thing, namespace, name)
            except ClusterForbids as error:
                refused.append(
                    forbidden_finding(
                        "Secrets",
                        error,
                        "have somebody look who may read it; the driver itself is handed it by Kubernetes",
                    )
                )
                continue
            looked_at += 1
            if why:
                what = f"StorageClass {qualified_name(thing)} names the Secret {namespace}/{name}: {why}"
                found.append(
                    fault_finding("Secrets", what, "make or mend the Secret (deploy/examples/secret.yaml)")
                )
    yield from found
    yield from limit_findings("Secrets", refused, len(refused))
    if looked_at and not found:
        yield ok_finding(
            "Secrets", f"{format_count(looked_at, 'Secret')} of StorageClasses hold what their sources read"
        )


def _list_named_secrets(thing: KubeObject) -> list[tuple[str, str]]:
    """Namespace and name of each Secret of a StorageClass whose name is the same for all PVCs."""
    parameters: Mapping[str, str] = thing.get("parameters") or {}
    named = [
        (
            parameters.get(_SECRET.format(kind, "namespace"), ""),
            parameters.get(_SECRET.format(kind, "name"), ""),
        )
        for kind in _SECRETS
    ]
    return sorted(
        {
            (namespace, name)
            for namespace, name in named
            if (namespace or name) and "$" not in namespace + name
        }
    )


def _explain_bad_secret(reading: ClusterReader, thing: KubeObject, namespace: str, name: str) -> str:
    """What is wrong with a Secret of a StorageClass, "" for nothing. Raises ClusterForbids."""
    if not (namespace and name):
        return "both its name and its namespace have to be given"
    try:
        data = (
            reading.server.call("GET", api_path("api", "v1", "namespaces", namespace, "secrets", name)).get(
                "data"
            )
            or {}
        )
    except NotFound:
        return "it is not there"
    return _explain_bad_secret_content(
        thing, {key: base64.b64decode(value).decode(errors="replace") for key, value in data.items()}
    )


def _explain_bad_secret_content(thing: KubeObject, data: Mapping[str, str]) -> str:
    if not any(value.strip() for value in data.values()):
        return "it is empty"
    try:
        spec = _parse_class_spec(thing)
    except DataCacheError:
        return ""  # the class itself is told of
    if spec is None:
        known = {*secret_key_names(), *TOKEN_KEYS}
        return (
            ""
            if any(key.rpartition(".")[2] in known for key in data)
            else f"it has none of the keys {', '.join(sorted(known))}"
        )
    try:
        check_secrets(spec, data)
    except DataCacheError as error:
        return str(error)
    return ""


def check_pvcs(reading: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """PVCs that wait, and for what."""
    classes = {qualified_name(thing) for thing in _list_storage_classes(reading, installed)}
    mine = [
        claim
        for claim in reading.list_objects("api", "v1", "persistentvolumeclaims")
        if claim["spec"].get("storageClassName") in classes
    ]
    waiting = [claim for claim in mine if claim.get("status", {}).get("phase") == "Pending"]
    said = [
        (claim, events[0])
        for claim in waiting
        if (events := reading.list_warnings(claim, "PersistentVolumeClaim"))
    ]
    complaints = [(claim, event) for claim, event in said if _RETRIED_MESSAGE not in event.message]
    yield from limit_findings(
        "PVCs", (_pending_pvc_finding(claim, event) for claim, event in complaints), len(complaints)
    )
    if mine and not complaints:
        yield ok_finding(
            "PVCs",
            f"{format_count(len(mine) - len(waiting), 'PVC')} bound, {len(waiting)} waiting without a complaint",
        )


def _pending_pvc_finding(claim: KubeObject, event: ClusterEvent) -> Finding:
    meta = claim["metadata"]
    fix = f"docs/troubleshooting.md; kubectl -n {meta['namespace']} describe pvc {meta['name']}"
    return fault_finding("PVCs", f"{qualified_name(claim)} is Pending: {event.summary}", fix)


def check_pods(reading: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Pods that do not start because of a volume of the driver; those that wait for a fill are no finding."""
    volumes = _map_pvcs_to_volumes(reading, installed.driver)
    mine = [
        (pod, names)
        for pod in reading.list_objects("api", "v1", "pods")
        if (names := _list_pod_volumes(pod, installed.driver, volumes))
    ]
    pending = [(pod, names) for pod, names in mine if pod.get("status", {}).get("phase") == "Pending"]
    said = [(pod, event) for pod, names in pending if (event := _find_failed_mount(reading, pod, names))]
    complaints = [(pod, event) for pod, event in said if _RETRIED_MESSAGE not in event.message]
    yield from limit_findings(
        "pods", (_unstarted_pod_finding(pod, event) for pod, event in complaints), len(complaints)
    )
    if mine and not complaints:
        yield ok_finding(
            "pods",
            f"{format_count(len(mine), 'pod')} with volumes of the driver, {len(said)} waiting for a fill, none with a complaint",
        )


def _unstarted_pod_finding(pod: KubeObject, event: ClusterEvent) -> Finding:
    meta = pod["metadata"]
    fix = f"docs/troubleshooting.md; kubectl -n {meta['namespace']} describe pod {meta['name']}"
    return fault_finding("pods", f"{qualified_name(pod)} does not start: {event.summary}", fix)


def _find_failed_mount(reading: ClusterReader, pod: KubeObject, names: frozenset[str]) -> ClusterEvent | None:
    """What kubelet said last of one of these volumes of a pod; that it has waited long for all of them, as it says too, tells nothing."""
    events = (event for event in reading.list_warnings(pod, "Pod") if event.reason == "FailedMount")
    return next(
        (event for event in events if any(f'volume "{name}"' in event.message for name in names)), None
    )


def _map_pvcs_to_volumes(reading: ClusterReader, driver: str) -> dict[str, str]:
    """By PVC (namespace/name) the PV of the driver that it has."""
    found = {}
    for thing in reading.list_objects("api", "v1", "persistentvolumes"):
        claim = thing["spec"].get("claimRef")
        if claim and (thing["spec"].get("csi") or {}).get("driver") == driver:
            found[f"{claim.get('namespace')}/{claim.get('name')}"] = thing["metadata"]["name"]
    return found


def _list_pod_volumes(pod: KubeObject, driver: str, of_claims: Mapping[str, str]) -> frozenset[str]:
    """The names of a pod's volumes of the driver, as kubelet writes them: an inline volume's own, a PV's."""
    meta, found = pod["metadata"], set()
    for volume in pod["spec"].get("volumes") or ():
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName") or (
            f"{meta['name']}-{volume['name']}" if "ephemeral" in volume else ""
        )
        if (volume.get("csi") or {}).get("driver") == driver:
            found.add(volume["name"])
        elif name := of_claims.get(f"{meta['namespace']}/{claim}"):
            found.add(name)
    return frozenset(found)


def check_cache_volumes(reading: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """What the driver itself says of its volumes and prewarms."""
    looked = [
        (kind, of, bad, reading.list_objects("apis", GROUP, VERSION, plurals))
        for plurals, kind, of, bad in _CONDITIONS
    ]
    found = list(
        chain.from_iterable(_condition_findings(kind, of, bad, things) for kind, of, bad, things in looked)
    )
    yield from limit_findings("caches", found, len(found))
    if not found:
        yield ok_finding(
            "caches",
            f"{' and '.join(format_count(len(things), kind) for kind, _, _, things in looked)}, none complains",
        )


def _condition_findings(kind: str, of: str, bad: str, things: list[KubeObject]) -> Iterator[Finding]:
    for thing in things:
        said = next(
            (
                one
                for one in thing.get("status", {}).get("conditions") or ()
                if one["type"] == of and one["status"] == bad
            ),
            None,
        )
        if said:
            # A prewarm fails on nodes, volumes go on; a volume that cannot be read fails.
            verdict = Verdict.FAULT if kind == "CacheVolume" else Verdict.WARNING
            what = f"{kind} {qualified_name(thing)}: {said.get('message', '')}"
            yield Finding("caches", verdict, what, "docs/troubleshooting.md has the message and its fix")


def check_data_caches(reading: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """DataCaches that failed."""
    things = reading.list_objects("apis", codec.GROUP, codec.VERSION, codec.PLURAL)
    failed = [thing for thing in things if (thing.get("status") or {}).get("status") in _FAILED_PHASES]
    yield from limit_findings("DataCaches", map(_failed_data_cache_finding, failed), len(failed))
    if things and not failed:
        yield ok_finding("DataCaches", f"{format_count(len(things), 'DataCache')}, none failed")


def _failed_data_cache_finding(thing: KubeObject) -> Finding:
    status = thing["status"]
    what = f"DataCache {qualified_name(thing)} is {status['status']}: {status.get('message', '')}"
    return warning_finding(
        "DataCaches", what, "mend what the message names; the operator tries again by itself"
    )


USAGE: Checks = (
    ("StorageClasses", check_storage_classes),
    ("VolumeAttributesClasses", check_attributes_classes),
    ("Secrets", check_secret_references),
    ("PVCs", check_pvcs),
    ("pods", check_pods),
    ("caches", check_cache_volumes),
    ("DataCaches", check_data_caches),
)
