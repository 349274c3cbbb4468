"""Long listings are resolved in bounded memory: nothing of a client's own is kept for a file beside its
entry."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from urllib.parse import parse_qs, urlsplit

import pytest

from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.hub import HubSpec
from csi.sources.hubs.huggingface import HuggingFaceSource
from csi.sources.hubs.modelscope import ModelScopeSource
from csi.sources.source import Source
from tests.conformance.hub_kit import pointed_at
from tests.csi.sources.buckets.origin import list_bucket, told
from tests.origins.hub import Hub
from tests.origins.modelscope import ModelScopeHub
from tests.origins.scripted import Answer, Server

FEW, MANY = 1_000, 4_000
# An entry with a path of 40 bytes and a sha256 is 350 bytes; ordering and checking takes 150 more for a
# moment. What
# huggingface_hub makes of a file is 850 bytes, what ModelScope's SDK makes of it is 1,000.
MOST_BYTES = 700

Opening = Callable[[ExitStack, pytest.MonkeyPatch, dict[str, bytes]], Source]


def hugging_face(stack: ExitStack, _: pytest.MonkeyPatch, files: dict[str, bytes]) -> Source:
    hub = stack.enter_context(Hub(page=100))
    stack.enter_context(pointed_at(hub.endpoint))
    hub.repo("org/name", files, kind="dataset", lfs_over=0)
    return HuggingFaceSource(CacheSpec(HubSpec("HuggingFace/DataSet", "org/name", "main")), None)


def modelscope(stack: ExitStack, patch: pytest.MonkeyPatch, files: dict[str, bytes]) -> Source:
    hub = stack.enter_context(ModelScopeHub())
    patch.setenv("MODELSCOPE_ENDPOINT", hub.endpoint)
    hub.repo("org/name", files, kind="dataset")
    return ModelScopeSource(CacheSpec(HubSpec("ModelScope/DataSet", "org/name", "master")), None)


def bucket(stack: ExitStack, _: pytest.MonkeyPatch, files: dict[str, bytes]) -> Source:
    server = stack.enter_context(Server())
    stack.callback(server.shutdown)
    keys = sorted(files)

    def page(answer: Answer) -> None:
        first = int(parse_qs(urlsplit(answer.path).query).get("continuation-token", ["0"])[0])
        last = first + 1000
        answer.say(200, list_bucket(*keys[first:last], more=str(last) if last < len(keys) else ""))

    server.behave["/bucket"] = page
    return told(server)


@pytest.fixture
def traced() -> Iterator[None]:
    yield
    tracemalloc.stop()


def peak(opening: Opening, patch: pytest.MonkeyPatch, count: int) -> int:
    """Bytes that Python held at most while `count` files were resolved, above what it held before."""
    files = {f"data/{n // 1000:03}/part-{n:06}-of-{count:06}.json": b"%d" % n for n in range(count)}
    with ExitStack() as stack:
        source = stack.enter_context(closing(opening(stack, patch, files)))
        pinned = source.pin()
        # The hubs of the tests, in this process, make their listings once.
        source.resolve(pinned)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        assert sum(1 for _ in source.resolve(pinned).files) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most - before


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("opening", [hugging_face, modelscope, bucket])
def test_a_file_of_a_long_listing_costs_little_more_than_its_entry(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = peak(opening, monkeypatch, MANY) - peak(opening, monkeypatch, FEW)
    print(f"{opening.__name__}: {more / (MANY - FEW):.0f} bytes a file")
    assert more / (MANY - FEW) < MOST_BYTES
