"""Checks of what users have created for the driver: classes, their Secrets, PVCs, pods, caches."""

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
    canonicalize_parameters,
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
# Reported while a resolve or a fill is running (csi/errors.py, Busy): Kubernetes repeats the call.
_RETRIED_MESSAGE = "code = Aborted"
_FAILED_PHASES = ("Failed", "UpdateFailed")
_CONDITIONS = (
    ("cachevolumes", "CacheVolume", "Resolved", "False"),
    ("cacheprewarms", "CachePrewarm", "Failed", "True"),
)


def check_storage_classes(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Check that the driver accepts each of its StorageClasses."""
    mine = _list_storage_classes(reader, installed)
    findings = [finding for storage_class in mine if (finding := _bad_parameters_finding(storage_class))]
    yield from findings
    if mine and not findings:
        yield ok_finding("StorageClasses", f"all {len(mine)} of the driver's are valid")


def check_attributes_classes(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Check that the driver accepts each of its VolumeAttributesClasses."""
    classes = reader.list_objects("apis", "storage.k8s.io", "v1", "volumeattributesclasses")
    mine = [
        attributes_class
        for attributes_class in classes
        if attributes_class.get("driverName") == installed.driver
    ]
    findings = [finding for attributes_class in mine if (finding := _bad_changes_finding(attributes_class))]
    yield from findings
    if mine and not findings:
        yield ok_finding("VolumeAttributesClasses", f"all {len(mine)} of the driver's are valid")


def _list_storage_classes(reader: ClusterReader, installed: InstalledDriver) -> list[KubeObject]:
    return [
        storage_class
        for storage_class in reader.list_objects("apis", "storage.k8s.io", "v1", "storageclasses")
        if storage_class.get("provisioner") == installed.driver
    ]


def _parse_class_spec(storage_class: KubeObject) -> CacheSpec | None:
    """Parse the source of a StorageClass; None if each PVC names its own. Raises InvalidParameter."""
    parameters = storage_class.get("parameters") or {}
    canonical = canonicalize_parameters(parameters)
    if PVC_ANNOTATIONS_KEY in canonical:
        parse_allowed_keys(canonical[PVC_ANNOTATIONS_KEY])
        return None
    # A class without a source is for clones.
    return (
        parse_volume_parameters(parameters, storage_class.get("mountOptions") or ()).spec
        if names_a_source(parameters)
        else None
    )


def _bad_parameters_finding(storage_class: KubeObject) -> Finding | None:
    fix = (
        "delete it and create it again: the parameters of a StorageClass cannot change "
        "(docs/parameters.md has all keys)"
    )
    try:
        _parse_class_spec(storage_class)
    except DataCacheError as error:
        return fault_finding("StorageClasses", f"{qualified_name(storage_class)}: {error}", fix)
    return None


def _bad_changes_finding(attributes_class: KubeObject) -> Finding | None:
    try:
        check_mutable(attributes_class.get("parameters") or {})
    except DataCacheError as error:
        return fault_finding(
            "VolumeAttributesClasses",
            f"{qualified_name(attributes_class)}: {error}",
            "delete it and create it again",
        )
    return None


def check_secret_references(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Check that the Secrets of StorageClasses exist and hold the keys of their sources.

    Their values are never shown.

    Names with templates (`${pvc.namespace}`) differ for each PVC, and show up in the PVC's Events.
    """
    checked, bad_secrets, refused = 0, list[Finding](), list[Finding]()
    for storage_class in _list_storage_classes(reader, installed):
        for namespace, name in _list_named_secrets(storage_class):
            try:
                why = _explain_bad_secret(reader, storage_class, namespace, name)
            except ClusterForbids as error:
                refused.append(
                    forbidden_finding(
                        "Secrets",
                        error,
                        "ask somebody who may read it; the driver itself gets it from Kubernetes",
                    )
                )
                continue
            checked += 1
            if why:
                what = (
                    f"StorageClass {qualified_name(storage_class)} names the Secret {namespace}/{name}: {why}"
                )
                bad_secrets.append(
                    fault_finding(
                        "Secrets", what, "create or correct the Secret (deploy/examples/secret.yaml)"
                    )
                )
    yield from bad_secrets
    yield from limit_findings("Secrets", refused, len(refused))
    if checked and not bad_secrets:
        yield ok_finding(
            "Secrets", f"{format_count(checked, 'Secret')} of StorageClasses hold the keys of their sources"
        )


def _list_named_secrets(storage_class: KubeObject) -> list[tuple[str, str]]:
    """Return namespace and name of each Secret of a StorageClass whose name is the same for all PVCs."""
    parameters: Mapping[str, str] = storage_class.get("parameters") or {}
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


def _explain_bad_secret(reader: ClusterReader, storage_class: KubeObject, namespace: str, name: str) -> str:
    """Explain what is wrong with a Secret of a StorageClass, "" for nothing. Raises ClusterForbids."""
    if not (namespace and name):
        return "both its name and its namespace must be given"
    try:
        data = (
            reader.server.call("GET", api_path("api", "v1", "namespaces", namespace, "secrets", name)).get(
                "data"
            )
            or {}
        )
    except NotFound:
        return "it does not exist"
    return _explain_bad_secret_content(
        storage_class, {key: base64.b64decode(value).decode(errors="replace") for key, value in data.items()}
    )


def _explain_bad_secret_content(storage_class: KubeObject, data: Mapping[str, str]) -> str:
    if not any(value.strip() for value in data.values()):
        return "it is empty"
    try:
        spec = _parse_class_spec(storage_class)
    except DataCacheError:
        return ""  # reported for the class itself
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


def check_pvcs(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Report PVCs that wait, with the reason."""
    classes = {qualified_name(storage_class) for storage_class in _list_storage_classes(reader, installed)}
    mine = [
        pvc
        for pvc in reader.list_objects("api", "v1", "persistentvolumeclaims")
        if pvc["spec"].get("storageClassName") in classes
    ]
    waiting = [pvc for pvc in mine if pvc.get("status", {}).get("phase") == "Pending"]
    with_events = [
        (pvc, events[0]) for pvc in waiting if (events := reader.list_warnings(pvc, "PersistentVolumeClaim"))
    ]
    complaints = [(pvc, event) for pvc, event in with_events if _RETRIED_MESSAGE not in event.message]
    yield from limit_findings(
        "PVCs", (_pending_pvc_finding(pvc, event) for pvc, event in complaints), len(complaints)
    )
    if mine and not complaints:
        yield ok_finding(
            "PVCs",
            f"{format_count(len(mine) - len(waiting), 'PVC')} bound, "
            f"{len(waiting)} waiting without a warning",
        )


def _pending_pvc_finding(pvc: KubeObject, event: ClusterEvent) -> Finding:
    meta = pvc["metadata"]
    fix = f"docs/troubleshooting.md; kubectl -n {meta['namespace']} describe pvc {meta['name']}"
    return fault_finding("PVCs", f"{qualified_name(pvc)} is Pending: {event.summary}", fix)


def check_pods(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Report pods that do not start because of a volume of the driver.

    Pods that wait for a fill are not reported.
    """
    volumes = _map_pvcs_to_volumes(reader, installed.driver)
    mine = [
        (pod, names)
        for pod in reader.list_objects("api", "v1", "pods")
        if (names := _list_pod_volumes(pod, installed.driver, volumes))
    ]
    pending = [(pod, names) for pod, names in mine if pod.get("status", {}).get("phase") == "Pending"]
    with_events = [
        (pod, event) for pod, names in pending if (event := _find_failed_mount(reader, pod, names))
    ]
    complaints = [(pod, event) for pod, event in with_events if _RETRIED_MESSAGE not in event.message]
    yield from limit_findings(
        "pods", (_unstarted_pod_finding(pod, event) for pod, event in complaints), len(complaints)
    )
    if mine and not complaints:
        yield ok_finding(
            "pods",
            f"{format_count(len(mine), 'pod')} with volumes of the driver, "
            f"{len(with_events)} waiting for a fill, none with another warning",
        )


def _unstarted_pod_finding(pod: KubeObject, event: ClusterEvent) -> Finding:
    meta = pod["metadata"]
    fix = f"docs/troubleshooting.md; kubectl -n {meta['namespace']} describe pod {meta['name']}"
    return fault_finding("pods", f"{qualified_name(pod)} does not start: {event.summary}", fix)


def _find_failed_mount(reader: ClusterReader, pod: KubeObject, names: frozenset[str]) -> ClusterEvent | None:
    """Return kubelet's newest FailedMount for one of these volumes.

    It also reports timeouts of all volumes together, which say nothing.
    """
    events = (event for event in reader.list_warnings(pod, "Pod") if event.reason == "FailedMount")
    return next(
        (event for event in events if any(f'volume "{name}"' in event.message for name in names)), None
    )


def _map_pvcs_to_volumes(reader: ClusterReader, driver: str) -> dict[str, str]:
    """Map each PVC (namespace/name) to its PV of the driver."""
    volumes = {}
    for pv in reader.list_objects("api", "v1", "persistentvolumes"):
        claim = pv["spec"].get("claimRef")
        if claim and (pv["spec"].get("csi") or {}).get("driver") == driver:
            volumes[f"{claim.get('namespace')}/{claim.get('name')}"] = pv["metadata"]["name"]
    return volumes


def _list_pod_volumes(pod: KubeObject, driver: str, volumes_by_pvc: Mapping[str, str]) -> frozenset[str]:
    """Return the names of a pod's volumes of the driver as kubelet writes them.

    An inline volume has its own name, others that of the PV.
    """
    meta, names = pod["metadata"], set()
    for volume in pod["spec"].get("volumes") or ():
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName") or (
            f"{meta['name']}-{volume['name']}" if "ephemeral" in volume else ""
        )
        if (volume.get("csi") or {}).get("driver") == driver:
            names.add(volume["name"])
        elif name := volumes_by_pvc.get(f"{meta['namespace']}/{claim}"):
            names.add(name)
    return frozenset(names)


def check_cache_volumes(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Report failures in the statuses of the driver's volumes and prewarms."""
    lists = [
        (kind, condition, bad_status, reader.list_objects("apis", GROUP, VERSION, plural))
        for plural, kind, condition, bad_status in _CONDITIONS
    ]
    findings = list(chain.from_iterable(_condition_findings(*entry) for entry in lists))
    yield from limit_findings("caches", findings, len(findings))
    if not findings:
        yield ok_finding(
            "caches",
            f"{' and '.join(format_count(len(objects), kind) for kind, _, _, objects in lists)}, "
            "none with errors",
        )


def _condition_findings(
    kind: str, condition_type: str, bad_status: str, objects: list[KubeObject]
) -> Iterator[Finding]:
    for obj in objects:
        failure = next(
            (
                condition
                for condition in obj.get("status", {}).get("conditions") or ()
                if condition["type"] == condition_type and condition["status"] == bad_status
            ),
            None,
        )
        if failure:
            # A failed prewarm leaves volumes working; a volume that cannot be read fails.
            verdict = Verdict.FAULT if kind == "CacheVolume" else Verdict.WARNING
            what = f"{kind} {qualified_name(obj)}: {failure.get('message', '')}"
            yield Finding("caches", verdict, what, "docs/troubleshooting.md has the message and its fix")


def check_data_caches(reader: ClusterReader, installed: InstalledDriver) -> Iterator[Finding]:
    """Report DataCaches that failed."""
    caches = reader.list_objects("apis", codec.GROUP, codec.VERSION, codec.PLURAL)
    failed = [cache for cache in caches if (cache.get("status") or {}).get("status") in _FAILED_PHASES]
    yield from limit_findings("DataCaches", map(_failed_data_cache_finding, failed), len(failed))
    if caches and not failed:
        yield ok_finding("DataCaches", f"{format_count(len(caches), 'DataCache')}, none failed")


def _failed_data_cache_finding(cache: KubeObject) -> Finding:
    status = cache["status"]
    what = f"DataCache {qualified_name(cache)} is {status['status']}: {status.get('message', '')}"
    return warning_finding("DataCaches", what, "fix what the message names; the operator retries by itself")


USAGE: Checks = (
    ("StorageClasses", check_storage_classes),
    ("VolumeAttributesClasses", check_attributes_classes),
    ("Secrets", check_secret_references),
    ("PVCs", check_pvcs),
    ("pods", check_pods),
    ("caches", check_cache_volumes),
    ("DataCaches", check_data_caches),
)
