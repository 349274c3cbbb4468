"""ModelScope models and datasets: metadata through the SDK's client, bytes through the ranged HTTP reader.

The endpoint is that of MODELSCOPE_ENDPOINT. Listings have no commit to pin, so the digests of the files are
the pin.
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
from csi.sources.http.connections import Connections
from csi.sources.http.file_urls import FileUrls
from csi.sources.http.range_reader import RangeReader
from csi.sources.http.sites import format_site
from csi.sources.hubs.modelscope_client import HubStatusError, ModelScopeClient, configured_endpoint
from csi.sources.patterns import CountingIterator, is_included
from csi.sources.source import DEFAULT_CONNECTIONS, Source

_REPO_TYPES = {"ModelScope/Model": "model", "ModelScope/DataSet": "dataset"}
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ModelScopeSource(Source):
    """One repository of ModelScope, read with `token` (None: anonymously)."""

    def __init__(
        self,
        spec: CacheSpec,
        token: str | None,
        destinations: Destinations | None = None,
        max_connections: int = DEFAULT_CONNECTIONS,
    ) -> None:
        """Raise InvalidParameter if `spec` has another source, or the endpoint is invalid."""
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
        # Older APIs take the session cookie, newer ones the header: the SDK sends both.
        headers = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
        self._connections = Connections(max_connections, policy)
        self._file_urls = FileUrls(
            lambda entry: self._client.get_file_url(entry.path, self._hub.revision),
            headers,
            self._error_for_status,
        )

    def pin(self) -> CacheSpec:
        """Return the spec itself, as listings have no commit.

        Only the manifest's digest identifies the content.
        """
        return self._spec

    def resolve(self, pinned: CacheSpec) -> Manifest:
        """List every file selected by the patterns.

        Raises InvalidParameter if they select nothing, OriginUnavailable for a truncated listing. Memory: for
        a dataset only the entries, at most 500 bytes for a path of 40; for a model the SDK's listing, 1,000
        bytes per file.
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
        except HubStatusError as error:
            raise self._error_for_status(error.status, {}) or OriginUnavailable(
                f"{self._host} refuses to list {hub.display_name}"
            ) from error
        if not files.count:
            raise SourceNotFound(
                f"{self._host} lists no file in {hub.display_name}; check repoId and revision"
            )
        if not manifest.entries:
            raise InvalidParameter(
                f"allowPatterns and ignorePatterns leave none of the {files.count} files "
                f"of {hub.display_name}; check allowPatterns"
            )
        return manifest

    def check_read_access(self, manifest: Manifest) -> None:
        """Read one byte of the smallest non-empty file.

        If all are empty, list again, as there is nothing else to read.
        """
        smallest = min(
            (file for file in manifest.files if file.size), key=lambda file: file.size, default=None
        )
        if smallest is None:
            self.resolve(self._spec)
            return
        with self.open_reader(manifest) as reader:
            reader.read_into(smallest, 0, memoryview(bytearray(1)))

    def open_reader(self, manifest: Manifest) -> RangeReader:
        """Open a reader of the manifest's files; all readers of this source share redirect targets."""
        return RangeReader(self._connections, self._file_urls)

    def close(self) -> None:
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
        identity = json.dumps([self._host, self._hub.origin_scope, path, revision, size])
        return Entry(path, EntryKind.FILE, size=size, digest=f"token:modelscope {identity}")

    def _error_for_status(self, status: int, headers: Mapping[str, str]) -> DataCacheError | None:
        """Translate an error status of the hub; None if it has no specific meaning."""
        display_name = self._hub.display_name
        if status in (401, 403) and self._token is None:
            return Unauthenticated(
                f"{display_name} is private, or does not exist: "
                "check repoId or give a token in a Secret (key `token`)"
            )
        if status == 401:
            hint = "it is wrong, revoked or expired; put a valid one in the Secret (key `token`)"
            return Unauthenticated(f"{self._host} refuses the token for {display_name}: {hint}")
        if status == 403:
            return PermissionDenied(
                f"{self._host} does not let this token read {display_name}; check the token's rights"
            )
        if status in (400, 404):
            hint = "check repoSource, repoId, revision and the token"
            return SourceNotFound(
                f"{display_name} does not exist on {self._host}, or this token may not see it: {hint}"
            )
        return None
