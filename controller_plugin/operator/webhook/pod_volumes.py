"""Mutation of ECI pods for any cluster.

hostPath volumes below a DataCache's path become inline volumes of this driver. Source: Alibaba Cloud, ECI,
"use a data cache to accelerate pods": the annotations k8s.aliyun.com/eci-data-cache-*.
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
    """Volume at `index` of the pod, its hostPath, and the cache that contains it."""

    index: int
    name: str
    path: str
    cache: DataCache

    @property
    def sub_path(self) -> str:
        """Path below the cache's, "" for the whole cache."""
        return self.path[len(self.cache.spec.path) :].lstrip("/")


@dataclass(frozen=True)
class PodChange:
    """Change of a pod: a JSON Patch (RFC 6902), the caches used, and the hostPaths that stay.

    The patch is empty if nothing changes.
    """

    patch: Patch
    caches: tuple[DataCache, ...] = ()
    unmatched_paths: tuple[str, ...] = ()


class PodMutator:
    """Mutator of pods under admission.

    `driver_name` is the CSI driver's; `fetch_missing` completes `index` with all existing caches.
    """

    def __init__(
        self, index: DataCacheIndex, driver_name: str, fetch_missing: Callable[[], None] = lambda: None
    ) -> None:
        self._index, self._driver, self._fetch_missing = index, driver_name, fetch_missing

    def mutate(self, pod: Mapping[str, Any], namespace: str) -> PodChange:
        """Return the change of a pod.

        Without the annotation it is empty; with it, only volumes that match a cache change.

        Raises InvalidParameter naming an annotation with an invalid value, PermissionDenied if a cache is not
        available to `namespace`.
        """
        annotations = pod.get("metadata", {}).get("annotations") or {}
        if BUCKET_ANNOTATION not in annotations:
            return PodChange([])
        try:
            bucket = parse_bucket(annotations[BUCKET_ANNOTATION])
        except InvalidParameter as error:
            raise InvalidParameter(f"the annotation {BUCKET_ANNOTATION}: {error}") from error
        matched = self._match_volumes(pod, bucket)
        for volume in matched:
            if not volume.cache.spec.allows_namespace(namespace):
                raise PermissionDenied(
                    f"volume {volume.name}: the DataCache of {volume.cache.spec.display_name} "
                    f"is not for namespace {namespace}; "
                    "have its owner list the namespace in spec.namespaces, or use another path"
                )
        attributes = parse_performance_annotations(annotations)
        patch = [self._replace_volume(volume, attributes) for volume in matched]
        patch += [change for volume in matched for change in _replace_mounts(pod, volume)]
        unmatched = {path for _, _, path in _list_host_paths(pod)} - {volume.path for volume in matched}
        return PodChange(patch, tuple(volume.cache for volume in matched), tuple(sorted(unmatched)))

    def _match_volumes(self, pod: Mapping[str, Any], bucket: str) -> list[_MatchedVolume]:
        host_paths = list(_list_host_paths(pod))
        if not all(self._index.find_longest_match(bucket, path) for _, _, path in host_paths):
            # A pod created right after its cache may be ahead of the watch.
            self._fetch_missing()
        matches = (
            (index, name, path, self._index.find_longest_match(bucket, path))
            for index, name, path in host_paths
        )
        return [_MatchedVolume(index, name, path, cache) for index, name, path, cache in matches if cache]

    def _replace_volume(self, volume: _MatchedVolume, attributes: Mapping[str, str]) -> dict[str, Any]:
        all_attributes = {
            "cacheBucket": volume.cache.spec.bucket,
            "cachePath": volume.cache.spec.path,
            **attributes,
        }
        csi = {"driver": self._driver, "readOnly": True, "volumeAttributes": all_attributes}
        return {
            "op": "replace",
            "path": f"/spec/volumes/{volume.index}",
            "value": {"name": volume.name, "csi": csi},
        }


def _list_host_paths(pod: Mapping[str, Any]) -> Iterator[tuple[int, str, str]]:
    """Yield index, name and path of each volume that a cache could replace."""
    for index, volume in enumerate(pod.get("spec", {}).get("volumes") or ()):
        path = (volume.get("hostPath") or {}).get("path", "")
        # A path with ".." depends on symlinks of the node.
        if path.startswith("/") and ".." not in path.split("/"):
            yield index, volume["name"], normpath("/" + path.lstrip("/"))


def parse_performance_annotations(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return the performance keys given by annotations; ECI's default PL1 without any.

    Raises InvalidParameter naming the annotation.
    """
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


def _replace_mounts(pod: Mapping[str, Any], volume: _MatchedVolume) -> Iterator[dict[str, Any]]:
    """Make each mount of the volume read-only, at the same path in the cache as on the host."""
    for kind in _CONTAINERS:
        for number, container in enumerate(pod["spec"].get(kind) or ()):
            for index, mount in enumerate(container.get("volumeMounts") or ()):
                if mount.get("name") == volume.name:
                    yield {
                        "op": "replace",
                        "path": f"/spec/{kind}/{number}/volumeMounts/{index}",
                        "value": _rewrite_mount(mount, volume.sub_path),
                    }


def _rewrite_mount(mount: Mapping[str, Any], cache_sub_path: str) -> dict[str, Any]:
    key = "subPathExpr" if mount.get("subPathExpr") else "subPath"
    # In an expression "$(" starts a variable; file names may contain it literally.
    prefix = cache_sub_path.replace("$(", "$$(") if key == "subPathExpr" else cache_sub_path
    sub_path = join(prefix, mount.get(key) or "").rstrip("/")
    return {**mount, "readOnly": True, **({key: sub_path} if sub_path else {})}
