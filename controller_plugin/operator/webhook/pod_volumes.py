"""An ECI pod made one of any cluster: hostPath volumes below a DataCache's path become inline volumes of this driver.

Source: Alibaba Cloud, ECI, "use a data cache to accelerate pods": the annotations k8s.aliyun.com/eci-data-cache-*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from posixpath import join, normpath
from typing import Any

from controller_plugin.operator.data_cache_index import KnownCaches
from csi.errors import InvalidParameter, PermissionDenied
from csi.parameters.data_cache import checked_bucket
from csi.parameters.performance_keys import Performance
from csi.registry.datacaches.data_caches import DataCache

_PREFIX = "k8s.aliyun.com/eci-data-cache-"
BUCKET = f"{_PREFIX}bucket"
_DEFAULT_LEVEL = "PL1"
_KEYS = {f"{_PREFIX}pl": "performanceLevel", f"{_PREFIX}provisionedIops": "provisionedIops", f"{_PREFIX}burstingEnabled": "burstingEnabled"}
_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")

Patch = list[dict[str, Any]]


@dataclass(frozen=True)
class _Matched:
    """The volume at `index` of the pod, the path that it has, and the cache that this is of."""

    index: int
    name: str
    path: str
    cache: DataCache

    @property
    def rest(self) -> str:
        """The path below the cache's, "" for all of it."""
        return self.path[len(self.cache.spec.path) :].lstrip("/")


@dataclass(frozen=True)
class PodChange:
    """What is changed in a pod: a JSON Patch (RFC 6902), empty for nothing, the caches that it asks for, and the paths of the node that it keeps."""

    patch: Patch
    caches: tuple[DataCache, ...] = ()
    left: tuple[str, ...] = ()


class PodVolumes:
    """Looks at pods, as the API server is about to take them. `driver_name` is the CSI driver's; `meet` has `known` know all there are by now."""

    def __init__(self, known: KnownCaches, driver_name: str, meet: Callable[[], None] = lambda: None) -> None:
        self._known, self._driver, self._meet = known, driver_name, meet

    def change(self, pod: Mapping[str, Any], namespace: str) -> PodChange:
        """What to change; nothing for a pod without the annotation, and in one with it nothing but what matches a cache.

        Raises InvalidParameter naming the annotation that cannot be, PermissionDenied where a cache is not for `namespace`.
        """
        annotations = pod.get("metadata", {}).get("annotations") or {}
        if BUCKET not in annotations:
            return PodChange([])
        try:
            bucket = checked_bucket(annotations[BUCKET])
        except InvalidParameter as error:
            raise InvalidParameter(f"the annotation {BUCKET}: {error}") from error
        matched = self._matched(pod, bucket)
        for one in matched:
            if not one.cache.spec.grants(namespace):
                raise PermissionDenied(
                    f"volume {one.name}: the DataCache of {one.cache.spec.shown} is not for namespace {namespace}; "
                    "have its owner list the namespace in spec.namespaces, or take another path"
                )
        attributes = performance_of(annotations)
        patch = [self._volume(one, attributes) for one in matched]
        patch += [change for one in matched for change in _mounts(pod, one)]
        kept = {path for _, _, path in _host_paths(pod)} - {one.path for one in matched}
        return PodChange(patch, tuple(one.cache for one in matched), tuple(sorted(kept)))

    def _matched(self, pod: Mapping[str, Any], bucket: str) -> list[_Matched]:
        wanted = list(_host_paths(pod))
        if not all(self._known.match(bucket, path) for _, _, path in wanted):
            # A pod that is made right behind its cache is ahead of the watch.
            self._meet()
        found = ((index, name, path, self._known.match(bucket, path)) for index, name, path in wanted)
        return [_Matched(index, name, path, cache) for index, name, path, cache in found if cache]

    def _volume(self, one: _Matched, attributes: Mapping[str, str]) -> dict[str, Any]:
        named = {"cacheBucket": one.cache.spec.bucket, "cachePath": one.cache.spec.path, **attributes}
        csi = {"driver": self._driver, "readOnly": True, "volumeAttributes": named}
        return {"op": "replace", "path": f"/spec/volumes/{one.index}", "value": {"name": one.name, "csi": csi}}


def _host_paths(pod: Mapping[str, Any]) -> Iterator[tuple[int, str, str]]:
    """Index, name and path of each volume that a cache could stand for."""
    for index, volume in enumerate(pod.get("spec", {}).get("volumes") or ()):
        path = (volume.get("hostPath") or {}).get("path", "")
        # Where the path has "..", it is the node's word where that leads.
        if path.startswith("/") and ".." not in path.split("/"):
            yield index, volume["name"], normpath("/" + path.lstrip("/"))


def performance_of(annotations: Mapping[str, str]) -> dict[str, str]:
    """The performance keys that annotations ask for; without any those of ECI, PL1. Raises InvalidParameter naming the annotation."""
    given = {_KEYS[name]: text.strip() for name, text in annotations.items() if name in _KEYS and text.strip()}
    for name, key in _KEYS.items():
        if key in given:
            try:
                Performance().changed({key: given[key]})
            except InvalidParameter as error:
                raise InvalidParameter(f"the annotation {name}: {error}") from error
    if "provisionedIops" in given or given.get("burstingEnabled", "").lower() == "true":
        return {**given, "performanceLevel": "AutoPL"}
    return {"performanceLevel": given.get("performanceLevel", _DEFAULT_LEVEL)}


def _mounts(pod: Mapping[str, Any], one: _Matched) -> Iterator[dict[str, Any]]:
    """Each mount of the volume read-only, and at the same place in the cache as it was on the host."""
    for kind in _CONTAINERS:
        for number, container in enumerate(pod["spec"].get(kind) or ()):
            for index, mount in enumerate(container.get("volumeMounts") or ()):
                if mount.get("name") == one.name:
                    yield {"op": "replace", "path": f"/spec/{kind}/{number}/volumeMounts/{index}", "value": _mount(mount, one.rest)}


def _mount(mount: Mapping[str, Any], rest: str) -> dict[str, Any]:
    key = "subPathExpr" if mount.get("subPathExpr") else "subPath"
    # An expression begins with a "$(" that a name of a file may have too.
    prefix = rest.replace("$(", "$$(") if key == "subPathExpr" else rest
    below = join(prefix, mount.get(key) or "").rstrip("/")
    return {**mount, "readOnly": True, **({key: below} if below else {})}
