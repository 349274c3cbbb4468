"""Objects of storage as users write them: classes, claims, and pods that mount them at /data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.cluster.kubectl import Object
from tests.cluster.pods import pod

DRIVER = "datacache.csi.io"


def storage_class(name: str, parameters: Mapping[str, str], binding: str = "Immediate") -> Object:
    """A StorageClass of the driver."""
    metadata = {"name": name}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": metadata,
        "provisioner": DRIVER,
        "volumeBindingMode": binding,
        "parameters": dict(parameters),
    }


def claim(
    name: str,
    of: str,
    mode: str = "ReadOnlyMany",
    namespace: str = "default",
    size: str = "1Gi",
    attributes: str = "",
    volume: str = "",
) -> Object:
    """A claim of the class `of`.

    `attributes` names a VolumeAttributesClass, `volume` the PersistentVolume that it is for.
    """
    spec: Object = {
        "storageClassName": of,
        "accessModes": [mode],
        "resources": {"requests": {"storage": size}},
    }
    spec |= {"volumeAttributesClassName": attributes} if attributes else {}
    spec |= {"volumeName": volume} if volume else {}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def claim_volume(name: str) -> Object:
    """A pod's volume: the claim `name`."""
    return {"name": "data", "persistentVolumeClaim": {"claimName": name, "readOnly": True}}


def inline_volume(attributes: Mapping[str, str], secret: str = "") -> Object:
    """A pod's volume in its own manifest; `secret` names a Secret of its namespace."""
    csi: Object = {"driver": DRIVER, "readOnly": True, "volumeAttributes": dict(attributes)}
    csi |= {"nodePublishSecretRef": {"name": secret}} if secret else {}
    return {"name": "data", "csi": csi}


def reader(
    name: str, volume: Object, command: Sequence[str] = (), node: str = "", namespace: str = "default"
) -> Object:
    """A pod that has `volume` at /data, and sleeps unless it has something to do."""
    made = pod(name, command, node=node, volumes=[volume])
    made["metadata"]["namespace"] = namespace
    made["spec"]["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data", "readOnly": True}]
    return made


def secret(name: str, namespace: str = "default", **values: str) -> Object:
    """A Secret."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": values,
    }


def namespace(name: str) -> Object:
    """A namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
