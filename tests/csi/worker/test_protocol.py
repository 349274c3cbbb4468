"""Every operation crosses the worker's pipe unchanged, and none shows a secret."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from csi.errors import DataCacheError, from_wire
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.content_ref import ContentRef, Secrets
from csi.parameters.dialects.hub import HubSpec
from csi.worker import operations
from csi.worker.operations import Operation
from csi.worker.protocol import OPERATIONS, WorkerRequest, decode_request, encode_request
from csi.worker.results import AnnouncementListing, Resolution, StoredImageInfo
from csi.worker_process.__main__ import Worker

SECRET = "s3cr3t"
SECRETS = Secrets({"token": SECRET})
DIGEST = "a" * 64
PINNED = CacheSpec(HubSpec("HuggingFace/Model", "org/name", "0" * 40), egress_profile="slow")
CONTENT = ContentRef(DIGEST, PINNED.to_context(), SECRETS)
STORE = operations.ImageStoreRef("file:///images", SECRETS)
FOLDER = Path("/store/images") / DIGEST
INFO = StoredImageInfo(DIGEST, PINNED.to_context(), 4096, 10, 2.5)
ANNOUNCEMENT = {"id": "dc-1", "digest": DIGEST, "tags": {"a": "b"}, "namespaces": ["one"], "adopted": False}
SAMPLES: dict[str, Operation[Any]] = {
    sample.name: sample
    for sample in (
        operations.PinSource(PINNED, SECRETS),
        operations.ResolveSource(PINNED, SECRETS, FOLDER / "manifest"),
        operations.FillImage(CONTENT, FOLDER, 8, (FOLDER, Path("/other")), STORE, "not tried"),
        operations.VerifyImage(CONTENT, FOLDER, 8, SECRET),
        operations.UploadImage(STORE, FOLDER, PINNED.to_context()),
        operations.FindStoredImage(STORE, DIGEST),
        operations.FetchStoredManifest(STORE, DIGEST, FOLDER / "manifest"),
        operations.ListStoredImages(STORE, Path("/tmp/images")),
        operations.CollectStoredImages(STORE, Path("/tmp/wanted"), 3600.5),
        operations.RemoveStoredImage(STORE, DIGEST),
        operations.CopyStoredImage(STORE, operations.ImageStoreRef("s3://b/x", SECRETS), DIGEST),
        operations.Announce(STORE, ANNOUNCEMENT),
        operations.ListAnnouncements(STORE),
        operations.WithdrawAnnouncement(STORE, ANNOUNCEMENT),
    )
}
RESULTS: dict[str, Any] = {
    "pin-source": PINNED,
    "resolve-source": Resolution(PINNED, DIGEST, 10, 4096, 2, 1),
    "find-image": INFO,
    "fetch-manifest": INFO,
    "collect-images": [DIGEST],
    "list-announcements": AnnouncementListing((ANNOUNCEMENT,), ("damaged",)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_arrives_as_it_was_sent(name: str) -> None:
    request = decode_request(encode_request(SAMPLES[name], ["10.0.0.0/8"]))
    assert request == WorkerRequest(SAMPLES[name], ("10.0.0.0/8",))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_result_arrives_as_it_was_sent(name: str) -> None:
    operation, result = SAMPLES[name], RESULTS.get(name)
    assert operation.decode_result(json.loads(json.dumps(operation.encode_result(result)))) == result


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_repr_has_a_secret(name: str) -> None:
    assert SECRET not in repr(WorkerRequest(SAMPLES[name]))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OPERATIONS)
def test_missing_and_unknown_keys_are_errors_that_name_them(name: str) -> None:
    wire = json.loads(encode_request(SAMPLES[name]))
    key = next(iter(wire["fields"]))
    without = wire | {"fields": {other: wire["fields"][other] for other in wire["fields"] if other != key}}
    for changed, wrong in ((without, key), (wire | {"fields": {**wire["fields"], "novel": 1}}, "novel")):
        with pytest.raises(DataCacheError, match=f"wrong: {wrong}") as raised:
            decode_request(json.dumps(changed).encode())
        assert SECRET not in str(raised.value)


def test_fields_that_are_not_given_keep_their_defaults() -> None:
    operation = operations.ResolveSource(PINNED, Secrets())
    assert decode_request(encode_request(operation)).operation == operation
    assert operations.FindStoredImage.decode_result({}) is None


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_egress_profile_is_that_of_the_source(name: str) -> None:
    has_source = name in ("pin-source", "resolve-source", "fill-image", "verify-image")
    assert SAMPLES[name].egress_profile == ("slow" if has_source else "")


def test_a_worker_answers_a_request_that_it_cannot_decode() -> None:
    output = io.BytesIO()
    Worker(output)._handle(b'{"operation": "boil", "allowed_destinations": [], "fields": {}}\n')
    event = json.loads(output.getvalue())
    assert event.pop("event") == "error"
    assert "a worker has no operation 'boil'" in str(from_wire(event))
