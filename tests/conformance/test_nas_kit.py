"""The guarded export of the NAS kit does guard, so that the suite says something when it passes there."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from csi.errors import PermissionDenied, SourceNotFound
from csi.parameters.dialects.nas import NasSpec
from tests.conformance.nas_kit import NasKit

ROOT = Path(__file__).resolve().parent.parent.parent
_RESOLVE = """
import sys
sys.path.insert(0, sys.argv[1])
from csi.sources.nfs.source import NasSource
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.nas import NasSpec
source = NasSource({spec!r})
source.check_read_access(source.resolve(source.pin()))
"""
_UNPRIVILEGED = ["setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service"]


@pytest.mark.parametrize("version", ["3", "4.0"])
def test_the_guarded_export_is_for_the_owner_at_a_low_port(version: str) -> None:
    kit = NasKit(version, "guarded")
    if why := kit.missing():
        pytest.skip(f"the guarded NAS was not tried: {why}")
    with kit:
        spec = kit.place({"folder/file": b"1"})
        assert isinstance(spec.source, NasSpec)
        with closing(kit.open(spec, None)) as source:
            source.check_read_access(source.resolve(source.pin()))
        for uid in (0, 4321):
            stranger = replace(spec, source=replace(spec.source, uid=uid, gid=uid))
            with closing(kit.open(stranger, None)) as source, pytest.raises(PermissionDenied):
                source.resolve(source.pin())
        program = [sys.executable, "-c", _RESOLVE.format(spec=spec), str(ROOT)]
        assert subprocess.run(program, check=False).returncode == 0
        refused = subprocess.run([*_UNPRIVILEGED, *program], capture_output=True, text=True, check=False)
        assert PermissionDenied.__name__ in refused.stderr or SourceNotFound.__name__ in refused.stderr
