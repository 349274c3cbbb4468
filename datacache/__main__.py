"""The command `datacache`: resolve sources, call a plugin, inspect images on a node and in an image store."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import click
from rich.live import Live

from csi import __version__
from csi.errors import DataCacheError
from datacache.findings import Finding, Verdict, fault_finding
from datacache.image_store_commands import image_store
from datacache.images import list_images
from datacache.options import TOKEN_OPTION, parse_pairs, read_token_file
from datacache.printing import CONSOLE, build_table, print_facts, print_table
from datacache.resolve import ResolvedSource, resolve_once
from datacache.top import TOP_COLUMNS, ThrottledNode, ThrottleSampler, detect_hierarchy_or_none
from datacache.volume_commands import VOLUME_COMMANDS


@click.group()
@click.version_option(__version__)
def cli() -> None:
    """Inspect and drive data caches for models and other large read-only data."""


cli.add_command(image_store)
for volume_command in VOLUME_COMMANDS:
    cli.add_command(volume_command)


@cli.command()
@click.argument("spec", nargs=-1, required=True)
@TOKEN_OPTION
@click.option(
    "--output",
    "-o",
    type=click.Choice(["text", "json"]),
    default="text",
    help="text to read, json for programs",
)
@click.option("--files", is_flag=True, help="list every file")
def resolve(spec: tuple[str, ...], token_file: Path | None, output: str, files: bool) -> None:
    """Print what a volume would hold, before anything is fetched.

    SPEC is parameters as key=value, such as: repoId=org/name revision=main, or: server=nas.example.com
    path=/models
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = resolve_once(parse_pairs(spec), read_token_file(token_file), Path(scratch))
    if output == "json":
        click.echo(json.dumps(source.to_json(files), indent=1))
    else:
        _print_resolved(source, files)


def _print_resolved(source: ResolvedSource, files: bool) -> None:
    print_facts(source.to_json(False))
    if files:
        rows = (
            (entry.path, str(entry.size), entry.digest if entry.is_verifiable else "none (change token)")
            for entry in source.manifest.files
        )
        print_table(("file", "bytes", "digest"), rows)


@cli.command()
@click.argument(
    "store",
    type=click.Path(path_type=Path, exists=True),
    envvar="DATACACHE_STORE",
    default="/var/lib/datacache",
)
def images(store: Path) -> None:
    """List the images in a node's STORE, and the progress of each fill."""
    print_table(("image", "state", "size", "progress", "last used"), list_images(store))


