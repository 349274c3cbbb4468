"""Pins of several nodes under any order of pods, restarts, pushes and an API server that comes and goes:
never two answers, and none is left."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from csi.errors import Busy, ClusterUnavailable, DataCacheError
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.hub import HubSpec
from csi.resolve.pinned import MAX_PIN_ATTEMPTS, apply_pin
from csi.worker.results import Resolution
from node_plugin.volumes.pins import NodePins
from node_plugin.volumes.records import Exposure, NodeVolume
from tests.csi.registry.pins.fake_pins import FakePins

MAIN = CacheSpec(HubSpec("HuggingFace/Model", "org/name", "main"), untrusted=True)
NODES, PODS = st.sampled_from(("a", "b", "c")), st.integers(0, 2)


class SeveralNodes(RuleBasedStateMachine):
    """`live` has the volumes that are shown, by node, with the record that each node has of it."""

    @initialize()
    def begin(self) -> None:
        self.registry, self.now, self.commit = FakePins(), 0.0, 0
        self.live: dict[str, dict[str, NodeVolume]] = {name: {} for name in "abc"}
        self.nodes = {name: self.started(name) for name in "abc"}

    def started(self, name: str) -> NodePins:
        return NodePins(self.registry, name, lambda: self.now)

    def resolve(self, spec: CacheSpec, digest: str | None) -> Resolution:
        """The branch is at the newest commit; each commit is another content."""
        revision = f"{self.commit:040x}" if spec == MAIN else spec.source.revision  # type: ignore[attr-defined]
        pinned = CacheSpec(HubSpec("HuggingFace/Model", "org/name", revision), untrusted=True)
        found = Resolution(pinned, f"{int(revision, 16):064x}", 5, 5, 1, 0)
        assert digest in (None, found.digest)
        return found

    def resolve_with_pin(self, pins: NodePins, volume_id: str) -> Resolution:
        for _ in range(MAX_PIN_ATTEMPTS):
            found = self.resolve(*apply_pin(pins.find_pin("team", MAIN), MAIN))
            if pins.hold_pin(volume_id, "team", MAIN, found):
                return found
        raise AssertionError("no other node pins in between here")

    @rule(name=NODES, pod=PODS, filling=st.booleans())
    def publish(self, name: str, pod: int, filling: bool) -> None:
        volume_id, pins = f"{name}-{pod}", self.nodes[name]
        if volume_id in self.live[name]:
            return
        try:
            with pins.keep_on_success(volume_id):
                found = self.resolve_with_pin(pins, volume_id)
                if filling:
                    raise Busy("the fill goes on")
                shown: dict[str, Any] = {
                    "is_inline": True,
                    "target_paths": {"/x": Exposure("MULTI")},
                    "pin": pins.encode_pin(volume_id),
                }
                self.live[name][volume_id] = NodeVolume(volume_id, found.digest, {}, 5, 5, **shown)
        except Busy:
            pass
        except ClusterUnavailable:
            assert self.registry.away

    @rule(name=NODES, pod=PODS)
    def unpublish(self, name: str, pod: int) -> None:
        self.live[name].pop(f"{name}-{pod}", None)
        self.nodes[name].release(f"{name}-{pod}")

    @rule()
    def push(self) -> None:
        self.commit += 1

    @rule(seconds=st.sampled_from((1.0, 100.0, 700.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=NODES)
    def tend(self, name: str) -> None:
        try:
            self.nodes[name].sync()
        except DataCacheError:
            assert self.registry.away

    @rule(name=NODES)
    def restart(self, name: str) -> None:
        self.nodes[name] = self.started(name)
        self.nodes[name].restore(self.live[name].values())

    @rule()
    def lose_or_find_the_api_server(self) -> None:
        self.registry.away = not self.registry.away

    @invariant()
    def all_that_live_show_one_answer(self) -> None:
        digests = {volume.digest for volumes in self.live.values() for volume in volumes.values()}
        assert len(digests) <= 1

    @precondition(lambda self: not self.registry.away)
    @rule()
    def in_the_end_the_nodes_that_show_it_hold_it(self) -> None:
        self.now += 700
        for name in self.nodes:
            self.tend(name)
        held = {holder.name for pin in self.registry.list_all() for holder in pin.holders}
        assert held == {name for name, volumes in self.live.items() if volumes}


SeveralNodes.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_several_nodes = SeveralNodes.TestCase
