"""ModelScope models and datasets: facts through the SDK's client, bytes through the ranged HTTP engine.

The endpoint is MODELSCOPE_ENDPOINT's. Listings have no commit to pin, so the digests of the files are the pin.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from csi.destinations.destinations import Destinations
from csi.errors import (
    DataCacheError,
    InvalidParameter,
    OriginUnavailable,
    PermissionDenied,
    SourceNotFound,
    Unauthenticated,
)
from csi.manifest.manifest import Entry, EntryKind, Manifest, build_manifest
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.hub import HubSpec
from csi.sources.http.connections import Connections, format_site
from csi.sources.http.file_urls import FileUrls
from csi.sources.http.range_reader import RangeReader
from csi.sources.hubs.modelscope_client import HubStatusError, ModelScopeClient, configured_endpoint
from csi.sources.patterns import CountingIterator, is_included

_REPO_TYPES = {"ModelScope/Model": "model", "ModelScope/DataSet": "dataset"}
_FILL_CONNECTIONS = 16
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ModelScopeSource:
    """One repository of ModelScope, read with `token` (None: as anybody). Implements `csi.sources.source.Source`."""

    def __init__(self, spec: CacheSpec, token: str | None, destinations: Destinations | None = None) -> None:
        """Raises InvalidParameter when `spec` is of another source, or the endpoint is none."""
        if not isinstance(spec.source, HubSpec) or spec.source.repo_source not in _REPO_TYPES:
            raise InvalidParameter(
                f"repoSource must be one of {', '.join(_REPO_TYPES)}, this is {spec.source.display_name}"
            )
        self._spec, self._hub, self._token = spec, spec.source, token
        endpoint = configured_endpoint()
        self._host = format_site(endpoint)
        policy = (destinations or Destinations()).with_operator_host(self._host)
        self._client = ModelScopeClient(
            endpoint, _REPO_TYPES[self._hub.repo_source], self._hub.repo_id, token, policy
        )
        # Its older calls know the session cookie, its newer ones the header: the SDK sends both.
        headers = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
        self._connections = Connections(_FILL_CONNECTIONS, policy)
        self._file_urls = FileUrls(
            lambda entry: self._client.get_file_url(entry.path, self._hub.revision),
            headers,
            self._error_for_status,
        )

    def pin(self) -> CacheSpec:
        """The spec itself: the listing has no commit. What the repository held is told by the manifest's digest alone."""
        return self._spec

    def resolve(self, pinned: CacheSpec) -> Manifest:
        """Every file that the patterns let through; raises InvalidParameter when they leave nothing, OriginUnavailable for half a listing.

        Of a dataset's file its entry alone is held: 500 bytes at most where the path has 40. A model's listing is the SDK's, 1,000 bytes a file.
        """
        hub = self._hub
        files = CountingIterator(
            item for item in self._client.iter_entries(hub.revision) if item.get("Type", "blob") != "tree"
        )
        selected = (
            item
            for item in files
            if is_included(str(item.get("Path")), hub.allow_patterns, hub.ignore_patterns)
        )
        try:
            manifest = build_manifest(
                map(self._build_entry, selected),
                pinned.to_context(),
                preserve_ownership=pinned.preserve_ownership,
            )
        except HubStatusError as refusal:
            raise self._error_for_status(refusal.status, {}) or OriginUnavailable(
                f"{self._host} refuses to list {hub.display_name}"
            ) from refusal
        if not files.count:
            raise SourceNotFound(
                f"{self._host} lists no file in {hub.display_name}; check repoId and revision"
            )
        if not manifest.entries:
            raise InvalidParameter(
                f"allowPatterns and ignorePatterns leave none of the {files.count} files of {hub.display_name}; check allowPatterns"
            )
        return manifest

    def check_read_access(self, manifest: Manifest) -> None:
        """Read one byte of the smallest file that has one; where all are empty, list again: a listing is all there is to read."""
        smallest = min(
            (file for file in manifest.files if file.size), key=lambda file: file.size, default=None
        )
        if smallest is None:
            self.resolve(self._spec)
            return
        with self.open_reader(manifest) as reader:
            reader.read_into(smallest, 0, memoryview(bytearray(1)))

    def open_reader(self, manifest: Manifest) -> RangeReader:
        """A reader of the manifest's files; all readers of this source share what redirects led to."""
        return RangeReader(self._connections, self._file_urls)

    def close(self) -> None:
        """Let go of all connections."""
        self._connections.close()
        self._client.close()

    def _build_entry(self, item: Mapping[str, Any]) -> Entry:
        path, size, sha256 = item.get("Path"), item.get("Size"), str(item.get("Sha256") or "").lower()
        if not isinstance(path, str) or not isinstance(size, int) or size < 0:
            raise OriginUnavailable(
                f"{self._host} lists {path!r} of {self._hub.display_name} without a usable path and size"
            )
        if _SHA256.fullmatch(sha256):
            return Entry(path, EntryKind.FILE, size=size, digest=f"sha256:{sha256}")
        revision = item.get("Revision")
        if not revision:
            raise OriginUnavailable(
                f"{self._host} lists {path!r} of {self._hub.display_name} without a sha256 and a revision"
            )
        return Entry(
            path,
            EntryKind.FILE,
            size=size,
            digest=f"token:modelscope {json.dumps([self._host, self._hub.origin_scope, path, revision, size])}",
        )

    def _error_for_status(self, status: int, headers: Mapping[str, str]) -> DataCacheError | None:
        """What an error status of the hub means; None where it means nothing in particular."""
        shown = self._hub.display_name
        if status in (401, 403) and self._token is None:
            return Unauthenticated(
                f"{shown} is private, or does not exist: check repoId or give a token in a Secret (key `token`)"
            )
        if status == 401:
            why = "it is wrong, revoked or expired; put a valid one in the Secret (key `token`)"
            return Unauthenticated(f"{self._host} refuses the token for {shown}: {why}")
        if status == 403:
            return PermissionDenied(
                f"{self._host} lets this token not read {shown}; check the token's rights"
            )
        if status in (400, 404):
            check = "check repoSource, repoId, revision and the token"
            return SourceNotFound(
                f"{shown} does not exist on {self._host}, or this token may not see it: {check}"
            )
        return None
