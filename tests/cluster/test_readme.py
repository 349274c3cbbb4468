"""Examples of README.md and of guides, as they stand there: applied, and read by their pods."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
import yaml

from tests.cluster.installed import Driver
from tests.cluster.lab import Lab
from tests.cluster.pods import applied
from tests.cluster.programs import TREE
from tests.cluster.test_volumes import settled
from tests.cluster.volumes import secret
from tests.origins.hub import Hub

pytestmark = pytest.mark.cluster

_EXAMPLES = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOKEN = "hf_readme"
PUBLIC = "sentence-transformers/all-MiniLM-L6-v2"
WEIGHTS = os.urandom(1 << 20)


def example_of(document: str, pod: str) -> list[dict[str, Any]]:
    """The objects of the example of a document that has a pod of that name."""
    examples = [list(yaml.safe_load_all(text)) for text in _EXAMPLES.findall((TREE / document).read_text())]
    (found,) = (
        things
        for things in examples
        if any(thing["kind"] == "Pod" and thing["metadata"]["name"] == pod for thing in things)
    )
    return found


@pytest.mark.usefixtures("python_image")
@pytest.mark.parametrize(
    ("document", "pod", "repository", "revision", "private", "complete"),
    [
        ("README.md", "reader", PUBLIC, "main", False, True),
        ("docs/guides/storage-class.md", "reader", PUBLIC, "main", False, False),
        ("docs/guides/inline-volume.md", "inline-reader", "org/private-model", "v1.0", True, True),
    ],
)
def test_an_example_is_applied_as_it_stands_and_its_pod_reads_the_model(
    lab: Lab,
    driver: Driver,
    hub: Hub,
    document: str,
    pod: str,
    repository: str,
    revision: str,
    private: bool,
    complete: bool,
) -> None:
    """Of a `private` repository with the token of the reader's Secret.

    `complete` is whether no files are left out by patterns.
    """
    files: dict[str, bytes] = {
        "config.json": b"{}",
        "model.safetensors": WEIGHTS,
        "model.onnx": b"not always wanted",
    }
    made = hub.repo(repository, files, private=private, tokens={TOKEN} if private else ())
    made.branches[revision] = made.branches["main"]
    with applied(lab.kubectl, secret("hub-token", token=TOKEN), *example_of(document, pod)):
        lab.kubectl.wait("pod", pod, lambda thing: thing["status"].get("phase") == "Succeeded")
        listed = lab.kubectl.logs(pod)
    assert re.search(rf"\b{len(WEIGHTS)}\b.*model\.safetensors", listed)
    assert ("model.onnx" in listed) == complete
    settled(lab, driver)
