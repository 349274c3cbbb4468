"""What is wrong with what people have made for the driver in a cluster: classes, their Secrets, claims, pods, caches."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from itertools import chain

from csi.cluster.api_server import path_of
from csi.errors import ClusterForbids, DataCacheError, NotFound
from csi.parameters.annotations import annotated_keys
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.table import secret_names
from csi.parameters.volume_parameters import ANNOTATED, canonical_keys, check_mutable, names_a_source, parse
from csi.registry.custom_resource import GROUP, VERSION
from csi.registry.datacaches import codec
from csi.sources.catalog import TOKEN_KEYS, check_secrets
from datacache.cluster.doctor import Checks, Installed, forbidden
from datacache.cluster.reading import Event, Reading, Thing, name_of, plural
from datacache.findings import Finding, Verdict, at_most, fault, ok, warning

_SECRET = "csi.storage.k8s.io/{}-secret-{}"
_SECRETS = ("provisioner", "node-stage", "node-publish")
# What is answered while a resolve or a fill goes on (csi/errors.py, Busy): the same call comes again.
_GOES_ON = "code = Aborted"
_FAILED = ("Failed", "UpdateFailed")
_CONDITIONS = (("cachevolumes", "CacheVolume", "Resolved", "False"), ("cacheprewarms", "CachePrewarm", "Failed", "True"))


def storage_classes(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether the driver understands each StorageClass and VolumeAttributesClass of its own."""
    mine = _classes(reading, installed)
    found = [wrong for thing in mine if (wrong := _parameters_wrong(thing))]
    yield from found
    if mine and not found:
        yield ok("StorageClasses", f"all {len(mine)} of the driver's are understood")


