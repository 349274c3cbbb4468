"""Parameters of a CreateVolume, with those of its PVC's annotations that the StorageClass allows.

It keeps apart which of them a user has given, since users may name fewer origins than administrators.
"""

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
from csi.parameters.pvc import PvcReference
from csi.parameters.volume_parameters import (
    PVC_ANNOTATIONS_KEY,
    VolumeParameters,
    canonicalize_parameters,
    parse_volume_parameters,
)

if TYPE_CHECKING:
    from csi.cluster.api_server import ApiServer


class PvcReader(Protocol):
    """Source of PVCs' annotations."""

    def read_annotations(self, namespace: str, name: str) -> dict[str, str]:
        """Return the annotations of a PVC.

        Raises FailedPrecondition if it does not exist, ClusterUnavailable, ClusterForbids.
        """


class ParameterReader:
    """Reader of volume parameters.

    `pvcs` is None without a cluster; `allow_list` limits what PVCs' annotations may name.
    """

    def __init__(self, pvcs: PvcReader | None, allow_list: AllowList) -> None:
        self._pvcs, self._allow_list = pvcs, allow_list

    def merge_pvc_annotations(
        self, parameters: Mapping[str, str], pvc: PvcReference | None
    ) -> AnnotatedParameters:
        """Return the parameters with those that the PVC adds; `pvc` is None if the request names none.

        Raises InvalidParameter, FailedPrecondition, ClusterUnavailable.
        """
        canonical = canonicalize_parameters(parameters)
        if PVC_ANNOTATIONS_KEY not in canonical:
            return AnnotatedParameters(canonical, frozenset())
        parse_allowed_keys(canonical[PVC_ANNOTATIONS_KEY])
        if self._pvcs is None:
            raise FailedPrecondition(
                f"the StorageClass has {PVC_ANNOTATIONS_KEY}, but this controller knows no PVCs: "
                "start it with --registry kubernetes, or name the source in the StorageClass"
            )
        if pvc is None:
            raise FailedPrecondition(
                f"the StorageClass has {PVC_ANNOTATIONS_KEY}, but the request does not name its PVC: "
                "start external-provisioner with --extra-create-metadata"
            )
        annotations = self._pvcs.read_annotations(pvc.namespace, pvc.name)
        return apply_annotations(parameters, annotations, f"{pvc.namespace}/{pvc.name}")

    def parse_merged(
        self, merged: AnnotatedParameters, flags: Iterable[str], pvc: PvcReference | None
    ) -> VolumeParameters:
        """Parse the merged parameters; a source that the PVC names is checked and marked as untrusted.

        Raises as `parse_volume_parameters`, and PermissionDenied.
        """
        try:
            parsed = parse_volume_parameters(merged.parameters, flags)
        except InvalidParameter as error:
            pvc_name = f"{pvc.namespace}/{pvc.name}" if pvc else ""
            raise InvalidParameter(f"{error}{missing_keys_hint(merged, pvc_name)}") from error
        if not merged.pvc_names_source:
            return parsed
        self._check_pvc_source(parsed.spec.source, merged)
        return replace(parsed, spec=as_untrusted(parsed.spec))

    def _check_pvc_source(self, source: SourceSpec, merged: AnnotatedParameters) -> None:
        # The StorageClass may add administrators' keys to an annotation's source, but the annotation itself
        # may not.
        if "sources" in merged.from_pvc:
            self._allow_list.check_keys(source)
        self._allow_list.check_source(source)


def check_storage_class(parameters: Mapping[str, str]) -> None:
    """Raise InvalidParameter if a StorageClass's parameters fit no volume.

    Parameters that annotations complete are not checked, since they are incomplete.
    """
    canonical = canonicalize_parameters(parameters)
    if PVC_ANNOTATIONS_KEY in canonical:
        parse_allowed_keys(canonical[PVC_ANNOTATIONS_KEY])
    else:
        parse_volume_parameters(parameters)


class ClusterPvcs(PvcReader):
    """PVCs of a cluster, read by one call each."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def read_annotations(self, namespace: str, name: str) -> dict[str, str]:
        from csi.cluster.api_server import METADATA, api_path  # 3 MB that a folder registry does not need

        path = api_path("api", "v1", "namespaces", namespace, "persistentvolumeclaims", name)
        try:
            pvc = self._server.call("GET", path, accept=METADATA)
        except NotFound:
            raise FailedPrecondition(
                f"PVC {namespace}/{name} is gone, and its annotations were to name the source; "
                "create it again"
            ) from None
        return dict(pvc["metadata"].get("annotations") or {})


def open_pvc_reader(server: ApiServer | None) -> ClusterPvcs | None:
    """Return the PVCs of the cluster of `server`, None without one."""
    return ClusterPvcs(server) if server else None
