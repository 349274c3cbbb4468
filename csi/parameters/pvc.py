"""The PVC that a volume was created for, as external-provisioner passes it (`--extra-create-metadata`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_NAMESPACE, _NAME = "csi.storage.k8s.io/pvc/namespace", "csi.storage.k8s.io/pvc/name"
_VOLUME = "csi.storage.k8s.io/pv/name"
# A PersistentVolume is named after its claim: "pvc-" and the uid.
_UID = re.compile(r"-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$")


@dataclass(frozen=True)
class PvcReference:
    """A PVC. `uid` is "" if the name of the volume does not contain it (`--volume-name-uuid-length`)."""

    namespace: str
    name: str
    uid: str = ""

    @staticmethod
    def from_context(context: Mapping[str, str]) -> PvcReference | None:
        """Read the PVC from parameters or a volume context; None if they name none."""
        namespace, name = context.get(_NAMESPACE, ""), context.get(_NAME, "")
        match = _UID.search(context.get(_VOLUME, ""))
        return PvcReference(namespace, name, match[1] if match else "") if namespace and name else None

    def to_context(self, volume_name: str) -> dict[str, str]:
        """Return the keys that `from_context` reads.

        Parsers of parameters ignore them, as all of Kubernetes' own.
        """
        return {_NAMESPACE: self.namespace, _NAME: self.name, _VOLUME: volume_name}

    def to_json(self) -> dict[str, str]:
        """Convert to the JSON that objects of the cluster store."""
        return {"namespace": self.namespace, "name": self.name} | ({"uid": self.uid} if self.uid else {})

    @staticmethod
    def from_json(stored: Mapping[str, str]) -> PvcReference:
        """Read what `to_json` wrote; raises KeyError for anything else."""
        return PvcReference(namespace=stored["namespace"], name=stored["name"], uid=stored.get("uid", ""))