def attributes_classes(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether the driver understands each VolumeAttributesClass of its own."""
    things = reading.all("apis", "storage.k8s.io", "v1", "volumeattributesclasses")
    mine = [thing for thing in things if thing.get("driverName") == installed.driver]
    found = [wrong for thing in mine if (wrong := _changes_wrong(thing))]
    yield from found
    if mine and not found:
        yield ok("VolumeAttributesClasses", f"all {len(mine)} of the driver's are understood")


def _classes(reading: Reading, installed: Installed) -> list[Thing]:
    return [thing for thing in reading.all("apis", "storage.k8s.io", "v1", "storageclasses") if thing.get("provisioner") == installed.driver]


def _asked(thing: Thing) -> CacheSpec | None:
    """The source of a StorageClass, None where each PVC names it. Raises InvalidParameter."""
    parameters = thing.get("parameters") or {}
    given = canonical_keys(parameters)
    if ANNOTATED in given:
        annotated_keys(given[ANNOTATED])
        return None
    # A class without a source is for clones.
    return parse(parameters, thing.get("mountOptions") or ()).spec if names_a_source(parameters) else None


def _parameters_wrong(thing: Thing) -> Finding | None:
    fix = "delete it and make it anew: the parameters of a StorageClass cannot change (docs/parameters.md has all keys)"
    try:
        _asked(thing)
    except DataCacheError as error:
        return fault("StorageClasses", f"{name_of(thing)}: {error}", fix)
    return None


def _changes_wrong(thing: Thing) -> Finding | None:
    try:
        check_mutable(thing.get("parameters") or {})
    except DataCacheError as error:
        return fault("VolumeAttributesClasses", f"{name_of(thing)}: {error}", "delete it and make it anew")
    return None


def secrets(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Whether the Secrets that StorageClasses name are there and hold what their sources read; no value of one is ever told.

    Names with templates (`${pvc.namespace}`) are of each PVC, and told with it.
    """
    looked_at, found, refused = 0, list[Finding](), list[Finding]()
    for thing in _classes(reading, installed):
        for namespace, name in _named_secrets(thing):
            try:
                why = _secret_wrong(reading, thing, namespace, name)
            except ClusterForbids as error:
                refused.append(forbidden("Secrets", error, "have somebody look who may read it; the driver itself is handed it by Kubernetes"))
                continue
            looked_at += 1
            if why:
                what = f"StorageClass {name_of(thing)} names the Secret {namespace}/{name}: {why}"
                found.append(fault("Secrets", what, "make or mend the Secret (deploy/examples/secret.yaml)"))
    yield from found
    yield from at_most("Secrets", refused, len(refused))
    if looked_at and not found:
        yield ok("Secrets", f"{plural(looked_at, 'Secret')} of StorageClasses hold what their sources read")


def _named_secrets(thing: Thing) -> list[tuple[str, str]]:
    """Namespace and name of each Secret of a StorageClass whose name is the same for all PVCs."""
    parameters: Mapping[str, str] = thing.get("parameters") or {}
    named = [(parameters.get(_SECRET.format(kind, "namespace"), ""), parameters.get(_SECRET.format(kind, "name"), "")) for kind in _SECRETS]
    return sorted({(namespace, name) for namespace, name in named if (namespace or name) and "$" not in namespace + name})


def _secret_wrong(reading: Reading, thing: Thing, namespace: str, name: str) -> str:
    """What is wrong with a Secret of a StorageClass, "" for nothing. Raises ClusterForbids."""
    if not (namespace and name):
        return "both its name and its namespace have to be given"
    try:
        data = reading.server.call("GET", path_of("api", "v1", "namespaces", namespace, "secrets", name)).get("data") or {}
    except NotFound:
        return "it is not there"
    return _content_wrong(thing, {key: base64.b64decode(value).decode(errors="replace") for key, value in data.items()})


def _content_wrong(thing: Thing, data: Mapping[str, str]) -> str:
    if not any(value.strip() for value in data.values()):
        return "it is empty"
    try:
        spec = _asked(thing)
    except DataCacheError:
        return ""  # the class itself is told of
    if spec is None:
        known = {*secret_names(), *TOKEN_KEYS}
        return "" if any(key.rpartition(".")[2] in known for key in data) else f"it has none of the keys {', '.join(sorted(known))}"
    try:
        check_secrets(spec, data)
    except DataCacheError as error:
        return str(error)
    return ""


def claims(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """PVCs that wait, and for what."""
    classes = {name_of(thing) for thing in _classes(reading, installed)}
    mine = [claim for claim in reading.all("api", "v1", "persistentvolumeclaims") if claim["spec"].get("storageClassName") in classes]
    waiting = [claim for claim in mine if claim.get("status", {}).get("phase") == "Pending"]
    said = [(claim, events[0]) for claim in waiting if (events := reading.warnings(claim, "PersistentVolumeClaim"))]
    complaints = [(claim, event) for claim, event in said if _GOES_ON not in event.message]
    yield from at_most("PVCs", (_pending(claim, event) for claim, event in complaints), len(complaints))
    if mine and not complaints:
        yield ok("PVCs", f"{plural(len(mine) - len(waiting), 'PVC')} bound, {len(waiting)} waiting without a complaint")


def _pending(claim: Thing, event: Event) -> Finding:
    meta = claim["metadata"]
    fix = f"docs/troubleshooting.md; kubectl -n {meta['namespace']} describe pvc {meta['name']}"
    return fault("PVCs", f"{name_of(claim)} is Pending: {event.words}", fix)


def pods(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """Pods that do not start because of a volume of the driver; those that wait for a fill are no finding."""
    volumes = _volumes_of_claims(reading, installed.driver)
    mine = [(pod, names) for pod in reading.all("api", "v1", "pods") if (names := _volumes(pod, installed.driver, volumes))]
    pending = [(pod, names) for pod, names in mine if pod.get("status", {}).get("phase") == "Pending"]
    said = [(pod, event) for pod, names in pending if (event := _failed_mount(reading, pod, names))]
    complaints = [(pod, event) for pod, event in said if _GOES_ON not in event.message]
    yield from at_most("pods", (_unstarted(pod, event) for pod, event in complaints), len(complaints))
    if mine and not complaints:
        yield ok("pods", f"{plural(len(mine), 'pod')} with volumes of the driver, {len(said)} waiting for a fill, none with a complaint")


def _unstarted(pod: Thing, event: Event) -> Finding:
    meta = pod["metadata"]
    fix = f"docs/troubleshooting.md; kubectl -n {meta['namespace']} describe pod {meta['name']}"
    return fault("pods", f"{name_of(pod)} does not start: {event.words}", fix)


def _failed_mount(reading: Reading, pod: Thing, names: frozenset[str]) -> Event | None:
    """What kubelet said last of one of these volumes of a pod; that it has waited long for all of them, as it says too, tells nothing."""
    events = (event for event in reading.warnings(pod, "Pod") if event.reason == "FailedMount")
    return next((event for event in events if any(f'volume "{name}"' in event.message for name in names)), None)


def _volumes_of_claims(reading: Reading, driver: str) -> dict[str, str]:
    """By PVC (namespace/name) the PV of the driver that it has."""
    found = {}
    for thing in reading.all("api", "v1", "persistentvolumes"):
        claim = thing["spec"].get("claimRef")
        if claim and (thing["spec"].get("csi") or {}).get("driver") == driver:
            found[f"{claim.get('namespace')}/{claim.get('name')}"] = thing["metadata"]["name"]
    return found


def _volumes(pod: Thing, driver: str, of_claims: Mapping[str, str]) -> frozenset[str]:
    """The names of a pod's volumes of the driver, as kubelet writes them: an inline volume's own, a PV's."""
    meta, found = pod["metadata"], set()
    for volume in pod["spec"].get("volumes") or ():
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName") or (f"{meta['name']}-{volume['name']}" if "ephemeral" in volume else "")
        if (volume.get("csi") or {}).get("driver") == driver:
            found.add(volume["name"])
        elif name := of_claims.get(f"{meta['namespace']}/{claim}"):
            found.add(name)
    return frozenset(found)


def caches(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """What the driver itself says of its volumes and prewarms."""
    looked = [(kind, of, bad, reading.all("apis", GROUP, VERSION, plurals)) for plurals, kind, of, bad in _CONDITIONS]
    found = list(chain.from_iterable(_complaints(kind, of, bad, things) for kind, of, bad, things in looked))
    yield from at_most("caches", found, len(found))
    if not found:
        yield ok("caches", f"{' and '.join(plural(len(things), kind) for kind, _, _, things in looked)}, none complains")


def _complaints(kind: str, of: str, bad: str, things: list[Thing]) -> Iterator[Finding]:
    for thing in things:
        said = next((one for one in thing.get("status", {}).get("conditions") or () if one["type"] == of and one["status"] == bad), None)
        if said:
            # A prewarm fails on nodes, volumes go on; a volume that cannot be read fails.
            verdict = Verdict.FAULT if kind == "CacheVolume" else Verdict.WARNING
            what = f"{kind} {name_of(thing)}: {said.get('message', '')}"
            yield Finding("caches", verdict, what, "docs/troubleshooting.md has the message and its fix")


def data_caches(reading: Reading, installed: Installed) -> Iterator[Finding]:
    """DataCaches that failed."""
    things = reading.all("apis", codec.GROUP, codec.VERSION, codec.PLURAL)
    failed = [thing for thing in things if (thing.get("status") or {}).get("status") in _FAILED]
    yield from at_most("DataCaches", map(_failed, failed), len(failed))
    if things and not failed:
        yield ok("DataCaches", f"{plural(len(things), 'DataCache')}, none failed")


def _failed(thing: Thing) -> Finding:
    status = thing["status"]
    what = f"DataCache {name_of(thing)} is {status['status']}: {status.get('message', '')}"
    return warning("DataCaches", what, "mend what the message names; the operator tries again by itself")


USAGE: Checks = (
    ("StorageClasses", storage_classes),
    ("VolumeAttributesClasses", attributes_classes),
    ("Secrets", secrets),
    ("PVCs", claims),
    ("pods", pods),
    ("caches", caches),
    ("DataCaches", data_caches),
)
