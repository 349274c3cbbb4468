"""An API over a folder, for both SDKs, and what tests ask of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controller_plugin.operator.openapi.actions import Actions
from controller_plugin.operator.openapi.app import openapi_app
from controller_plugin.operator.openapi.deletions import Deletions
from controller_plugin.operator.openapi.nonces import FileNonceStore
from controller_plugin.operator.openapi.signatures import SignatureVerifier
from controller_plugin.operator.regions.copying import ImageStoreRegions
from csi.destinations.allow_list import DATA_CACHE_OBJECTS, AllowList
from csi.destinations.destinations import parse_destinations
from csi.registry.datacaches.data_caches import DataCacheContent, DataCacheState
from csi.registry.datacaches.directory import DirectoryDataCacheRegistry
from tests.controller_plugin.operator.fakes import FakeStored
from tests.controller_plugin.operator.openapi.sdks import REGION, ApiError, Sdk

KEYS = {"LTAIexample": "a-secret"}
HUB = {"repoSource": "HuggingFace/Model", "repoId": "org/name", "revision": "main"}
HUB_SOURCE = {"Type": "URL", "Options": {**HUB, "accessToken": "hf_x"}}
NAS_SOURCE = {
    "Type": "NAS",
    "Options": {"server": "nas.example.com", "path": "/m", "vers": "3", "options": "nolock,proto=tcp"},
}
CONTENT = DataCacheContent("ab" * 32, {}, 8192, 30 * 2**30)


class Region:
    """An API over a folder, and where it listens."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.caches = folder, DirectoryDataCacheRegistry(folder)
        allowed = AllowList(
            ["nas.example.com:/m"], parse_destinations("files.example.org,*.aliyuncs.com"), DATA_CACHE_OBJECTS
        )
        self.there = FakeStored("s3://there")
        regions = ImageStoreRegions(self.caches, FakeStored("s3://here"), {"cn-there": self.there}, REGION)
        deletions = Deletions(FileNonceStore(folder / "nonces.json", 1800))
        actions = Actions(self.caches, allowed, regions, REGION, deletions)
        self.app = openapi_app(actions, SignatureVerifier(KEYS.get))
        self.port = 0

    def be(self, cache_id: str, state: DataCacheState) -> None:
        self.caches.write_state(self.caches.find((cache_id,))[0], state)


def create(sdk: Sdk, path: str = "/models/a", **more: Any) -> str:
    found: str = sdk("CreateDataCache", **{"Path": path, "DataSource": HUB_SOURCE, **more})["DataCacheId"]
    return found


def refusal(sdk: Sdk, action: str, **parameters: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        sdk(action, **parameters)
    return caught.value
