"""Hugging Face models and datasets: metadata through huggingface_hub, bytes through the ranged HTTP reader.

The endpoint is that of HF_ENDPOINT. Only the given token is ever sent: HF_TOKEN and the token file belong to
a person, not to a volume. Messages are this module's own: those of huggingface_hub contain URLs and request
ids.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import huggingface_hub
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import RepoFile

# The package builds its list of names at run time.
from huggingface_hub.utils import build_hf_headers, filter_repo_objects  # type: ignore[attr-defined]

from csi import __version__
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
from csi.parameters.dialects.hub import HubSpec, is_commit
from csi.sources.http.connections import Connections
from csi.sources.http.file_urls import FileUrls
from csi.sources.http.range_reader import RangeReader
from csi.sources.http.sites import format_site, parse_site
from csi.sources.hubs.hub_client import HubClient
from csi.sources.patterns import CountingIterator
from csi.sources.source import DEFAULT_CONNECTIONS, Source

_REPO_TYPES = {"HuggingFace/Model": "model", "HuggingFace/DataSet": "dataset"}
# Connections kept for access checks, which take one or two requests per volume.
_WARM_CONNECTIONS = 2
_USER_AGENT = "datacache-csi"
_FILE_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|git:[0-9a-f]{40}")

# Nodes must not send usage statistics, which include what other programs run here.
constants.HF_HUB_DISABLE_TELEMETRY = True


def configured_endpoint() -> str:
    """Return the hub's address from HF_ENDPOINT, else the public one."""
    return constants.ENDPOINT


