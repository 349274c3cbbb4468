"""Paged listings of a bucket's folder through our own HTTP client.

No redirect is followed, each address is checked at the moment of connecting, and the access key goes nowhere
else.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from urllib.parse import quote

from csi.errors import OriginThrottled, OriginUnavailable, OriginUntrusted, UnsafeContent
from csi.sources.buckets.listing_page import ListedObject, ListingPage, parse_page
from csi.sources.buckets.object_store import ObjectStore
from csi.sources.http.connections import Connections

# The maximum of S3. A page has at most a thousand keys of 1 KiB, which may be percent-encoded, plus metadata.
_PAGE_SIZE = 1000
_MAX_PAGE_BYTES = 8 << 20
# Seconds between attempts for one page.
_PAGE_RETRY_PAUSES = (0.5, 2.0)
_MAX_PAGE_RETRY_PAUSE = 10.0


class BucketListing:
    """Listing of the folder of `store` over `connections`. Thread-safe."""

    def __init__(self, store: ObjectStore, connections: Connections) -> None:
        self._store, self._connections = store, connections

    def iter_objects(self) -> Iterator[ListedObject]:
        """Yield every object of the folder, fetching a thousand at a time.

        Raises OriginUnavailable if the listing is truncated or loops, OriginThrottled with the store's
        Retry-After, UnsafeContent for keys that are not UTF-8, and the errors of
        `ObjectStore.error_for_status`.
        """
        continuation_token, seen = "", set[bytes]()
        while True:
            page = self._fetch_page_with_retry(continuation_token)
            yield from page.objects
            if not page.is_truncated:
                return
            continuation_token = page.continuation_token
            # Hashes, since tokens may be 1 KiB long and a listing may have thousands of pages.
            token_hash = hashlib.blake2b(continuation_token.encode(), digest_size=16).digest()
            if not continuation_token or token_hash in seen:
                problem = (
                    "repeats a page"
                    if continuation_token
                    else "ends in the middle: it is marked as truncated, but has no continuation token"
                )
                raise OriginUnavailable(
                    f"{self._store.host}: the listing of {self._store.display_name} {problem}; "
                    "check that the store speaks ListObjectsV2"
                )
            seen.add(token_hash)

    def _fetch_page_with_retry(self, continuation_token: str) -> ListingPage:
        """Fetch a page, retrying those after the first, whose failure would lose all pages before."""
        for pause in _PAGE_RETRY_PAUSES if continuation_token else ():
            try:
                return self._fetch_page(continuation_token)
            except OriginUntrusted:
                raise
            except OriginUnavailable as error:
                wait = max(pause, error.retry_after if isinstance(error, OriginThrottled) else 0.0)
                if wait > _MAX_PAGE_RETRY_PAUSE:
                    raise
                time.sleep(wait)
        return self._fetch_page(continuation_token)

    def _fetch_page(self, continuation_token: str) -> ListingPage:
        # In alphabetical order, as Signature Version 4 requires of the canonical query.
        fields = {
            "continuation-token": continuation_token,
            "encoding-type": "url",
            "list-type": "2",
            "max-keys": str(_PAGE_SIZE),
            "prefix": self._store.prefix,
        }
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in fields.items() if value)
        key, headers = self._store.get_signing_credentials()
        response = self._connections.get_signed(
            f"{self._store.bucket_url}?{query}", headers, _MAX_PAGE_BYTES, key
        )
        body = bytes(response.read(_MAX_PAGE_BYTES + 1))
        if response.status != 200:
            raise self._store.error_for_status(response.status, body, response.headers)
        if len(body) > _MAX_PAGE_BYTES:
            raise OriginUnavailable(
                f"{self._store.host}: a page of the listing of {self._store.display_name} "
                f"has over {_MAX_PAGE_BYTES >> 20} MiB; check the endpoint"
            )
        return self._parse_page(body)

    def _parse_page(self, body: bytes) -> ListingPage:
        try:
            return parse_page(body)
        except UnicodeDecodeError as error:
            raise UnsafeContent(
                f"{self._store.display_name} has an object whose key is not UTF-8; rename it there"
            ) from error
        except ValueError as error:
            raise OriginUnavailable(
                f"{self._store.host}: it does not answer as an object store does ({error}); "
                "check the endpoint"
            ) from error
