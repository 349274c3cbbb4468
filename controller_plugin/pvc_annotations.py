"""What a CreateVolume asks for: its parameters, those of its PVC's annotations where the StorageClass lets them, and whose words they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from csi.destinations.allow_list import AllowList, named_by_user
from csi.errors import FailedPrecondition, InvalidParameter, NotFound
from csi.parameters.annotations import Annotated, annotated_keys, completed, hint
from csi.parameters.dialects.keys import SourceSpec
from csi.parameters.volume_parameters import ANNOTATED, VolumeParameters, canonical_keys, parse

if TYPE_CHECKING:
    from csi.cluster.api_server import ApiServer

_CLAIM = "csi.storage.k8s.io/pvc/"


class Claims(Protocol):
    """Where PVCs are looked up."""

    def annotations(self, namespace: str, name: str) -> dict[str, str]:
        """The annotations of a PVC. Raises FailedPrecondition where there is no such PVC, ClusterUnavailable, ClusterForbids."""


class Asking:
    """Reads parameters. `claims` has PVCs, None where there is no cluster; `allowed` says what their annotations may name."""

    def __init__(self, claims: Claims | None, allowed: AllowList) -> None:
        self._claims, self._allowed = claims, allowed

    def whole(self, parameters: Mapping[str, str]) -> Annotated:
        """The parameters with what the PVC adds. Raises InvalidParameter, FailedPrecondition, ClusterUnavailable."""
        given = canonical_keys(parameters)
        if ANNOTATED not in given:
            return Annotated(given, frozenset())
        annotated_keys(given[ANNOTATED])
        namespace, name = claim_of(parameters)
        if self._claims is None:
            raise FailedPrecondition(
                f"the StorageClass has {ANNOTATED}, but this controller knows no PVCs: "
                "start it with --registry kubernetes, or name the source in the StorageClass"
            )
        if not (namespace and name):
            raise FailedPrecondition(
                f"the StorageClass has {ANNOTATED}, but the request does not say which PVC it is for: "
                "start external-provisioner with --extra-create-metadata"
            )
        return completed(parameters, self._claims.annotations(namespace, name), f"{namespace}/{name}")

    def parsed(self, parameters: Mapping[str, str], asked: Annotated, flags: Iterable[str]) -> VolumeParameters:
        """What is asked for, as `parse` has it; a source that the PVC names is judged and marked as a user's word.

        Raises as `parse`, and PermissionDenied.
        """
        try:
            found = parse(asked.parameters, flags)
        except InvalidParameter as error:
            raise InvalidParameter(f"{error}{hint(asked, '/'.join(claim_of(parameters)))}") from error
        if not asked.names_the_source:
            return found
        self._judge(found.spec.source, asked)
        return replace(found, spec=named_by_user(found.spec))

    def _judge(self, source: SourceSpec, asked: Annotated) -> None:
        # Beside an annotation the StorageClass may have keys of an administrator's; within one nobody may.
        if "sources" in asked.from_claim:
            self._allowed.check_keys(source)
        self._allowed.check_source(source)


def claim_of(parameters: Mapping[str, str]) -> tuple[str, str]:
    """Namespace and name of the PVC that a volume is for, each "" where external-provisioner does not say (`--extra-create-metadata`)."""
    return parameters.get(f"{_CLAIM}namespace", ""), parameters.get(f"{_CLAIM}name", "")


def check_class(parameters: Mapping[str, str]) -> None:
    """Raise InvalidParameter for a StorageClass's parameters that fit no volume; those that wait for a PVC's annotations are not whole yet."""
    given = canonical_keys(parameters)
    if ANNOTATED in given:
        annotated_keys(given[ANNOTATED])
    else:
        parse(parameters)


class ClusterClaims:
    """The PVCs of a cluster; one call each."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def annotations(self, namespace: str, name: str) -> dict[str, str]:
        """The annotations of a PVC. Raises FailedPrecondition where it is not there, and what `ApiServer.call` raises."""
        from csi.cluster.api_server import METADATA, path_of  # 3 MB that a folder does not need

        path = path_of("api", "v1", "namespaces", namespace, "persistentvolumeclaims", name)
        try:
            claim = self._server.call("GET", path, accept=METADATA)
        except NotFound:
            raise FailedPrecondition(f"PVC {namespace}/{name} is gone, and its annotations were to name the source; create it anew") from None
        return dict(claim["metadata"].get("annotations") or {})


def open_claims(server: ApiServer | None) -> ClusterClaims | None:
    """The PVCs of the cluster of `server`, None without one."""
    return ClusterClaims(server) if server else None