class HuggingFaceSource(Source):
    """One repository of the hub, read with `token` (None: anonymously)."""

    def __init__(
        self,
        spec: CacheSpec,
        token: str | None,
        destinations: Destinations | None = None,
        max_connections: int = DEFAULT_CONNECTIONS,
    ) -> None:
        """Raise InvalidParameter if `spec` has another source."""
        if not isinstance(spec.source, HubSpec) or spec.source.repo_source not in _REPO_TYPES:
            raise InvalidParameter(
                f"repoSource must be one of {', '.join(_REPO_TYPES)}, this is {spec.source.display_name}"
            )
        self._spec, self._hub, self._token = spec, spec.source, token
        self._repo_type = _REPO_TYPES[spec.source.repo_source]
        self._endpoint = configured_endpoint()
        self._destinations = (destinations or Destinations()).with_operator_host(format_site(self._endpoint))
        _configure_endpoint(self._endpoint, self._destinations)
        self._api = HfApi(
            endpoint=self._endpoint,
            token=token or False,
            library_name=_USER_AGENT,
            library_version=__version__,
        )
        self._headers: dict[str, str] = build_hf_headers(
            token=token or False, library_name=_USER_AGENT, library_version=__version__
        )
        self._file_urls: dict[str, FileUrls] = {}
        self._connections = Connections(max_connections, self._destinations)

    def pin(self) -> CacheSpec:
        """Return the spec at the current commit of its revision.

        Sends no request if it is a commit already.
        """
        if is_commit(self._hub.revision):
            return self._spec
        with self._translate_errors():
            commit = self._api.repo_info(
                self._hub.repo_id, revision=self._hub.revision, repo_type=self._repo_type
            ).sha
        if commit is None or not is_commit(commit):
            raise OriginUnavailable(
                f"{self._host} names no commit for {self._hub.display_name}; check that HF_ENDPOINT is a hub"
            )
        return replace(self._spec, source=replace(self._hub, revision=commit))

    def resolve(self, pinned: CacheSpec) -> Manifest:
        """List every file of `pinned` selected by its patterns.

        Raises InvalidParameter if they select nothing.

        Memory: one page of the listing, and the entry of each file, at most 500 bytes for a path of 40.
        """
        hub = pinned.source
        assert isinstance(hub, HubSpec)
        files = CountingIterator(self._iter_files(hub))
        allow, ignore = list(hub.allow_patterns) or None, list(hub.ignore_patterns) or None
        selected = filter_repo_objects(
            files, allow_patterns=allow, ignore_patterns=ignore, key=lambda file: file.path
        )
        manifest = build_manifest(
            map(self._build_entry, selected),
            pinned.to_context(),
            preserve_ownership=pinned.preserve_ownership,
        )
        if not files.count:
            raise SourceNotFound(
                f"{self._host} lists no file in {hub.display_name}; "
                "check repoId and revision, and that HF_ENDPOINT is a hub"
            )
        if not manifest.entries:
            raise InvalidParameter(
                f"allowPatterns and ignorePatterns leave none of the {files.count} files "
                f"of {hub.display_name}; check allowPatterns"
            )
        return manifest

    def _iter_files(self, hub: HubSpec) -> Iterator[RepoFile]:
        with self._translate_errors():
            for item in self._api.list_repo_tree(
                hub.repo_id, recursive=True, revision=hub.revision, repo_type=self._repo_type
            ):
                if isinstance(item, RepoFile):
                    yield item

    def check_read_access(self, manifest: Manifest) -> None:
        """Run the hub's permission check, then read one byte of the smallest non-empty file."""
        smallest = min(
            (file for file in manifest.files if file.size), key=lambda file: file.size, default=None
        )
        with self._translate_errors():
            self._check_permission((404,) if smallest is None else (401, 404))
            if smallest is not None:
                with RangeReader(
                    _get_warm_connections(self._destinations), self._get_file_urls(manifest)
                ) as reader:
                    reader.read_into(smallest, 0, memoryview(bytearray(1)))

    def open_reader(self, manifest: Manifest) -> RangeReader:
        """Open a reader of the manifest's files; all readers of this source share redirect targets."""
        with self._translate_errors():
            return RangeReader(self._connections, self._get_file_urls(manifest))

    def close(self) -> None:
        """Close the fill's connections.

        At most two to the hub stay open for the next source in this process.
        """
        self._connections.close()

    @property
    def _host(self) -> str:
        return format_site(self._endpoint)

    def _build_entry(self, file: RepoFile) -> Entry:
        size, digest = (
            (file.lfs.size, f"sha256:{file.lfs.sha256}") if file.lfs else (file.size, f"git:{file.blob_id}")
        )
        if not _FILE_DIGEST.fullmatch(digest) or not isinstance(size, int) or size < 0:
            raise OriginUnavailable(
                f"{self._host} lists {file.path!r} of {self._hub.display_name} without a usable "
                "size and digest"
            )
        return Entry(file.path, EntryKind.FILE, size=size, digest=digest)

    def _check_permission(self, ignored_statuses: tuple[int, ...]) -> None:
        try:
            self._api.auth_check(self._hub.repo_id, repo_type=self._repo_type)
        except HfHubHTTPError as error:
            # Mirrors without this endpoint answer with one of these statuses and no error code. There,
            # reading a byte decides.
            if error.response.status_code not in ignored_statuses or error.response.headers.get(
                "X-Error-Code"
            ):
                raise

    def _get_file_urls(self, manifest: Manifest) -> FileUrls:
        revision = manifest.access["revision"]
        if revision not in self._file_urls:
            build_url = functools.partial(
                hf_hub_url,
                self._hub.repo_id,
                repo_type=self._repo_type,
                revision=revision,
                endpoint=self._endpoint,
            )
            self._file_urls[revision] = FileUrls(
                lambda entry: build_url(filename=entry.path), self._headers, self._error_for_status
            )
        return self._file_urls[revision]

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Translate errors of huggingface_hub into those of `csi.errors`."""
        if constants.is_offline_mode():
            raise OriginUnavailable(
                "HF_HUB_OFFLINE is set in the plugin's environment, so no hub is contacted; unset it"
            )
        try:
            yield
        except HFValidationError as error:
            raise InvalidParameter(
                f"repoId {self._hub.repo_id!r} is not a repository id; write org/name as the hub shows it"
            ) from error
        except HfHubHTTPError as error:
            specific = self._error_for_status(error.response.status_code, error.response.headers)
            fallback = OriginUnavailable(
                f"{self._host} answered {error.response.status_code} for {self._hub.display_name}; "
                "a retry may help"
            )
            raise specific or fallback from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OriginUnavailable(
                f"{self._host} does not answer as a hub does; check HF_ENDPOINT and the proxies on the way"
            ) from error

    def _error_for_status(self, status: int, headers: Mapping[str, str]) -> DataCacheError | None:
        """Translate an error response of the hub (X-Error-Code first, then the status).

        None if it has no specific meaning.
        """
        display_name, code = self._hub.display_name, headers.get("X-Error-Code", "")
        if code == "GatedRepo":
            return PermissionDenied(
                f"{display_name} is gated: accept the terms at {self._page_url} with the account of this "
                f"token{self._token_hint}"
            )
        if code == "RevisionNotFound":
            return SourceNotFound(
                f"{display_name}: {self._hub.repo_id} has no revision {self._hub.revision!r}; "
                "check revision (a branch, tag or commit)"
            )
        if code == "EntryNotFound":
            return SourceNotFound(
                f"{display_name}: a file that the hub listed is not there; "
                f"check the repository on {self._host}"
            )
        if status == 401:
            return Unauthenticated(self._unauthenticated_message())
        if code == "RepoNotFound" or status == 404:
            return SourceNotFound(
                f"{display_name} does not exist on {self._host}, or this token may not see it: "
                "check repoSource, repoId and the token"
            )
        return (
            PermissionDenied(
                f"{self._host} does not let this credential read {display_name}; check the token's rights"
            )
            if status == 403
            else None
        )

    def _unauthenticated_message(self) -> str:
        if self._token is None:
            return (
                f"{self._hub.display_name} does not exist, or is private: "
                "check repoId or give a token in a Secret (key `token`)"
            )
        return (
            f"{self._host} refuses the token for {self._hub.display_name}: "
            "it is wrong, revoked or expired; put a valid one in the Secret (key `token`)"
        )

    @property
    def _token_hint(self) -> str:
        return "" if self._token else " (none was given: put one in a Secret, key `token`)"

    @property
    def _page_url(self) -> str:
        folder = "datasets/" if self._repo_type == "dataset" else ""
        return f"{parse_site(self._endpoint)[0]}://{self._host}/{folder}{self._hub.repo_id}"


@functools.lru_cache(maxsize=1)
def _configure_endpoint(endpoint: str, destinations: Destinations) -> None:
    """Give huggingface_hub a client for this endpoint.

    The client is kept with its connections for later sources of the process.
    """
    try:
        hub_site = parse_site(endpoint)
    except OriginUnavailable as error:
        raise InvalidParameter(
            "HF_ENDPOINT in the plugin's environment is not an http or https URL; set it to the hub's address"
        ) from error
    huggingface_hub.set_client_factory(functools.partial(HubClient, hub_site, destinations))


@functools.lru_cache(maxsize=2)
def _get_warm_connections(destinations: Destinations) -> Connections:
    """Return connections for the few bytes of access checks, kept for later sources of the process."""
    return Connections(_WARM_CONNECTIONS, destinations)
