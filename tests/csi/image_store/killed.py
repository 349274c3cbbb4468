"""A process that brings an image to an image store and is killed on the way.

Arguments: URL, secrets (JSON), the image's folder, its puts.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from csi.image_store.location import parse_image_store_url
from csi.image_store.store import ImageStore, open_backend
from csi.images.node_store.records import ImagePaths
from tests.csi.image_store.conftest import PART


def main() -> None:
    url, secrets, folder, puts = sys.argv[1:]
    backend = open_backend(parse_image_store_url(url), json.loads(secrets))
    put, left, guard = backend.put, [int(puts)], threading.Lock()

    def counted(key: str, content: bytes | memoryview) -> None:
        with guard:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
        put(key, content)

    backend.put = counted  # type: ignore[method-assign]
    ImageStore(backend, PART).add(ImagePaths(Path(folder)))


main()
