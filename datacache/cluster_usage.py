"""What is wrong with what people have made for the driver in a cluster: classes, their Secrets, claims, pods, caches."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping

from csi.cluster.api_server import path_of
from csi.errors import ClusterForbids, DataCacheError, NotFound
from csi.registry import data_cache_object as data_caches
from csi.registry.custom_resource import GROUP, VERSION
from csi.spec.dialects import secret_names
from csi.spec.parameters import ANNOTATED, canonical_keys, check_mutable, names_a_source, parse
from datacache.cluster_doctor import Check, Installed
from datacache.cluster_reading import Reading, Thing, name_of, plural
from datacache.findings import Finding, fault, ok, warning

_SECRET = "csi.storage.k8s.io/{}-secret-{}"
_SECRETS = ("provisioner", "node-stage", "node-publish")
# Keys that people give a hub's token, beside those that sources have.
_TOKENS = ("token", "HF_TOKEN", "hf_token")
_MOST_SHOWN = 10
_FAILED = ("Failed", "UpdateFailed")
_CONDITIONS = (("cachevolumes", "Resolved", "False"), ("cacheprewarms", "Failed", "True"))


def storage_classes(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether the driver understands each StorageClass and VolumeAttributesClass of its own, and their Secrets are there."""
    mine = [thing for thing in reading.all("apis", "storage.k8s.io", "v1", "storageclasses") if thing.get("provisioner") == installed.driver]
    changes = reading.all("apis", "storage.k8s.io", "v1", "volumeattributesclasses")
    found = [wrong for thing in mine for wrong in (*_parameters_wrong(thing), *_secrets_wrong(reading, thing))]
    found += [wrong for thing in changes if thing.get("driverName") == installed.driver for wrong in _changes_wrong(thing)]
    yield from found
    if mine and not found:
        yield ok("StorageClasses", f"all {len(mine)} of the driver's are understood")


def _parameters_wrong(thing: Thing) -> Iterator[Finding]:
    name, parameters = name_of(thing), dict(thing.get("parameters") or {})
    fix = "delete it and make it anew: the parameters of a StorageClass cannot change (docs/parameters.md has all keys)"
    try:
        canonical_keys({key: value for key, value in parameters.items() if key != ANNOTATED})
        if ANNOTATED not in parameters and names_a_source(parameters):
            parse(parameters, thing.get("mountOptions") or ())
    except DataCacheError as error:
        yield fault("StorageClasses", f"{name}: {error}", fix)


def _changes_wrong(thing: Thing) -> Iterator[Finding]:
    try:
        check_mutable(thing.get("parameters") or {})
    except DataCacheError as error:
        yield fault("StorageClasses", f"the VolumeAttributesClass {name_of(thing)}: {error}", "delete it and make it anew")


def _secrets_wrong(reading: Reading, thing: Thing) -> Iterator[Finding]:
    """Names with templates (`${pvc.namespace}`) are of each PVC, and told with it."""
    parameters: Mapping[str, str] = thing.get("parameters") or {}
    for kind in _SECRETS:
        name, namespace = (parameters.get(_SECRET.format(kind, part), "") for part in ("name", "namespace"))
        if name and "$" not in name + namespace:
            why = _secret_wrong(reading, namespace, name)
            if why:
                yield fault("Secrets", f"StorageClass {name_of(thing)} names the Secret {namespace}/{name}: {why}", "make or mend the Secret")


def _secret_wrong(reading: Reading, namespace: str, name: str) -> str:
    """What is wrong with a Secret; no value of it is told."""
    try:
        data = reading.server.call("GET", path_of("api", "v1", "namespaces", namespace, "secrets", name)).get("data") or {}
    except NotFound:
        return "it is not there"
    except ClusterForbids:
        return ""  # most people may not read Secrets, and the driver does not need them to
    known = {key for key in data if key in secret_names() or key in _TOKENS}
    if not known:
        return f"it has none of the keys {', '.join(sorted(secret_names()))}"
    empty = [key for key in sorted(known) if not base64.b64decode(data[key]).strip()]
    return f"its key {empty[0]} is empty" if empty else ""


