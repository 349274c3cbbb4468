"""Requests of kubelet to stage or publish a volume, and the statistics that it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from csi.linux.cgroups.pod_cgroups import find_pod_uid
from csi.linux.mounts import resolve_parent
from csi.parameters.access_modes import AccessMode
from csi.parameters.content_ref import Secrets
from csi.parameters.pvc import PvcReference
from csi.parameters.volume_parameters import FOREIGN_PREFIXES
from csi.registry.events.recorder import ObjectReference
from node_plugin.volumes.records import Exposure

# Keys that kubelet adds to the volume context if the CSIDriver has podInfoOnMount.
_EPHEMERAL, _POD_NAMESPACE, _POD_NAME, _POD_UID = (
    f"csi.storage.k8s.io/{key}" for key in ("ephemeral", "pod.namespace", "pod.name", "pod.uid")
)


@dataclass(frozen=True)
class MountRequest:
    """Arguments of NodeStageVolume or NodePublishVolume.

    `path` is the staging or target path; `staging_path` is the source of a publish ("" for inline volumes).
    Both are normalized, so that they compare equal to paths of the mount table.
    """

    volume_id: str
    path: Path
    mode: AccessMode
    context: Mapping[str, str]
    secrets: Secrets = field(default_factory=Secrets)
    mount_flags: tuple[str, ...] = ()
    readonly: bool = False
    staging_path: str = ""

    def __post_init__(self) -> None:
        # The dataclass is frozen. The mount table has resolved paths, kubelet's may have symbolic links.
        object.__setattr__(self, "path", resolve_parent(self.path))
        object.__setattr__(
            self, "staging_path", self.staging_path and str(resolve_parent(Path(self.staging_path)))
        )

    @property
    def is_inline(self) -> bool:
        """Whether the volume is inline in a pod; kubelet overwrites this key if the pod's author sets it."""
        return self.context.get(_EPHEMERAL) == "true"

    @property
    def namespace(self) -> str:
        """The namespace of the pod, "" if unknown."""
        return self.context.get(_POD_NAMESPACE, "")

    @property
    def volume_context(self) -> dict[str, str]:
        """The volume context without the keys that Kubernetes adds, which differ between pods."""
        return {key: value for key, value in self.context.items() if not key.startswith(FOREIGN_PREFIXES)}

    @property
    def exposure(self) -> Exposure:
        """How the volume is to be mounted at `path`."""
        return Exposure(
            self.mode.csi_name,
            self.readonly,
            self.mount_flags,
            find_pod_uid(self.path, self.context.get(_POD_UID, "")),
        )

    @property
    def event_reference(self) -> ObjectReference | None:
        """The object for Events: an inline volume's pod, a persistent volume's PVC; None if unknown."""
        if self.is_inline:
            return ObjectReference.for_pod(
                *(self.context.get(key, "") for key in (_POD_NAMESPACE, _POD_NAME, _POD_UID))
            )
        return ObjectReference.for_pvc(PvcReference.from_context(self.context))


@dataclass(frozen=True)
class VolumeStats:
    """Statistics of a volume (bytes and inodes) and its condition."""

    capacity_bytes: int
    content_bytes: int
    inodes: int
    is_abnormal: bool
    message: str
