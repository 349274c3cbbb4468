"""Commands that call a plugin as Kubernetes does: create, stage and publish volumes, and the reverse."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click

from csi.errors import DataCacheError
from csi.parameters.access_modes import MODES
from csi.pb.csi_pb2 import Volume
from datacache.client import PluginClient
from datacache.options import ENDPOINT_OPTION, TOKEN_OPTION, parse_pairs, read_token_file
from datacache.printing import print_table

_MODE_OPTION = click.option(
    "--mode", type=click.Choice(list(MODES)), default="MULTI_NODE_READER_ONLY", help="CSI access mode"
)


@click.command()
@ENDPOINT_OPTION
def volumes(endpoint: str) -> None:
    """List a controller's volumes."""
    with PluginClient(endpoint) as client:
        print_table(
            ("volume", "source", "capacity", "manifest"),
            [_build_volume_row(volume) for volume in client.list_volumes()],
        )


def _describe_source(context: Mapping[str, str]) -> str:
    # Not at the top: other commands start faster without it.
    from csi.parameters.volume_parameters import parse_accepted_parameters

    try:
        return parse_accepted_parameters(context).spec.source.display_name
    except DataCacheError:
        return "unknown"


def _build_volume_row(volume: Volume) -> tuple[str, ...]:
    context = volume.volume_context
    source = _describe_source(context)
    return (
        volume.volume_id,
        source,
        f"{volume.capacity_bytes / 2**30:.0f} GiB",
        context.get("manifestDigest", "")[:12],
    )


@click.command()
@ENDPOINT_OPTION
@click.argument("name")
@click.argument("parameters", nargs=-1, required=True)
@TOKEN_OPTION
def create(endpoint: str, name: str, parameters: tuple[str, ...], token_file: Path | None) -> None:
    """Create the volume NAME from key=value PARAMETERS and print its id and context as JSON."""
    with PluginClient(endpoint) as client:
        volume = client.create(name, parse_pairs(parameters), read_token_file(token_file))
    click.echo(
        json.dumps(
            {
                "volume_id": volume.volume_id,
                "capacity_bytes": volume.capacity_bytes,
                "context": dict(volume.volume_context),
            },
            indent=1,
        )
    )


@click.command()
@ENDPOINT_OPTION
@click.argument("volume_id")
def delete(endpoint: str, volume_id: str) -> None:
    """Delete the volume VOLUME_ID."""
    with PluginClient(endpoint) as client:
        client.delete(volume_id)


@click.command()
@ENDPOINT_OPTION
@click.argument("volume_id")
@click.argument("staging", type=click.Path(path_type=Path))
@click.argument("context", nargs=-1, required=True)
@TOKEN_OPTION
@_MODE_OPTION
def stage(
    endpoint: str, volume_id: str, staging: Path, context: tuple[str, ...], token_file: Path | None, mode: str
) -> None:
    """Fill and mount a volume's image and mark the STAGING path with it, for `publish`.

    CONTEXT is the volume context as key=value.
    """
    with PluginClient(endpoint) as client:
        client.stage(
            volume_id, str(staging.resolve()), parse_pairs(context), read_token_file(token_file), MODES[mode]
        )


@click.command()
@ENDPOINT_OPTION
@click.argument("volume_id")
@click.argument("target", type=click.Path(path_type=Path))
@click.argument("context", nargs=-1, required=True)
@click.option(
    "--staging",
    type=click.Path(path_type=Path),
    help="path where the volume is staged; without it the volume is inline",
)
@TOKEN_OPTION
@_MODE_OPTION
def publish(
    endpoint: str,
    volume_id: str,
    target: Path,
    context: tuple[str, ...],
    staging: Path | None,
    token_file: Path | None,
    mode: str,
) -> None:
    """Bind a volume to the TARGET path, as for one pod."""
    inline = {} if staging else {"csi.storage.k8s.io/ephemeral": "true"}
    with PluginClient(endpoint) as client:
        staging_path = str(staging.resolve()) if staging else ""
        client.publish(
            volume_id,
            str(target.resolve()),
            parse_pairs(context) | inline,
            staging_path,
            read_token_file(token_file),
            MODES[mode],
        )


@click.command()
@ENDPOINT_OPTION
@click.argument("volume_id")
@click.argument("target", type=click.Path(path_type=Path))
def unpublish(endpoint: str, volume_id: str, target: Path) -> None:
    """Unmount a volume from the TARGET path."""
    with PluginClient(endpoint) as client:
        client.unpublish(volume_id, str(target.absolute()))


@click.command()
@ENDPOINT_OPTION
@click.argument("volume_id")
@click.argument("staging", type=click.Path(path_type=Path))
def unstage(endpoint: str, volume_id: str, staging: Path) -> None:
    """Unmount a volume from the STAGING path."""
    with PluginClient(endpoint) as client:
        client.unstage(volume_id, str(staging.absolute()))


VOLUME_COMMANDS = (volumes, create, delete, stage, publish, unpublish, unstage)
"""All commands of this module."""
