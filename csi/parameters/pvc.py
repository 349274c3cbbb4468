"""The PVC that a volume was made for, as far as external-provisioner says (`--extra-create-metadata`)."""

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
    """A PVC. `uid` is "" where the volume's name does not tell it (`--volume-name-uuid-length`)."""

    namespace: str
    name: str
    uid: str = ""

    @staticmethod
    def from_context(context: Mapping[str, str]) -> PvcReference | None:
        """The PVC that parameters or a volume context name, None for none."""
        namespace, name = context.get(_NAMESPACE, ""), context.get(_NAME, "")
        found = _UID.search(context.get(_VOLUME, ""))
        return PvcReference(namespace, name, found[1] if found else "") if namespace and name else None

    def to_context(self, volume_name: str) -> dict[str, str]:
        """The keys that `from_context` reads; parsers of parameters leave them out, as all of Kubernetes' own."""
        return {_NAMESPACE: self.namespace, _NAME: self.name, _VOLUME: volume_name}

    def to_json(self) -> dict[str, str]:
        """Return what objects of the cluster keep of it."""
        return {"namespace": self.namespace, "name": self.name} | ({"uid": self.uid} if self.uid else {})

    @staticmethod
    def from_json(kept: Mapping[str, str]) -> PvcReference:
        """Return the PVC that `to_json` wrote; raise KeyError for anything else."""
        return PvcReference(namespace=kept["namespace"], name=kept["name"], uid=kept.get("uid", ""))
