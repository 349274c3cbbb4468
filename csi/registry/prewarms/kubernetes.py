"""What a node is to have, as CachePrewarm objects of the cluster says it (deploy/crds/cacheprewarms.yaml).

Idle, this is one watch for metadata alone: what other nodes report is small when it comes by, and changes no generation.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any

from csi.cluster.api_server import MERGE, METADATA, ApiServer, path_of
from csi.cluster.outbox import Outbox
from csi.cluster.watch import Watch, pages
from csi.errors import ClusterConflict, FailedPrecondition, NotFound
from csi.registry.custom_resource import GROUP, STATUS_MANAGER, VERSION
from csi.registry.prewarms.prewarms import NodeState, Prewarm, PrewarmedCache
from csi.registry.prewarms.status import forgotten, reported
from csi.registry.volumes.record import VolumeRecord, VolumeRegistry, id_of_name

log = logging.getLogger("datacache.prewarms")

MANAGER, PLURAL = "datacache-node", "cacheprewarms"
_ALL = path_of("apis", GROUP, VERSION, PLURAL)
# Somebody waits for each of these words, and a node has few of them for an order.
_BETWEEN_SECONDS = 0.05


class KubernetesPrewarms:
    """See Prewarms. `node` is this node's name; `registry` has the volumes of PVCs."""

    def __init__(self, server: ApiServer, node: str, registry: VolumeRegistry, outbox: Outbox | None = None) -> None:
        self._server, self._node, self._registry = server, node, registry
        self._outbox = outbox or Outbox(between_seconds=_BETWEEN_SECONDS)

    def all(self) -> list[Prewarm]:
        """See Prewarms."""
        things = (thing for page in pages(self._server, _ALL) for thing in page["items"])
        return [found for thing in things if (found := _readable(thing))]

    def watch(self, changed: Callable[[str], None]) -> AbstractContextManager[None]:
        """See Prewarms."""
        return Watch(self._server, _ALL, lambda name, thing: changed(name)).running()

    def labels(self) -> Mapping[str, str]:
        """See Prewarms; raises NotFound where the cluster has no node of this name."""
        return dict(self._server.call("GET", path_of("api", "v1", "nodes", self._node), accept=METADATA)["metadata"].get("labels") or {})

    def secret(self, namespace: str, name: str) -> Mapping[str, str]:
        """See Prewarms."""
        try:
            data = self._server.call("GET", path_of("api", "v1", "namespaces", namespace, "secrets", name)).get("data") or {}
            return {key: base64.b64decode(value).decode() for key, value in data.items()}
        except NotFound:
            raise FailedPrecondition(f"the Secret {namespace}/{name} is not there; make it, or name another in secretRef") from None
        except UnicodeDecodeError:
            raise FailedPrecondition(f"the Secret {namespace}/{name} has a value that is no text; put the credential there as it is") from None

    def claimed(self, namespace: str, claim: str) -> VolumeRecord:
        """See Prewarms."""
        try:
            found = self._server.call("GET", path_of("api", "v1", "namespaces", namespace, "persistentvolumeclaims", claim))
        except NotFound:
            raise FailedPrecondition(f"the PVC {namespace}/{claim} is not there; make it, or name the source in parameters") from None
        # Anybody may write the name of a PV into a PVC; the phase is Kubernetes' own word.
        volume = found["spec"].get("volumeName", "") if found.get("status", {}).get("phase") == "Bound" else ""
        record = self._registry.get(id_of_name(volume)) if volume else None
        if record is None:
            why = f"its PV {volume} is none that this driver made" if volume else "it is not bound to a PV"
            raise FailedPrecondition(f"the PVC {namespace}/{claim} has no cache: {why}; name the source in parameters")
        return record

    def report(self, prewarm: Prewarm, state: NodeState | None) -> None:
        """See Prewarms."""
        self._outbox.put(prewarm.key, lambda: self._write(prewarm, state), lasting=True)

    def close(self) -> None:
        """Report nothing more."""
        self._outbox.close()

    def _write(self, prewarm: Prewarm, state: NodeState | None) -> None:
        try:
            thing = self._server.call("GET", _path(prewarm.namespace, prewarm.name))
            if (thing["metadata"]["uid"], thing["metadata"]["generation"]) != (prewarm.uid, prewarm.generation):
                return  # changed meanwhile: this is news of yesterday
            said = reported(prewarm, thing.get("status", {}), self._node, state, time.time())
            if said:
                _patch(self._server, thing, said, MANAGER)
        except NotFound:
            return


class PrewarmedNodes:
    """The nodes in the status of CachePrewarms (see Traces)."""

    kind = "CachePrewarm"

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._showing: list[tuple[Mapping[str, Any], frozenset[str]]] = []

    def nodes(self) -> frozenset[str]:
        """See Traces."""
        things = (thing for page in pages(self._server, _ALL) for thing in page["items"])
        self._showing = [(thing, names) for thing in things if (names := _shown(thing))]
        return frozenset().union(*(names for _, names in self._showing))

    def sweep(self, gone: frozenset[str]) -> None:
        """See Traces."""
        for thing, names in self._showing:
            prewarm = _readable(thing) if names & gone else None
            said = prewarm and forgotten(prewarm, thing["status"], gone, time.time())
            if prewarm and said:
                log.info("nodes swept", extra={"fields": {"object": prewarm.key, "nodes": sorted(names & gone)}})
                with suppress(NotFound, ClusterConflict):  # one that has changed meanwhile is looked at again
                    _patch(self._server, thing, said, STATUS_MANAGER)


def _shown(thing: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(entry["node"] for entry in thing.get("status", {}).get("nodes") or [])


def _patch(server: ApiServer, thing: Mapping[str, Any], said: Mapping[str, Any], manager: str) -> None:
    """Change the status of the very version that was read. Raises NotFound, ClusterConflict, and as `ApiServer.call`."""
    meta = thing["metadata"]
    body = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": said}
    server.call("PATCH", f"{_path(meta['namespace'], meta['name'])}/status", {"fieldManager": manager}, body, MERGE)


def _path(namespace: str, name: str) -> str:
    return path_of("apis", GROUP, VERSION, "namespaces", namespace, PLURAL, name)


def _readable(thing: Mapping[str, Any]) -> Prewarm | None:
    meta, spec = thing["metadata"], thing["spec"]
    try:
        caches = tuple(map(_cache, spec["caches"]))
        selector = dict(spec.get("nodeSelector") or {})
        return Prewarm(meta["namespace"], meta["name"], meta["uid"], int(meta["generation"]), caches, selector)
    except (KeyError, TypeError, AttributeError) as error:
        log.warning("a CachePrewarm cannot be read", extra={"fields": {"object": meta.get("name"), "reason": type(error).__name__}})
        return None


def _cache(given: Mapping[str, Any]) -> PrewarmedCache:
    secret = (given.get("secretRef") or {}).get("name", "")
    named = given.get("dataCache", ""), given.get("manifestDigest", "")
    return PrewarmedCache(dict(given.get("parameters") or {}), given.get("claimName", ""), secret, *named)
