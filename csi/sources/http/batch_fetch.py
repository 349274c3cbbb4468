"""Many small files in one go: by one thread over several connections, for a third of the time that asking one by one takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from csi.errors import DataCacheError, OriginUnavailable
from csi.manifest.manifest import Entry
from csi.manifest.reader import Turns, Wanted
from csi.sources.http.connections import Connections, Site, shown_site, site, unreachable
from csi.sources.http.curl_fetch import Outcome, Request, SmallAnswer, is_plain
from csi.sources.http.file_urls import MAX_REDIRECTS, REDIRECTS, Address, Addresses, next_address, redirected_too_often


class _Asked(NamedTuple):
    """`number` among the files that are wanted, `hops` redirects behind its first address; `anew` once an address of it was refused."""

    number: int
    entry: Entry
    buffer: memoryview
    address: Address
    hops: int = 0
    anew: bool = False

    @property
    def route(self) -> tuple[Site, Site]:
        return site(self.address.url), self.address.home


class ManyFiles:
    """One go at files of one source: `read` is called once."""

    def __init__(self, connections: Connections, addresses: Addresses, turns: Turns) -> None:
        self._connections, self._addresses, self._turns = connections, addresses, turns
        self._read: set[int] = set()
        self._again: list[_Asked] = []
        self._left = 0
        self._ended = False
        self._in_vain: dict[Entry, OriginUnavailable] = {}
        self._error: DataCacheError | None = None

    def read(self, wanted: Wanted) -> dict[Entry, OriginUnavailable]:
        """See `csi.manifest.reader.ManyReader.read_many`."""
        asked = [_Asked(number, entry, buffer, self._first(entry)) for number, (entry, buffer) in enumerate(wanted)]
        while asked and not self._ended:
            self._left, self._again = len(asked), []
            for route, group in groupby(sorted(asked, key=_route), _route):
                self._ask(route, list(group))
            asked = self._again
        self._remember(asked)
        wanted[:] = [file for number, file in enumerate(wanted) if number not in self._read]
        if self._error is not None:
            raise self._error
        return self._in_vain

    def _first(self, entry: Entry) -> Address:
        return self._addresses.known(entry) or self._addresses.first(entry)

    def _ask(self, route: tuple[Site, Site], asked: list[_Asked]) -> None:
        answers = self._connections.small_answers(asked[0].address.url, route[1])
        if answers is None:
            # What only a stream can ask for is left.
            self._done(len(asked))
            return
        begun: list[_Asked] = []
        waiting = deque(asked)
        for number, outcome in answers.get_many(self._requests(route, waiting, begun), self._turns.may_ask):
            try:
                self._take(begun[number], outcome)
            except OriginUnavailable as error:
                self._in_vain[begun[number].entry] = error
                self._ended = True
            except DataCacheError as error:
                self._ended, self._error = True, self._error or error
            self._done(1)
        self._remember(waiting)

    def _remember(self, unasked: Iterable[_Asked]) -> None:
        """Whoever asks for them next need not ask for the way again."""
        for file in unasked:
            if file.hops:
                self._addresses.remember(file.entry, file.address)

    def _requests(self, route: tuple[Site, Site], waiting: deque[_Asked], begun: list[_Asked]) -> Iterator[Request]:
        while file := self._next(route, waiting):
            headers = self._addresses.asked(file.address, self._addresses.range_of(file.entry, 0, file.entry.size))
            request = Request(file.address.url, file.route[0][1], headers, file.entry.size)
            if self._ended or self._is_held(file):
                waiting.append(file)
                return
            if is_plain(request):
                begun.append(file)
                yield request
            else:
                self._done(1)

    def _next(self, route: tuple[Site, Site], waiting: deque[_Asked]) -> _Asked | None:
        """What was redirected to the same site is asked for before anything new."""
        if self._again and self._again[-1].route == route:
            self._left += 1
            return self._again.pop()
        return waiting.popleft() if waiting else None

    def _is_held(self, file: _Asked) -> bool:
        """Whether the file's site allows no further request; the file is one that was asked for in vain, then."""
        try:
            self._addresses.allowances.check(file.address.url)
        except OriginUnavailable as error:
            self._in_vain[file.entry] = error
            self._ended = True
        return self._ended

    def _done(self, count: int) -> None:
        self._left -= count
        self._turns.needs(self._left + len(self._again))

    def _take(self, asked: _Asked, outcome: Outcome) -> None:
        url = asked.address.url
        if isinstance(outcome, OSError):
            self._addresses.forget(asked.entry, asked.address)
            raise unreachable(outcome, shown_site(url), f" (asked for {asked.entry.path!r})") from outcome
        if outcome is None:
            # Nothing could be sent: whoever asks for the file alone is told why.
            self._addresses.forget(asked.entry, asked.address)
            self._ended = True
            return
        self._addresses.allowances.note(url, outcome.headers)
        if outcome.status in REDIRECTS and asked.hops < MAX_REDIRECTS:
            self._again.append(asked._replace(address=next_address(outcome, asked.address), hops=asked.hops + 1))
        elif outcome.status in REDIRECTS:
            raise redirected_too_often(asked.address, asked.entry)
        elif self._addresses.may_have_ended(asked.address, outcome.status) and not asked.anew:
            self._addresses.forget(asked.entry, asked.address)
            self._again.append(asked._replace(address=self._addresses.first(asked.entry), hops=0, anew=True))
        elif self._fits(asked, outcome):
            self._read.add(asked.number)
            self._turns.came(asked.entry.size)

    def _fits(self, asked: _Asked, answer: SmallAnswer) -> bool:
        """Whether the whole file came; it is in the buffer then."""
        size = asked.entry.size
        self._addresses.span(answer, asked.address, asked.entry, 0, size)
        body = answer.read(size + 1)
        if len(body) != size:
            return False
        asked.buffer[:] = body
        return True


def _route(asked: _Asked) -> tuple[Site, Site]:
    return asked.route
