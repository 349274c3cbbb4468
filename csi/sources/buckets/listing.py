"""What a folder of a bucket holds, page by page, asked through our own engine: no redirect is followed, each address is judged in the
moment of connecting, and the access key goes nowhere else.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from urllib.parse import quote

from csi.errors import OriginThrottled, OriginUnavailable, OriginUntrusted, UnsafeContent
from csi.sources.buckets.listing_page import Listed, Page, parse_page
from csi.sources.buckets.object_store import ObjectStore
from csi.sources.http.connections import Connections

_PAGE = 1000
_LARGEST_PAGE = 8 << 20
_PAUSES = (0.5, 2.0)
_LONGEST_PAUSE = 10.0


class BucketListing:
    """Lists what `store` is a folder of, over `connections`. For any number of threads."""

    def __init__(self, store: ObjectStore, connections: Connections) -> None:
        self._store, self._connections = store, connections

    def objects(self) -> Iterator[Listed]:
        """Every object of the folder, a page of a thousand at a time.

        Raises OriginUnavailable where the listing is cut short or turns in circles, OriginThrottled with the store's Retry-After,
        UnsafeContent for keys that are not UTF-8, and what `ObjectStore.refusal` makes of a refusal.
        """
        token, seen = "", set[bytes]()
        while True:
            page = self._page(token)
            yield from page.objects
            if not page.more:
                return
            token = page.token
            mark = hashlib.blake2b(token.encode(), digest_size=16).digest()
            if not token or mark in seen:
                what = "goes on where it was before" if token else "ends in the middle: more is said to follow, but not where"
                raise OriginUnavailable(f"{self._store.host}: the listing of {self._store.shown} {what}; check that the store speaks ListObjectsV2")
            seen.add(mark)

    def _page(self, token: str) -> Page:
        """A page in the middle is asked for again where it fails in passing: all that came before it would be lost."""
        for pause in _PAUSES if token else ():
            try:
                return self._ask(token)
            except OriginUntrusted:
                raise
            except OriginUnavailable as error:
                wait = max(pause, error.retry_after if isinstance(error, OriginThrottled) else 0.0)
                if wait > _LONGEST_PAUSE:
                    raise
                time.sleep(wait)
        return self._ask(token)

    def _ask(self, token: str) -> Page:
        fields = {"continuation-token": token, "encoding-type": "url", "list-type": "2", "max-keys": str(_PAGE), "prefix": self._store.prefix}
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in fields.items() if value)
        key, headers = self._store.signing()
        answer = self._connections.get_signed(f"{self._store.listed_at}?{query}", headers, _LARGEST_PAGE, key)
        body = bytes(answer.read(_LARGEST_PAGE + 1))
        if answer.status != 200:
            raise self._store.refusal(answer.status, body, answer.headers)
        if len(body) > _LARGEST_PAGE:
            raise OriginUnavailable(
                f"{self._store.host}: a page of the listing of {self._store.shown} has over {_LARGEST_PAGE >> 20} MiB; check the endpoint"
            )
        return self._parsed(body)

    def _parsed(self, body: bytes) -> Page:
        try:
            return parse_page(body)
        except UnicodeDecodeError as error:
            raise UnsafeContent(f"{self._store.shown} has an object whose key is not UTF-8; rename it there") from error
        except ValueError as error:
            raise OriginUnavailable(f"{self._store.host}: it answers as no object store does ({error}); check the endpoint") from error
