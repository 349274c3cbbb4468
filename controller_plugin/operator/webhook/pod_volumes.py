"""An ECI pod made one of any cluster: hostPath volumes below a DataCache's path become inline volumes of this driver.

Source: Alibaba Cloud, ECI, "use a data cache to accelerate pods": the annotations k8s.aliyun.com/eci-data-cache-*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from posixpath import join, normpath
from typing import Any

from controller_plugin.operator.data_cache_index import DataCacheIndex
from csi.errors import InvalidParameter, PermissionDenied
from csi.parameters.data_cache import parse_bucket
from csi.parameters.performance_keys import Performance
from csi.registry.datacaches.data_caches import DataCache

_PREFIX = "k8s.aliyun.com/eci-data-cache-"
BUCKET_ANNOTATION = f"{_PREFIX}bucket"
_DEFAULT_LEVEL = "PL1"
_PERFORMANCE_ANNOTATIONS = {
    f"{_PREFIX}pl": "performanceLevel",
    f"{_PREFIX}provisionedIops": "provisionedIops",
    f"{_PREFIX}burstingEnabled": "burstingEnabled",
}
_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")

Patch = list[dict[str, Any]]


@dataclass(frozen=True)
class _MatchedVolume:
    """The volume at `index` of the pod, the path that it has, and the cache that this is of."""

    index: int
    name: str
    path: str
    cache: DataCache

    @property
    def sub_path(self) -> str:
        """The path below the cache's, "" for all of it."""
        return self.path[len(self.cache.spec.path) :].lstrip("/")


@dataclass(frozen=True)
class PodChange:
    """What is changed in a pod: a JSON Patch (RFC 6902), empty for nothing, the caches that it asks for, and the paths of the node that it keeps."""

    patch: Patch
    caches: tuple[DataCache, ...] = ()
    unmatched_paths: tuple[str, ...] = ()


class PodMutator:
    """Looks at pods, as the API server is about to take them. `driver_name` is the CSI driver's; `meet` has `known` know all there are by now."""

    def __init__(
        self, index: DataCacheIndex, driver_name: str, fetch_missing: Callable[[], None] = lambda: None
    ) -> None:
        self._index, self._driver, self._fetch_missing = index, driver_name, fetch_missing

    def mutate(self, pod: Mapping[str, Any], namespace: str) -> PodChange:
        """What to change; nothing for a pod without the annotation, and in one with it nothing but what matches a cache.

        Raises InvalidParameter naming the annotation that cannot be, PermissionDenied where a cache is not for `namespace`.
        """
        annotations = pod.get("metadata", {}).get("annotations") or {}
        if BUCKET_ANNOTATION not in annotations:
            return PodChange([])
        try:
            bucket = parse_bucket(annotations[BUCKET_ANNOTATION])
        except InvalidParameter as error:
            raise InvalidParameter(f"the annotation {BUCKET_ANNOTATION}: {error}") from error
        matched = self._match_volumes(pod, bucket)
        for one in matched:
            if not one.cache.spec.allows_namespace(namespace):
                raise PermissionDenied(
                    f"volume {one.name}: the DataCache of {one.cache.spec.display_name} is not for namespace {namespace}; "
                    "have its owner list the namespace in spec.namespaces, or take another path"
                )
        attributes = parse_performance_annotations(annotations)
        patch = [self._replace_volume(one, attributes) for one in matched]
        patch += [change for one in matched for change in _replace_mounts(pod, one)]
        unmatched = {path for _, _, path in _list_host_paths(pod)} - {one.path for one in matched}
        return PodChange(patch, tuple(one.cache for one in matched), tuple(sorted(unmatched)))

    def _match_volumes(self, pod: Mapping[str, Any], bucket: str) -> list[_MatchedVolume]:
        host_paths = list(_list_host_paths(pod))
        if not all(self._index.find_longest_match(bucket, path) for _, _, path in host_paths):
            # A pod that is made right behind its cache is ahead of the watch.
            self._fetch_missing()
        found = (
            (index, name, path, self._index.find_longest_match(bucket, path))
            for index, name, path in host_paths
        )
        return [_MatchedVolume(index, name, path, cache) for index, name, path, cache in found if cache]

    def _replace_volume(self, one: _MatchedVolume, attributes: Mapping[str, str]) -> dict[str, Any]:
        all_attributes = {
            "cacheBucket": one.cache.spec.bucket,
            "cachePath": one.cache.spec.path,
            **attributes,
        }
        csi = {"driver": self._driver, "readOnly": True, "volumeAttributes": all_attributes}
        return {
            "op": "replace",
            "path": f"/spec/volumes/{one.index}",
            "value": {"name": one.name, "csi": csi},
        }


def _list_host_paths(pod: Mapping[str, Any]) -> Iterator[tuple[int, str, str]]:
    """Index, name and path of each volume that a cache could stand for."""
    for index, volume in enumerate(pod.get("spec", {}).get("volumes") or ()):
        path = (volume.get("hostPath") or {}).get("path", "")
        # Where the path has "..", it is the node's word where that leads.
        if path.startswith("/") and ".." not in path.split("/"):
            yield index, volume["name"], normpath("/" + path.lstrip("/"))


def parse_performance_annotations(annotations: Mapping[str, str]) -> dict[str, str]:
    """The performance keys that annotations ask for; without any those of ECI, PL1. Raises InvalidParameter naming the annotation."""
    values = {
        _PERFORMANCE_ANNOTATIONS[name]: text.strip()
        for name, text in annotations.items()
        if name in _PERFORMANCE_ANNOTATIONS and text.strip()
    }
    for name, key in _PERFORMANCE_ANNOTATIONS.items():
        if key in values:
            try:
                Performance().with_changes({key: values[key]})
            except InvalidParameter as error:
                raise InvalidParameter(f"the annotation {name}: {error}") from error
    if "provisionedIops" in values or values.get("burstingEnabled", "").lower() == "true":
        return {**values, "performanceLevel": "AutoPL"}
    return {"performanceLevel": values.get("performanceLevel", _DEFAULT_LEVEL)}


def _replace_mounts(pod: Mapping[str, Any], one: _MatchedVolume) -> Iterator[dict[str, Any]]:
    """Each mount of the volume read-only, and at the same place in the cache as it was on the host."""
    for kind in _CONTAINERS:
        for number, container in enumerate(pod["spec"].get(kind) or ()):
            for index, mount in enumerate(container.get("volumeMounts") or ()):
                if mount.get("name") == one.name:
                    yield {
                        "op": "replace",
                        "path": f"/spec/{kind}/{number}/volumeMounts/{index}",
                        "value": _rewrite_mount(mount, one.sub_path),
                    }


def _rewrite_mount(mount: Mapping[str, Any], rest: str) -> dict[str, Any]:
    key = "subPathExpr" if mount.get("subPathExpr") else "subPath"
    # An expression begins with a "$(" that a name of a file may have too.
    prefix = rest.replace("$(", "$$(") if key == "subPathExpr" else rest
    below = join(prefix, mount.get(key) or "").rstrip("/")
    return {**mount, "readOnly": True, **({key: below} if below else {})}
