"""ModelScope models and datasets: facts through the SDK's client, bytes through the ranged HTTP engine.

The endpoint is MODELSCOPE_ENDPOINT's. Listings have no commit to pin, so the digests of the files are the pin.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from csi.destinations.destinations import Destinations
from csi.errors import DataCacheError, InvalidParameter, OriginUnavailable, PermissionDenied, SourceNotFound, Unauthenticated
from csi.manifest.manifest import Entry, Kind, Manifest, build
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.hub import HubSpec
from csi.sources.http.connections import Connections, shown_site
from csi.sources.http.file_urls import Addresses
from csi.sources.http.range_reader import RangeReader
from csi.sources.hubs.modelscope_client import HubRefusal, ModelScopeClient, configured_endpoint
from csi.sources.patterns import Counted, is_chosen

_KINDS = {"ModelScope/Model": "model", "ModelScope/DataSet": "dataset"}
_FILL_CONNECTIONS = 16
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ModelScopeSource:
    """One repository of ModelScope, read with `token` (None: as anybody). Implements `csi.sources.source.Source`."""

    def __init__(self, spec: CacheSpec, token: str | None, where: Destinations | None = None) -> None:
        """Raises InvalidParameter when `spec` is of another source, or the endpoint is none."""
        if not isinstance(spec.source, HubSpec) or spec.source.repo_source not in _KINDS:
            raise InvalidParameter(f"repoSource must be one of {', '.join(_KINDS)}, this is {spec.source.shown}")
        self._spec, self._hub, self._token = spec, spec.source, token
        endpoint = configured_endpoint()
        self._host = shown_site(endpoint)
        policy = (where or Destinations()).with_operators(self._host)
        self._client = ModelScopeClient(endpoint, _KINDS[self._hub.repo_source], self._hub.repo_id, token, policy)
        # Its older calls know the session cookie, its newer ones the header: the SDK sends both.
        headers = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
        self._connections = Connections(_FILL_CONNECTIONS, policy)
        self._addresses = Addresses(lambda entry: self._client.address(entry.path, self._hub.revision), headers, self._refusal)

    def pin(self) -> CacheSpec:
        """The spec itself: the listing has no commit. What the repository held is told by the manifest's digest alone."""
        return self._spec

    def resolve(self, pinned: CacheSpec) -> Manifest:
        """Every file that the patterns let through; raises InvalidParameter when they leave nothing, OriginUnavailable for half a listing.

        Of a dataset's file its entry alone is held: 500 bytes at most where the path has 40. A model's listing is the SDK's, 1,000 bytes a file.
        """
        hub = self._hub
        files = Counted(item for item in self._client.listing(hub.revision) if item.get("Type", "blob") != "tree")
        chosen = (item for item in files if is_chosen(str(item.get("Path")), hub.allow_patterns, hub.ignore_patterns))
        try:
            manifest = build(map(self._entry, chosen), pinned.to_context(), preserve_ownership=pinned.preserve_ownership)
        except HubRefusal as refusal:
            raise self._refusal(refusal.status, {}) or OriginUnavailable(f"{self._host} refuses to list {hub.shown}") from refusal
        if not files.count:
            raise SourceNotFound(f"{self._host} lists no file in {hub.shown}; check repoId and revision")
        if not manifest.entries:
            raise InvalidParameter(f"allowPatterns and ignorePatterns leave none of the {files.count} files of {hub.shown}; check allowPatterns")
        return manifest

    def prove(self, manifest: Manifest) -> None:
        """Read one byte of the smallest file that has one; where all are empty, list again: a listing is all there is to read."""
        smallest = min((file for file in manifest.files if file.size), key=lambda file: file.size, default=None)
        if smallest is None:
            self.resolve(self._spec)
            return
        with self.reader(manifest) as reader:
            reader.read_into(smallest, 0, memoryview(bytearray(1)))

    def reader(self, manifest: Manifest) -> RangeReader:
        """A reader of the manifest's files; all readers of this source share what redirects led to."""
        return RangeReader(self._connections, self._addresses)

    def close(self) -> None:
        """Let go of all connections."""
        self._connections.close()
        self._client.close()

    def _entry(self, item: Mapping[str, Any]) -> Entry:
        path, size, sha256 = item.get("Path"), item.get("Size"), str(item.get("Sha256") or "").lower()
        if not isinstance(path, str) or not isinstance(size, int) or size < 0:
            raise OriginUnavailable(f"{self._host} lists {path!r} of {self._hub.shown} without a usable path and size")
        if _SHA256.fullmatch(sha256):
            return Entry(path, Kind.FILE, size=size, digest=f"sha256:{sha256}")
        revision = item.get("Revision")
        if not revision:
            raise OriginUnavailable(f"{self._host} lists {path!r} of {self._hub.shown} without a sha256 and a revision")
        return Entry(path, Kind.FILE, size=size, digest=f"token:modelscope {json.dumps([self._host, self._hub.place, path, revision, size])}")

    def _refusal(self, status: int, headers: Mapping[str, str]) -> DataCacheError | None:
        """What an error status of the hub means; None where it means nothing in particular."""
        shown = self._hub.shown
        if status in (401, 403) and self._token is None:
            return Unauthenticated(f"{shown} is private, or does not exist: check repoId or give a token in a Secret (key `token`)")
        if status == 401:
            why = "it is wrong, revoked or expired; put a valid one in the Secret (key `token`)"
            return Unauthenticated(f"{self._host} refuses the token for {shown}: {why}")
        if status == 403:
            return PermissionDenied(f"{self._host} lets this token not read {shown}; check the token's rights")
        if status in (400, 404):
            check = "check repoSource, repoId, revision and the token"
            return SourceNotFound(f"{shown} does not exist on {self._host}, or this token may not see it: {check}")
        return None
