"""docs/eci.md and docs/eci.zh.md: their SDK code is run as it stands, their YAML is that of the examples,
and both say the same."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from csi.registry.datacaches.data_caches import DataCacheState, Phase
from tests.controller_plugin.operator.openapi.region import CONTENT, KEYS, Region
from tests.documents.blocks import DOCS, Block, blocks

PAGES = ("eci.md", "eci.zh.md")
EXAMPLES = Path(__file__).parents[4] / "deploy/examples/eci"
ADDRESS = "127.0.0.1:8080"
_ONE_CLIENTS_ENDPOINT = f'client.add_endpoint("cn-local", "Eci", "{ADDRESS}")\n'
_SDK1, _ALL_CLIENTS_ENDPOINT, _SDK2 = (block.text for block in blocks("eci.md", "python"))
PROGRAMS = {
    "aliyun-python-sdk-eci": _SDK1,
    "aliyun-python-sdk-eci, region_provider": _ALL_CLIENTS_ENDPOINT
    + _SDK1.replace(_ONE_CLIENTS_ENDPOINT, ""),
    "alibabacloud_eci20180808": _SDK2,
}


def make_available(region: Region) -> None:
    """Do the operator's part: every cache that is there has what it is to hold."""
    for cache in region.caches.find():
        if cache.phase is not Phase.AVAILABLE:
            region.be(cache.id, DataCacheState(Phase.AVAILABLE, 100, cache.generation, CONTENT))


def output_of(program: str, region: Region) -> str:
    """What a program prints that calls the API of `region`, which makes caches Available meanwhile."""
    program = program.replace(ADDRESS, f"127.0.0.1:{region.port}")
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while process.poll() is None:
            make_available(region)
            time.sleep(0.05)
        said = process.stdout.read() if process.stdout else ""
    assert process.returncode == 0, said
    return said


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_sdk_code_of_the_page_creates_a_cache_and_waits_for_it(name: str, region: Region) -> None:
    said = output_of(PROGRAMS[name], region)
    (made,) = region.caches.find()
    assert said.split() == [made.id, "Available", "100%"]
    assert (made.spec.path, made.title, made.spec.size_gib) == ("/models/by-sdk", "by-sdk", 20)
    assert made.spec.options == {"repoSource": "HuggingFace/Model", "repoId": "example-org/by-sdk"}


def test_the_page_shows_how_each_endpoint_is_set() -> None:
    assert _ONE_CLIENTS_ENDPOINT in _SDK1
    assert f'endpoint="{ADDRESS}"' in _SDK2
    for key_id, secret in KEYS.items():
        assert f'"{key_id}", "{secret}"' in _SDK1
        assert f'access_key_id="{key_id}"' in _SDK2
        assert f'access_key_secret="{secret}"' in _SDK2


def _objects(text: str) -> list[Any]:
    return [found for found in yaml.safe_load_all(text) if found]


def test_the_yaml_of_the_page_is_that_of_the_examples() -> None:
    examples = [_objects(path.read_text()) for path in sorted(EXAMPLES.glob("*.yaml"))]
    shown = [_objects(block.text) for block in blocks("eci.md", "yaml")]
    assert len(shown) == 2
    assert [objects for objects in shown if objects not in examples] == []


def test_both_languages_have_the_same_code_and_tables() -> None:
    def outline(page: str) -> list[int]:
        """The columns of each row of each table."""
        return [line.count(" | ") for line in (DOCS / page).read_text().splitlines() if line.startswith("| ")]

    code: list[list[Block]] = [blocks(page) for page in PAGES]
    assert code[0] == code[1]
    assert outline(PAGES[0]) == outline(PAGES[1])
