"""Generator of the files below deploy/; with `--check` it compares them instead.

deploy/manifests is generated from the chart; the chart's crds/, and the fields that `datacache doctor
--cluster` expects, from deploy/crds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from datacache.cluster.crd_fields import FIELDS_FILE, list_crd_fields

DEPLOY = Path(__file__).resolve().parent
CHART, CRDS, MANIFESTS = DEPLOY / "chart/datacache-csi", DEPLOY / "crds", DEPLOY / "manifests"
NAME = NAMESPACE = "datacache-csi"
NOT_RUN = "NOT RUN: helm is not installed (nor named by HELM, nor built for the test cluster), so {what}"
_HEAD = "# Made from deploy/chart by `make manifests`; do not edit.\n"
_CRD_HEAD = "# Copied from deploy/crds/{name} by `make manifests`; do not edit here.\n"
_SOURCE = re.compile(r"# Source: \S+/templates/(\S+)\n")
# Labels that only objects managed by Helm may have.
_OF_HELM = re.compile(r"^ +(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n", re.MULTILINE)


def helm() -> str:
    """Return the helm program: from HELM, the path, or the test cluster's build; "" if there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "datacache-csi/cluster"
    built = max(cache.glob("programs-*/helm"), key=lambda path: path.stat().st_mtime, default="")
    return os.environ.get("HELM") or shutil.which("helm") or str(built)


def manifests() -> dict[str, str]:
    """Render deploy/manifests: the text of each file by its name, with the chart's own values.

    There is a file for each template that has objects.
    """
    command = [helm(), "template", NAME, str(CHART), "--namespace", NAMESPACE]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"helm template: {result.stderr.strip()}")
    files: dict[str, list[str]] = {}
    for part in re.split(r"^---\n", result.stdout, flags=re.MULTILINE):
        if source := _SOURCE.search(part):
            files.setdefault(source[1], []).append(_OF_HELM.sub("", _SOURCE.sub("", part)).strip("\n") + "\n")
    return {name: _HEAD + "---\n".join(parts) for name, parts in files.items()}


def build_outputs(rendered: bool) -> dict[Path, str]:
    """Return all generated files by their paths; those of deploy/manifests only if `rendered`."""
    crds = {path.name: path.read_text() for path in sorted(CRDS.glob("*.yaml"))}
    fields = {
        crd["metadata"]["name"]: list_crd_fields(crd)
        for text in crds.values()
        for crd in yaml.safe_load_all(text)
    }
    files = {CHART / "crds" / name: _CRD_HEAD.format(name=name) + text for name, text in crds.items()} | {
        FIELDS_FILE: json.dumps(fields, indent=1) + "\n"
    }
    return files | ({MANIFESTS / name: text for name, text in manifests().items()} if rendered else {})


def stale(files: dict[Path, str], rendered: bool) -> list[Path]:
    """Return the files that differ from `files`, are missing, or should not exist."""
    existing = {
        path
        for folder in (CHART / "crds", *([MANIFESTS] if rendered else []))
        for path in folder.glob("*.yaml")
    }
    return sorted(
        path for path in existing | files.keys() if not path.exists() or path.read_text() != files.get(path)
    )


def write(files: dict[Path, str], rendered: bool) -> None:
    """Write the files, and remove those that should not exist."""
    for path in stale(files, rendered):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path in files:
            path.write_text(files[path])
        else:
            path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    check, rendered = parser.parse_args().check, bool(helm())
    if not rendered:
        print(
            NOT_RUN.format(
                what="deploy/manifests is not compared with deploy/chart"
                if check
                else "deploy/manifests is left as it is"
            )
        )
    files = build_outputs(rendered)
    if not check:
        write(files, rendered)
    elif found := stale(files, rendered):
        sys.exit(
            f"stale: {', '.join(str(path.relative_to(DEPLOY.parent)) for path in found)}; "
            "run `make manifests` and commit the result"
        )


if __name__ == "__main__":
    main()