@cli.command()
@click.argument(
    "store",
    type=click.Path(path_type=Path, exists=True),
    envvar="DATACACHE_STORE",
    default="/var/lib/datacache",
)
@click.option(
    "--cgroup-root",
    type=click.Path(path_type=Path),
    envvar="DATACACHE_CGROUP_ROOT",
    default="/sys/fs/cgroup",
    help="folder where cgroups are mounted",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    help="seconds between two samples; the kernel lets reads through in batches of 100 ms",
)
@click.option("--once", is_flag=True, help="print one sample, as when the output is not a terminal")
@click.option(
    "--output",
    "-o",
    type=click.Choice(["text", "json"]),
    default="text",
    help="text to read, json for programs (one sample)",
)
def top(store: Path, cgroup_root: Path, interval: float, once: bool, output: str) -> None:
    """Show each volume's limits, read rate and burst credit on the node with STORE, until Ctrl-C."""
    sampler = ThrottleSampler(ThrottledNode(store, detect_hierarchy_or_none(cgroup_root)))
    if output == "json" or once or not sys.stdout.isatty():
        time.sleep(interval)
        readings = sampler.sample()
        if output == "json":
            click.echo(json.dumps([reading.to_json() for reading in readings], indent=1))
        else:
            print_table(TOP_COLUMNS, [reading.to_columns() for reading in readings])
        return
    with suppress(KeyboardInterrupt), Live(console=CONSOLE, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(
                build_table(TOP_COLUMNS, [reading.to_columns() for reading in sampler.sample()]), refresh=True
            )


@cli.command()
@click.argument(
    "store", type=click.Path(path_type=Path), envvar="DATACACHE_STORE", default="/var/lib/datacache"
)
@click.option(
    "--mount-dir",
    type=click.Path(path_type=Path),
    envvar="DATACACHE_MOUNT_DIR",
    help="folder where images are mounted; empty: in the store",
)
@click.option(
    "--cgroup-root",
    type=click.Path(path_type=Path),
    envvar="DATACACHE_CGROUP_ROOT",
    default="/sys/fs/cgroup",
    help="folder where cgroups are mounted",
)
@click.option(
    "--hub", envvar="HF_ENDPOINT", help="address of the hub that must be reachable; empty: the public one"
)
@click.option(
    "--endpoint",
    envvar="DATACACHE_ENDPOINT",
    default="",
    help="socket of the node plugin, as unix:///...; empty: not checked",
)
@click.option(
    "--cluster",
    is_flag=True,
    help="check the driver in the cluster of KUBECONFIG, or of this pod, instead of a node's STORE",
)
@click.option(
    "--kubeconfig", type=click.Path(path_type=Path), help="used instead of KUBECONFIG, with --cluster"
)
@click.option(
    "--context", default="", help="context of the kubeconfig, with --cluster; empty: the current one"
)
@click.option("--namespace", "-n", default="datacache-csi", help="namespace of the driver, with --cluster")
@click.option(
    "--driver-name",
    envvar="DATACACHE_DRIVER_NAME",
    default="datacache.csi.io",
    help="name of the CSI driver, with --cluster",
)
@click.option(
    "--output",
    "-o",
    type=click.Choice(["text", "json"]),
    default="text",
    help="text to read, json for programs",
)
def doctor(  # noqa: PLR0913 - one for each flag of the command
    store: Path,
    mount_dir: Path | None,
    cgroup_root: Path,
    hub: str | None,
    endpoint: str,
    cluster: bool,
    kubeconfig: Path | None,
    context: str,
    namespace: str,
    driver_name: str,
    output: str,
) -> None:
    """Check this node, or with --cluster the driver in a cluster, and say how to fix what is wrong.

    On a node, each check tries what the node plugin with STORE will need. Exit status 1 where volumes would
    fail.
    """
    if cluster:
        _print_and_exit(_examine_cluster(kubeconfig, context, namespace, driver_name), output)
    if kubeconfig or context:
        raise click.UsageError("--kubeconfig and --context need --cluster")
    from datacache import (
        doctor as node_doctor,  # loads the HTTP client, which only this command and resolve need
    )

    node = node_doctor.ExaminedNode(
        store, mount_dir or store / "mounts", cgroup_root, hub or node_doctor.public_hub_url(), endpoint
    )
    _print_and_exit(node_doctor.run_checks(node), output)


def _examine_cluster(file: Path | None, context: str, namespace: str, driver_name: str) -> Iterable[Finding]:
    from csi.cluster.api_server import ApiServer
    from datacache.cluster.access import find_user_access
    from datacache.cluster.doctor import INSTALLATION, InstalledDriver, run_checks
    from datacache.cluster.programs import PROGRAMS
    from datacache.cluster.usage import USAGE

    try:
        server = ApiServer(find_user_access(file, context))
        server.access.build_tls_context()
    except DataCacheError as error:
        return [
            fault_finding(
                "kubeconfig",
                str(error),
                "kubectl must reach the cluster with the same kubeconfig and context (kubectl cluster-info)",
            )
        ]
    return run_checks(server, InstalledDriver(driver_name, namespace), (*INSTALLATION, *PROGRAMS, *USAGE))


def _print_and_exit(results: Iterable[Finding], output: str) -> NoReturn:
    findings = list(results)
    if output == "json":
        click.echo(json.dumps([finding.to_json() for finding in findings], indent=1))
    else:
        print_table(
            ("check", "verdict", "what", "fix"),
            [(finding.check, finding.verdict, finding.message, finding.fix) for finding in findings],
        )
    sys.exit(any(finding.verdict is Verdict.FAULT for finding in findings))


def main() -> None:
    """Run the command.

    An error of the driver becomes one line on standard error and exit status 1.
    """
    try:
        cli()
    except DataCacheError as error:
        sys.exit(f"datacache: {error}")
    except BrokenPipeError:
        # The reader of a pipe, such as head, has closed it. A normal exit would flush again, and fail again.
        os._exit(0)


if __name__ == "__main__":
    main()
