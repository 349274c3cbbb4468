"""What kubelet asks of a volume, and what it is told of one."""

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

_EPHEMERAL, _POD_NAMESPACE, _POD_NAME, _POD_UID = (
    f"csi.storage.k8s.io/{key}" for key in ("ephemeral", "pod.namespace", "pod.name", "pod.uid")
)


@dataclass(frozen=True)
class MountRequest:
    """What NodeStageVolume and NodePublishVolume ask. `path` is where to, `staging_path` where from ("" when inline)."""

    volume_id: str
    path: Path
    mode: AccessMode
    context: Mapping[str, str]
    secrets: Secrets = field(default_factory=Secrets)
    mount_flags: tuple[str, ...] = ()
    readonly: bool = False
    staging_path: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", resolve_parent(self.path))
        object.__setattr__(
            self, "staging_path", self.staging_path and str(resolve_parent(Path(self.staging_path)))
        )

    @property
    def is_inline(self) -> bool:
        """Whether the volume lives in a pod's manifest; kubelet sets this key, over whatever the pod's author wrote."""
        return self.context.get(_EPHEMERAL) == "true"

    @property
    def namespace(self) -> str:
        """The namespace of the pod, "" where that is not known."""
        return self.context.get(_POD_NAMESPACE, "")

    @property
    def volume_context(self) -> dict[str, str]:
        """The context without what Kubernetes adds, which differs from pod to pod."""
        return {key: value for key, value in self.context.items() if not key.startswith(FOREIGN_PREFIXES)}

    @property
    def exposure(self) -> Exposure:
        """How the volume is to be shown at `path`."""
        return Exposure(
            self.mode.csi_name,
            self.readonly,
            self.mount_flags,
            find_pod_uid(self.path, self.context.get(_POD_UID, "")),
        )

    @property
    def event_reference(self) -> ObjectReference | None:
        """What people look at for this volume: the pod of an inline one, the PVC of a persistent one; None where that is not known."""
        if self.is_inline:
            return ObjectReference.for_pod(
                *(self.context.get(key, "") for key in (_POD_NAMESPACE, _POD_NAME, _POD_UID))
            )
        return ObjectReference.for_pvc(PvcReference.from_context(self.context))


@dataclass(frozen=True)
class VolumeStats:
    """A volume's numbers (bytes and inodes) and condition."""

    capacity_bytes: int
    content_bytes: int
    inodes: int
    is_abnormal: bool
    message: str
