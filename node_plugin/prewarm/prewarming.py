"""Caches that this node fills before any pod asks for them, and keeps while an object of the cluster says so.

One thread, one image at a time, behind every fill that a pod waits for. What an order means is looked at once: a source that moves is
looked at anew with another order (generation) alone, also when the plugin starts anew; so the answers are kept in a file.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csi.concurrency.deadline import Patience
from csi.destinations.allow_list import AllowList, named_by_user
from csi.errors import Busy, ClusterUnavailable, DataCacheError, FailedPrecondition, NotFound
from csi.images.node_store.store import Store
from csi.linux import durable_files
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.volume_parameters import parse
from csi.registry.prewarms.prewarms import NodeState, Prewarm, PrewarmedCache, Prewarms, State
from csi.worker.protocol import Resolution
from node_plugin.fills.fill_events import percent
from node_plugin.fills.fills import Fills
from node_plugin.fills.uploads import Uploads
from node_plugin.volumes.authorized_resolver import Proving
from node_plugin.volumes.data_cache_grants import GrantedCaches
from node_plugin.volumes.pins import NodePins
from node_plugin.volumes.records import NodeVolume

log = logging.getLogger("datacache.prewarming")

_FORMAT = 1
_RESOLVE_SECONDS = 100.0
# Labels of nodes change seldom, and a Secret that was wrong is put right some time; what a pod does not wait for may wait.
_LOOK_SECONDS, _RETRY_SECONDS, _LONGEST_RETRY = 300.0, 30.0, 600.0
_SLICE_SECONDS, _BUSY_SECONDS, _REPORT_SECONDS = 2.0, 5.0, 10.0
# Orders may come for as long as this node works through them, those of other nodes too: knowing them takes a tenth of its time at most.
_TEND_SECONDS, _TEND_SHARE = 1.0, 9.0
_NEWS = "the orders for this node have changed"


@dataclass
class _Answer:
    """What one cache of an order turned out to be: `access` is its pinned spec, `pin` what `NodePins.of` keeps, None for none."""

    digest: str
    access: dict[str, str]
    pin: dict[str, object] | None = None


@dataclass
class _Trouble:
    """What a cache fails with, until when it is left alone, and for how long after that."""

    message: str
    until: float
    pause: float


@dataclass
class _Order:
    prewarm: Prewarm
    answers: dict[str, _Answer] = field(default_factory=dict)
    troubles: dict[str, _Trouble] = field(default_factory=dict)
    ready: set[str] = field(default_factory=set)
    said: NodeState | None = None
    said_at: float = float("-inf")
    turn: float = field(default_factory=time.monotonic)

    @property
    def keys(self) -> list[str]:
        """One for each of its caches, which no other order has."""
        return [f"prewarm-{self.prewarm.uid}-{self.prewarm.generation}-{number}" for number in range(len(self.prewarm.caches))]

    @property
    def named(self) -> list[tuple[str, PrewarmedCache]]:
        """Its caches with their keys."""
        return list(zip(self.keys, self.prewarm.caches, strict=True))


class Prewarming:
    """The orders of one node, from `prewarms`; `file` keeps what they turned out to be. `check_node` raises where it can mount no images;
    `proving` asks moving sources anew, whatever is remembered.

    `retry_seconds` is the first pause after a failure.
    """

    def __init__(
        self,
        prewarms: Prewarms,
        allowed: AllowList,
        proving: Proving,
        fills: Fills,
        store: Store,
        pins: NodePins,
        check_node: Callable[[], None],
        file: Path,
        retry_seconds: float = _RETRY_SECONDS,
        granted: GrantedCaches | None = None,
        uploads: Uploads | None = None,
    ) -> None:
        self._prewarms, self._allowed, self._proving, self._fills, self._store, self._pins = prewarms, allowed, proving, fills, store, pins
        self._check_node, self._file, self._retry = check_node, file, retry_seconds
        self._granted, self._uploads = granted, uploads
        self._known: list[Prewarm] | None = None
        self._looked, self._tend_until = float("-inf"), 0.0
        self._changed, self._ended = threading.Event(), False
        self._names, self._at_work = set[str](), ""
        self._orders: dict[str, _Order] = {}
        self._patience = Patience(0)
        self._kept = _read(file)
        self._digests = frozenset(answer.digest for answer in self._kept.values())
        pins.adopt(NodeVolume(key, answer.digest, {}, 0, 0, True, pin=answer.pin) for key, answer in self._kept.items())

    def kept(self) -> set[str]:
        """The digests of the images that stay: sealed ones of orders for this node."""
        return {digest for digest in self._digests if self._store.sealed(digest)}

    @contextmanager
    def running(self) -> Iterator[None]:
        """For the block, follow the orders, from threads of their own."""
        with self._prewarms.watch(self._hear):
            thread = threading.Thread(target=self._run, name="prewarming", daemon=True)
            thread.start()
            try:
                yield
            finally:
                self._ended = True
                self._hear(self._at_work)
                thread.join()

    def _hear(self, name: str) -> None:
        """An order has changed: what is done for that very one ends, others wait until there is time to take orders anew."""
        self._names.add(name)
        self._changed.set()
        if name == self._at_work:
            self._patience.cancel(_NEWS)

    @property
    def _called_off(self) -> bool:
        """Whether the order at work has changed."""
        return self._ended or self._at_work in self._names

    @property
    def _due(self) -> bool:
        """Whether orders are to be taken anew before another one's turn."""
        return self._ended or (self._changed.is_set() and time.monotonic() > self._tend_until)

    @property
    def _is_cut_short(self) -> bool:
        """Whether the order at work does not go on now."""
        return self._called_off or self._due

    def _run(self) -> None:
        while not self._ended:
            if self._changed.is_set():
                self._changed.clear()
                self._names.clear()
                self._known = None
            pause = _LOOK_SECONDS
            try:
                self._take_orders()
                pause = self.tend()
            except DataCacheError as error:
                log.warning("prewarming waits", extra={"fields": {"reason": error}})
                pause = self._retry if isinstance(error, ClusterUnavailable) else _LOOK_SECONDS
            except Exception as error:  # one odd object must not end the others'
                log.error("prewarming failed", extra={"fields": {"reason": type(error).__name__}})
            if not self._ended:
                self._changed.wait(pause)

    def _take_orders(self) -> None:
        """Know what this node is to have, from the cluster where that has changed; let go of what it is not to have any more."""
        if self._known is not None and time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        began = time.monotonic()
        known = self._prewarms.all() if self._known is None else self._known
        wanted = {prewarm.key: prewarm for prewarm in known}
        labels = self._labels() if any(prewarm.selector for prewarm in known) else {}
        self._known, self._looked = known, time.monotonic()
        for key in {key for key, prewarm in wanted.items() if not prewarm.selects(labels)}:
            prewarm = wanted.pop(key)
            if key in self._orders:
                self._prewarms.report(prewarm, None)
        orders = {}
        for key, prewarm in wanted.items():
            order = self._orders.get(key)
            orders[key] = order if order and order.prewarm == prewarm else self._ordered(prewarm)
        self._let_go(orders)
        self._orders = orders
        now = time.monotonic()
        self._tend_until = now + max(_TEND_SECONDS, _TEND_SHARE * (now - began))

    def _labels(self) -> Mapping[str, str]:
        try:
            return self._prewarms.labels()
        except NotFound:
            return {}

    def _ordered(self, prewarm: Prewarm) -> _Order:
        order = _Order(prewarm)
        order.answers = {key: self._kept[key] for key in order.keys if key in self._kept}
        return order

    def _let_go(self, orders: Mapping[str, _Order]) -> None:
        left = {key: answer for order in orders.values() for key, answer in order.answers.items()}
        digests = {answer.digest for answer in left.values()}
        for key, answer in self._kept.items():
            if key not in left:
                self._pins.let_go(key)
                if answer.digest not in digests:
                    self._fills.give_way(answer.digest)
                    self._forget(answer.digest)
        if left.keys() != self._kept.keys():
            self._keep(left)

    def _forget(self, digest: str) -> None:
        # What nobody wants goes from the image store some time: the next order has to look.
        if self._uploads:
            self._uploads.forget(digest)

    def _keep(self, answers: dict[str, _Answer]) -> None:
        self._kept = answers
        self._digests = frozenset(answer.digest for answer in answers.values())
        _write(self._file, answers)

    def tend(self) -> float:
        """Do what is to be done now; the seconds until there may be more."""
        waits = [_LOOK_SECONDS]
        for order in self._orders.values():
            order.ready = {key for key, cache in order.named if self._is_ready(cache, order.answers.get(key))}
            self._say(order)
        for order in self._turns():
            for key, cache in order.named:
                self._at_work = order.prewarm.name
                waits.append(self._tend(order, key, cache))
                if self._due:
                    return 0.0
            self._say(order)
        return min(waits)

    def _turns(self) -> list[_Order]:
        """All orders, longest not tended first: while orders change again and again, each comes to its turn."""
        return sorted(self._orders.values(), key=lambda order: order.turn)

    def _is_under_way(self, order: _Order) -> bool:
        digests = {answer.digest for answer in order.answers.values()}
        return not digests.isdisjoint(self._fills.progress()) or bool(self._uploads and any(map(self._uploads.progress, digests)))

    def _tend(self, order: _Order, key: str, cache: PrewarmedCache) -> float:
        answer, trouble, now = order.answers.get(key), order.troubles.get(key), time.monotonic()
        if self._is_ready(cache, answer):
            order.ready.add(key)
            order.troubles.pop(key, None)
            return _LOOK_SECONDS
        order.ready.discard(key)
        if trouble and trouble.until > now:
            return trouble.until - now
        try:
            self._bring(order, key, cache)
        except Busy as error:
            if not self._is_under_way(order):
                order.turn = time.monotonic()
            if not self._is_cut_short:
                self._say(order, NodeState(State.PENDING, self._percent(order), str(error)))
            return _BUSY_SECONDS
        except DataCacheError as error:
            pause = min(2 * trouble.pause, _LONGEST_RETRY) if trouble else self._retry
            order.troubles[key] = _Trouble(str(error), time.monotonic() + pause, pause)
            log.warning("a cache is not prewarmed", extra={"fields": {"object": order.prewarm.key, "reason": error}})
            return pause
        order.ready.add(key)
        order.troubles.pop(key, None)
        return _LOOK_SECONDS

    def _is_ready(self, cache: PrewarmedCache, answer: _Answer | None) -> bool:
        """Whether it is on this node, and a DataCache in the image store too, where there is one."""
        there = answer is not None and self._store.sealed(answer.digest) is not None
        return there and (not cache.data_cache or self._uploads is None or self._uploads.done(answer.digest))  # type: ignore[union-attr]

    def _bring(self, order: _Order, key: str, cache: PrewarmedCache) -> None:
        self._check_node()
        if self._fills.hurried():
            raise Busy("fills that pods wait for go first")
        if cache.data_cache:
            self._bring_data_cache(order, key, cache)
            return
        secrets = self._prewarms.secret(order.prewarm.namespace, cache.secret) if cache.secret else {}
        self._patience = self._patient(_RESOLVE_SECONDS)
        answer = order.answers.get(key)
        if answer is None or not (self._store.sealed(answer.digest) or self._store.partial(answer.digest)):
            answer = self._answered(order, key, cache, answer, secrets)
        self._fill(order, answer, secrets)

    def _bring_data_cache(self, order: _Order, key: str, cache: PrewarmedCache) -> None:
        """Fill it with its own credential, then bring it to the image store, where there is one."""
        if self._granted is None or self._uploads is None:
            raise FailedPrecondition("this node knows no DataCaches; start the node plugin with --registry")
        granted = self._granted.ordered(cache.data_cache, order.prewarm.namespace)
        if cache.digest not in ("", granted.content.digest):
            raise Busy(f"the DataCache {cache.data_cache} holds {granted.content.digest[:12]} and not {cache.digest[:12]}, as was ordered, yet")
        digest, access, secrets = granted.content.digest, dict(granted.content.access), granted.secrets
        self._patience = self._patient(_RESOLVE_SECONDS)
        self._granted.bring_manifest(key, granted, self._patience)
        answer = _Answer(digest, access)
        if order.answers.get(key) != answer:
            order.answers[key] = answer
            self._keep({**self._kept, key: answer})
        self._fill(order, answer, secrets)
        if self._granted.is_known(granted):
            self._fills.vouched(digest, access, secrets)
        self._fills.compared(key, digest, secrets, self._patient(_RESOLVE_SECONDS), access)
        while not self._uploads.done(digest):
            self._patience = self._patient(_SLICE_SECONDS)
            try:
                self._uploads.bring(digest, self._patience, access)
            except Busy:
                if self._is_cut_short or (progress := self._uploads.progress(digest)) is None:
                    raise
                self._say(order, NodeState(State.STORING, min(99, percent(progress)), "bringing it to the image store"))

    def _patient(self, seconds: float) -> Patience:
        """So much patience, none where the order at work has changed."""
        patience = Patience(seconds)
        if self._called_off:
            patience.cancel(_NEWS)
        return patience

    def _answered(self, order: _Order, key: str, cache: PrewarmedCache, known: _Answer | None, secrets: Mapping[str, str]) -> _Answer:
        """What the cache is, once its credential has read from the origin; its manifest is in the store then."""
        patience = self._patience

        def resolve(spec: CacheSpec, digest: str | None) -> Resolution:
            return self._proving.proven(key, spec, digest, secrets, patience)

        if known:
            found = resolve(parse(known.access).spec, known.digest)
        elif cache.claim:
            record = self._prewarms.claimed(order.prewarm.namespace, cache.claim)
            found = resolve(record.spec, record.digest)
        else:
            asked = parse(cache.parameters)
            self._allowed.check(asked)
            with self._pins.using(key):
                found = self._pins.resolved(key, order.prewarm.namespace, named_by_user(asked.spec), resolve)
        answer = _Answer(found.digest, found.spec.to_context(), known.pin if known else self._pins.of(key))
        order.answers[key] = answer
        self._keep({**self._kept, key: answer})
        return answer

    def _fill(self, order: _Order, answer: _Answer, secrets: Mapping[str, str]) -> None:
        while not self._store.sealed(answer.digest):
            self._patience = patience = self._patient(_SLICE_SECONDS)
            try:
                self._fills.ahead(answer.digest, secrets, answer.access, patience)
            except Busy:
                # One that is under way goes on; one that gave way comes to its turn again.
                if self._is_cut_short or answer.digest not in self._fills.progress():
                    raise
                self._say(order, NodeState(State.FILLING, self._percent(order)))

    def _percent(self, order: _Order) -> int:
        progress = self._fills.progress()
        under_way = [progress[answer.digest] for key, answer in order.answers.items() if key not in order.ready and answer.digest in progress]
        done = 100 * len(order.ready) + sum(map(percent, under_way))
        return min(99, done // len(order.prewarm.caches))

    def _say(self, order: _Order, state: NodeState | None = None) -> None:
        """Report a state when it is another one, and how far it is now and then."""
        state = state or self._state(order)
        now = time.monotonic()
        news = order.said is None or order.said.state is not state.state or (state.state is State.FAILED and state != order.said)
        if state != order.said and (news or now - order.said_at > _REPORT_SECONDS):
            order.said, order.said_at = state, now
            self._prewarms.report(order.prewarm, state)

    def _state(self, order: _Order) -> NodeState:
        if len(order.ready) == len(order.prewarm.caches):
            return NodeState(State.READY, 100)
        if order.troubles:
            return NodeState(State.FAILED, self._percent(order), next(iter(order.troubles.values())).message)
        return order.said or NodeState(State.PENDING, self._percent(order))


def _write(file: Path, answers: Mapping[str, _Answer]) -> None:
    kept = {key: {"digest": answer.digest, "access": answer.access, "pin": answer.pin} for key, answer in answers.items()}
    durable_files.write_json(file, {"format": _FORMAT, "answers": kept})


def _read(file: Path) -> dict[str, _Answer]:
    with suppress(FileNotFoundError, DataCacheError, KeyError, TypeError, AttributeError, json.JSONDecodeError):
        kept: dict[str, Any] = durable_files.read_json(file, _FORMAT)["answers"]
        return {key: _Answer(answer["digest"], answer["access"], answer["pin"]) for key, answer in kept.items()}
    return {}