def claims(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """PVCs that wait, and for what."""
    classes = {
        name_of(thing) for thing in reading.all("apis", "storage.k8s.io", "v1", "storageclasses") if thing.get("provisioner") == installed.driver
    }
    mine = [claim for claim in reading.all("api", "v1", "persistentvolumeclaims") if claim["spec"].get("storageClassName") in classes]
    waiting = [claim for claim in mine if claim.get("status", {}).get("phase") == "Pending"]
    told = 0
    for claim in waiting:
        words = reading.last_warning(claim["metadata"]["namespace"], claim["metadata"]["uid"])
        if words and told < _MOST_SHOWN:
            told += 1
            yield fault(
                "PVCs",
                f"{name_of(claim)} is Pending: {words}",
                f"kubectl -n {claim['metadata']['namespace']} describe pvc {claim['metadata']['name']}",
            )
    if mine and not told:
        yield ok("PVCs", f"{plural(len(mine) - len(waiting), 'PVC')} bound, {len(waiting)} waiting without a complaint")


def pods(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Pods that cannot start because of a volume of the driver."""
    claimed = {name_of(claim) for claim in reading.all("api", "v1", "persistentvolumeclaims") if _is_of(reading, claim, installed.driver)}
    mine = [pod for pod in reading.all("api", "v1", "pods") if _uses(pod, installed.driver, claimed)]
    told = 0
    for pod in mine:
        meta = pod["metadata"]
        if pod.get("status", {}).get("phase") != "Pending" or told >= _MOST_SHOWN:
            continue
        words = reading.last_warning(meta["namespace"], meta["uid"], "FailedMount")
        if words:
            told += 1
            yield fault(
                "pods",
                f"{name_of(pod)} does not start: {words}",
                f"kubectl -n {meta['namespace']} describe pod {meta['name']}; docs/troubleshooting.md",
            )
    if mine and not told:
        yield ok("pods", f"{plural(len(mine), 'pod')} with volumes of the driver, none waits for one with a complaint")


def _is_of(reading: Reading, claim: Thing, driver: str) -> bool:
    volumes = {thing["metadata"]["name"]: thing for thing in reading.all("api", "v1", "persistentvolumes")}
    volume = volumes.get(claim["spec"].get("volumeName", ""), {})
    return bool(volume) and (volume["spec"].get("csi") or {}).get("driver") == driver


def _uses(pod: Thing, driver: str, claimed: set[str]) -> bool:
    for volume in pod["spec"].get("volumes") or ():
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName", "")
        if (volume.get("csi") or {}).get("driver") == driver or f"{pod['metadata']['namespace']}/{claim}" in claimed:
            return True
    return False


def caches(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """What the driver itself says of its volumes and prewarms."""
    told = 0
    for thing in reading.all("apis", data_caches.GROUP, data_caches.VERSION, data_caches.PLURAL):
        status = thing.get("status") or {}
        if status.get("status") in _FAILED and told < _MOST_SHOWN:
            told += 1
            what = f"DataCache {name_of(thing)} is {status['status']}: {status.get('message', '')}"
            yield warning("caches", what, "mend what the message names; the operator tries again by itself")
    for plural_name, kind, bad in _CONDITIONS:
        for thing in reading.all("apis", GROUP, VERSION, plural_name):
            said: Thing = next((one for one in thing.get("status", {}).get("conditions") or () if one["type"] == kind), {})
            if said.get("status") == bad and told < _MOST_SHOWN:
                told += 1
                yield warning(
                    "caches", f"{thing['kind']} {name_of(thing)}: {said.get('message', '')}", "docs/troubleshooting.md has the message and its fix"
                )
    if not told:
        yield ok("caches", "no volume, prewarm or DataCache complains")


USAGE: tuple[tuple[str, Check], ...] = (
    ("StorageClasses", storage_classes),
    ("PVCs", claims),
    ("pods", pods),
    ("caches", caches),
)
