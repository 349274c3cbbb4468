"""What a CreateVolume asks for: its parameters, those of its PVC's annotations where the StorageClass lets them, and whose words they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from csi.destinations.allow_list import AllowList, as_untrusted
from csi.errors import FailedPrecondition, InvalidParameter, NotFound
from csi.parameters.annotations import (
    AnnotatedParameters,
    apply_annotations,
    missing_keys_hint,
    parse_allowed_keys,
)
from csi.parameters.dialects.keys import SourceSpec
from csi.parameters.volume_parameters import (
    PVC_ANNOTATIONS_KEY,
    VolumeParameters,
    canonical_keys,
    parse_volume_parameters,
)

if TYPE_CHECKING:
    from csi.cluster.api_server import ApiServer

_PVC_PREFIX = "csi.storage.k8s.io/pvc/"


class PvcReader(Protocol):
    """Where PVCs are looked up."""

    def read_annotations(self, namespace: str, name: str) -> dict[str, str]:
        """The annotations of a PVC. Raises FailedPrecondition where there is no such PVC, ClusterUnavailable, ClusterForbids."""


class ParameterReader:
    """Reads parameters. `claims` has PVCs, None where there is no cluster; `allowed` says what their annotations may name."""

    def __init__(self, pvcs: PvcReader | None, allow_list: AllowList) -> None:
        self._pvcs, self._allow_list = pvcs, allow_list

    def merge_pvc_annotations(self, parameters: Mapping[str, str]) -> AnnotatedParameters:
        """The parameters with what the PVC adds. Raises InvalidParameter, FailedPrecondition, ClusterUnavailable."""
        canonical = canonical_keys(parameters)
        if PVC_ANNOTATIONS_KEY not in canonical:
            return AnnotatedParameters(canonical, frozenset())
        parse_allowed_keys(canonical[PVC_ANNOTATIONS_KEY])
        namespace, name = pvc_namespace_and_name(parameters)
        if self._pvcs is None:
            raise FailedPrecondition(
                f"the StorageClass has {PVC_ANNOTATIONS_KEY}, but this controller knows no PVCs: "
                "start it with --registry kubernetes, or name the source in the StorageClass"
            )
        if not (namespace and name):
            raise FailedPrecondition(
                f"the StorageClass has {PVC_ANNOTATIONS_KEY}, but the request does not say which PVC it is for: "
                "start external-provisioner with --extra-create-metadata"
            )
        return apply_annotations(
            parameters, self._pvcs.read_annotations(namespace, name), f"{namespace}/{name}"
        )

    def parse_merged(
        self, parameters: Mapping[str, str], merged: AnnotatedParameters, flags: Iterable[str]
    ) -> VolumeParameters:
        """What is asked for, as `parse_volume_parameters` has it; a source that the PVC names is judged and marked as a user's word.

        Raises as `parse_volume_parameters`, and PermissionDenied.
        """
        try:
            parsed = parse_volume_parameters(merged.parameters, flags)
        except InvalidParameter as error:
            raise InvalidParameter(
                f"{error}{missing_keys_hint(merged, '/'.join(pvc_namespace_and_name(parameters)))}"
            ) from error
        if not merged.pvc_names_source:
            return parsed
        self._check_pvc_source(parsed.spec.source, merged)
        return replace(parsed, spec=as_untrusted(parsed.spec))

    def _check_pvc_source(self, source: SourceSpec, merged: AnnotatedParameters) -> None:
        # Beside an annotation the StorageClass may have keys of an administrator's; within one nobody may.
        if "sources" in merged.from_pvc:
            self._allow_list.check_keys(source)
        self._allow_list.check_source(source)


def pvc_namespace_and_name(parameters: Mapping[str, str]) -> tuple[str, str]:
    """Namespace and name of the PVC that a volume is for, each "" where external-provisioner does not say (`--extra-create-metadata`)."""
    return parameters.get(f"{_PVC_PREFIX}namespace", ""), parameters.get(f"{_PVC_PREFIX}name", "")


def check_storage_class(parameters: Mapping[str, str]) -> None:
    """Raise InvalidParameter for a StorageClass's parameters that fit no volume; those that wait for a PVC's annotations are not whole yet."""
    canonical = canonical_keys(parameters)
    if PVC_ANNOTATIONS_KEY in canonical:
        parse_allowed_keys(canonical[PVC_ANNOTATIONS_KEY])
    else:
        parse_volume_parameters(parameters)


class ClusterPvcs:
    """The PVCs of a cluster; one call each."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def read_annotations(self, namespace: str, name: str) -> dict[str, str]:
        """The annotations of a PVC. Raises FailedPrecondition where it is not there, and what `ApiServer.call` raises."""
        from csi.cluster.api_server import METADATA, api_path  # 3 MB that a folder does not need

        path = api_path("api", "v1", "namespaces", namespace, "persistentvolumeclaims", name)
        try:
            claim = self._server.call("GET", path, accept=METADATA)
        except NotFound:
            raise FailedPrecondition(
                f"PVC {namespace}/{name} is gone, and its annotations were to name the source; create it anew"
            ) from None
        return dict(claim["metadata"].get("annotations") or {})


def open_pvc_reader(server: ApiServer | None) -> ClusterPvcs | None:
    """The PVCs of the cluster of `server`, None without one."""
    return ClusterPvcs(server) if server else None
