"""Client of ModelScope's SDK: complete listings of a repository, and the URLs of its files.

Only the given token is ever sent: what `modelscope login` left on disk or a ~/.netrc holds belongs to a
person. Each redirect is checked by its target's addresses before it is followed. The SDK's messages contain
URLs, so the errors here have our own.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin

# Read when the SDK is imported. The SDK would retry for minutes; callers want to hear of temporary failures
# at once.
os.environ.setdefault("MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS", "2")
os.environ["NETRC"] = "/dev/null"

import requests  # noqa: E402
from modelscope_hub import HubApi, HubConfig  # noqa: E402
from modelscope_hub.constants import REPO_FILES_TRUNCATION_LIMIT  # noqa: E402
from modelscope_hub.errors import APIError, HubError, RateLimitError  # noqa: E402

from csi import __version__  # noqa: E402
from csi.destinations.destinations import Destinations  # noqa: E402
from csi.errors import DataCacheError, InvalidParameter, OriginThrottled, OriginUnavailable  # noqa: E402
from csi.sources.http.connections import unreachable_error
from csi.sources.http.environment import CA_BUNDLE_VARIABLES, get_ssl_context
from csi.sources.http.sites import format_site, parse_site
from csi.sources.hubs.redirect_policy import check_hop  # noqa: E402

# The SDK logs to standard error in its own format; what matters is in the errors raised here.
_log = logging.getLogger("modelscope_hub")
_log.handlers.clear()
_log.propagate = True
_log.setLevel(logging.ERROR)

# The SDK's own page size for datasets; the hub allows up to 500.
_DATASET_PAGE_SIZE = 200


def configured_endpoint() -> str:
    """Return the hub's address from MODELSCOPE_ENDPOINT, else the public one.

    Raises InvalidParameter unless it is an http or https URL.
    """
    endpoint = str(HubConfig(token="").endpoint)
    try:
        parse_site(endpoint)
    except OriginUnavailable as error:
        raise InvalidParameter(
            "MODELSCOPE_ENDPOINT in the plugin's environment is not an http or https URL; "
            "set it to the hub's address"
        ) from error
    return endpoint


class HubStatusError(Exception):
    """An error status of the hub, which the source translates."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class ModelScopeClient:
    """One repository of the hub at `endpoint`; `repo_type` is "model" or "dataset". For one thread."""

    def __init__(
        self, endpoint: str, repo_type: str, repo_id: str, token: str | None, destinations: Destinations
    ) -> None:
        self._repo_type, self._repo_id, self._destinations = repo_type, repo_id, destinations
        self._hub_site = parse_site(endpoint)
        # Raises a readable error for a bad CA bundle now, before the SDK fails on it.
        get_ssl_context()
        # An empty token means none; with None the SDK would use one that it finds on disk.
        api = HubApi(
            HubConfig(endpoint=endpoint, token=token or ""), user_agent=f"datacache-csi/{__version__}"
        )
        self._client: Any = api.legacy
        self._sessions: tuple[Any, ...] = (self._client._session, self._client._read_session)
        for session in self._sessions:
            session.hooks["response"].append(self._check_redirect)
            _set_ca_bundle(session)

    def iter_entries(self, revision: str) -> Iterator[dict[str, Any]]:
        """Yield every entry of the tree ("Path", "Type", "Size", "Sha256", ...), once.

        Raises HubStatusError, and OriginUnavailable if the listing was truncated. Memory: one page for a
        dataset; for a model the SDK's whole listing, which shrinks as it is consumed.
        """
        # The hub truncates the folders of models only; datasets are paged.
        completeness = ListingCompleteness(
            None if self._repo_type == "dataset" else REPO_FILES_TRUNCATION_LIMIT
        )
        with self._translate_errors():
            for entry in (
                self._list_dataset(revision) if self._repo_type == "dataset" else self._list_model(revision)
            ):
                completeness.add(entry)
                yield entry
        if missing := completeness.describe_missing():
            raise OriginUnavailable(
                f"{format_site(self._client.endpoint)} cut the listing of {self._repo_id} short: {missing}; "
                "a volume is never created from part of a repository"
            )

    def get_file_url(self, path: str, revision: str) -> str:
        """Return the URL of a file."""
        return str(self._client.get_download_url(self._repo_id, self._repo_type, path, revision))

    def close(self) -> None:
        """Close all connections."""
        for session in self._sessions:
            for adapter in session.adapters.values():
                # Closing a session only drops its pools; the traceback of an error can keep their connections
                # open.
                pools = adapter.poolmanager.pools
                for pool in filter(None, map(pools.get, pools.keys())):
                    pool.close()
            session.close()

    def _list_model(self, revision: str) -> Iterator[dict[str, Any]]:
        entries = list(self._client.list_repo_files(self._repo_id, self._repo_type, revision))
        if getattr(self._client._read_state, "listing_incomplete", False):
            raise self._truncated_error("a folder has more direct entries than it lists")
        while entries:
            yield entries.pop()

    def _list_dataset(self, revision: str) -> Iterator[dict[str, Any]]:
        for page, files, error in self._client.iter_dataset_file_pages(
            self._repo_id, revision, page_size=_DATASET_PAGE_SIZE
        ):
            if isinstance(error, HubError):
                raise error
            if error is not None:
                raise self._truncated_error(f"page {page} is missing")
            yield from files

    def _truncated_error(self, reason: str) -> OriginUnavailable:
        return OriginUnavailable(
            f"{format_site(self._client.endpoint)} cut the listing of {self._repo_id} short ({reason}); "
            "narrow it, or try again"
        )

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        host = format_site(self._client.endpoint)
        try:
            yield
        except RateLimitError as error:
            wait = float(getattr(error, "retry_after", 0) or 0)
            hint = f" (retry after {wait:.0f} s)" if wait else ""
            raise OriginThrottled(f"{host} is rate limiting requests{hint}", wait) from error
        except APIError as error:
            status = error.status_code or 0
            if status in (400, 401, 403, 404):
                raise HubStatusError(status) from error
            raise OriginUnavailable(
                f"{host} answered {status or 'with an error'} for {self._repo_id}; a retry may help"
            ) from error
        except (requests.JSONDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise OriginUnavailable(
                f"{host} does not answer as ModelScope does; "
                "check MODELSCOPE_ENDPOINT and the proxies on the way"
            ) from error
        except (HubError, requests.RequestException, OSError) as error:
            cause = _find_own_error(error)
            raise cause or unreachable_error(error, host) from error

    def _check_redirect(self, response: requests.Response, *_: Any, **__: Any) -> None:
        if not response.is_redirect:
            return
        check_hop(
            self._destinations,
            self._hub_site,
            parse_site(urljoin(response.url, response.headers["location"])),
        )


def _set_ca_bundle(session: Any) -> None:
    """Make `session` trust the same CA bundle as our own connections.

    Requests reads other variables, in another order.
    """
    system = ssl.get_default_verify_paths()
    bundle = next(
        (os.environ[key] for key in CA_BUNDLE_VARIABLES if os.environ.get(key)),
        system.cafile or system.capath or True,
    )
    merge = session.merge_environment_settings

    def merge_settings(url: str, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        return merge(url, proxies, stream, bundle if verify in (None, True) else verify, cert)

    session.merge_environment_settings = merge_settings


def _find_own_error(error: BaseException | None) -> DataCacheError | None:
    """Return an error of `csi.errors` among the causes, such as that of a forbidden redirect, else None."""
    while error is not None and not isinstance(error, DataCacheError):
        error = error.__cause__ or error.__context__
    return error


class ListingCompleteness:
    """Detects what the hub left out of a listing as it goes by.

    The hub truncates a folder at `max_entries` entries (None: never). Git has no empty folders, so a folder
    without entries is incomplete too.
    """

    def __init__(self, max_entries: int | None) -> None:
        self._max_entries = max_entries
        self._children: Counter[str] = Counter()
        self._folders: set[str] = set()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Record one entry of the listing."""
        path = str(entry.get("Path") or "")
        if entry.get("Type") == "tree":
            if path in self._folders:
                return
            self._folders.add(path)
        self._children[path.rpartition("/")[0]] += 1

    def describe_missing(self) -> str:
        """Describe what is missing, "" if the listing is complete."""
        truncated_folder = next(
            (
                folder
                for folder, count in self._children.items()
                if self._max_entries and count >= self._max_entries
            ),
            None,
        )
        if truncated_folder is not None:
            return (
                f"the folder {truncated_folder or '/'!r} has {self._max_entries} entries or more, "
                "and it lists no more than these"
            )
        empty_folder = next((folder for folder in self._folders if not self._children.get(folder)), None)
        return "" if empty_folder is None else f"it lists the folder {empty_folder!r} without entries"
