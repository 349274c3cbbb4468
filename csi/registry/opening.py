"""`--registry`: a folder, or the word "kubernetes"."""

from __future__ import annotations

from pathlib import Path

from csi.registry.directory import DirectoryRegistry
from csi.registry.volume import VolumeRegistry

KUBERNETES = "kubernetes"
HELP = "a folder, or the word kubernetes for the cluster that the program runs in (or that KUBECONFIG names)"


def open_registry(where: str) -> VolumeRegistry:
    """The registry that the flag names. Raises FailedPrecondition or InvalidParameter where there is no cluster to be found."""
    if where != KUBERNETES:
        return DirectoryRegistry(Path(where))
    from csi.registry.kubernetes import from_environment  # 3 MB that a folder does not need

    return from_environment()
