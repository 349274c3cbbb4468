"""`datacache image-store`: see and remove what an image store holds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from csi.errors import FailedPrecondition
from datacache.printing import print_facts, print_table

if TYPE_CHECKING:
    from datacache.image_store import ImageDetails, ImageStoreView, ListedImage

_STORE = click.option(
    "--image-store",
    "url",
    metavar="URL",
    envvar="DATACACHE_IMAGE_STORE",
    required=True,
    help="where its images are: file:///folder, s3://bucket/folder?endpoint=..., oss://...",
)
_SECRET = click.option(
    "--image-store-secret",
    "secret",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    envvar="DATACACHE_IMAGE_STORE_SECRET",
    help="the folder with its access key, one file a key",
)
_OUTPUT = click.option(
    "--output", "-o", type=click.Choice(["text", "json"]), default="text", help="for people or for programs"
)
_JSON = click.option("--json", "output", flag_value="json", help="as --output json")


def _open_images(url: str, secret: Path | None) -> AbstractContextManager[ImageStoreView]:
    # Loads what lays images out, and for a bucket its client: no other command needs them.
    from datacache.image_store import open_image_store_view

    return open_image_store_view(url, secret)


@click.group(name="image-store")
def image_store() -> None:
    """See and remove what an image store holds: images of DataCaches, which outlive their origins there.

    What no DataCache wants any more goes by itself, after the grace of datacache-operator (--image-store-grace): it alone knows all
    DataCaches, so no command here does that.
    """


@image_store.command("list")
@_STORE
@_SECRET
@_OUTPUT
@_JSON
def list_images(url: str, secret: Path | None, output: str) -> None:
    """List the images, those that are damaged or not whole too, with why."""
    with _open_images(url, secret) as images:
        held = images.list_all()
    if output == "json":
        click.echo(json.dumps([one.to_json() for one in held], indent=1))
    else:
        _print_images(held)


def _print_images(held: Iterable[ListedImage]) -> None:
    from datacache.image_store import IMAGE_COLUMNS

    print_table(IMAGE_COLUMNS, (one.to_columns() for one in held), unfolded=2)


@image_store.command("show")
@click.argument("name")
@_STORE
@_SECRET
@_OUTPUT
@_JSON
@click.option("--files", is_flag=True, help="list every file")
def show_image(name: str, url: str, secret: Path | None, output: str, files: bool) -> None:
    """Show the record of an image, and the first of its files.

    NAME is its digest, its snapshot id (s-...), or the first 4 digits of one, or more.
    """
    with _open_images(url, secret) as images:
        (digest,) = images.resolve_names([name])
        shown = images.read_details(digest)
    if output == "json":
        click.echo(json.dumps({**shown.to_json(), "list": shown.list_files(files)}, indent=1))
    else:
        _print_details(shown, files)


def _print_details(shown: ImageDetails, files: bool) -> None:
    print_facts({key: value for key, value in shown.to_json().items() if value is not None})
    listed = shown.list_files(files)
    rows = (
        (str(one["path"]), str(one["bytes"]), str(one["digest"] or "none (change token)")) for one in listed
    )
    print_table(("file", "bytes", "digest"), rows)
    if left := len(shown.files) - len(listed):
        click.echo(f"and {left} more (--files)")


@image_store.command("delete")
@click.argument("names", nargs=-1, required=True)
@_STORE
@_SECRET
@click.option("--yes", is_flag=True, help="do it; without, what would go is shown")
def delete_images(names: tuple[str, ...], url: str, secret: Path | None, yes: bool) -> None:
    """Remove images, and what there is of images that are damaged or not whole, for good.

    NAMES are digests, snapshot ids (s-...), or the first 4 digits of one, or more; where one names no image, or several, nothing is
    removed. A DataCache that still holds such an image has its origin alone then.
    """
    with _open_images(url, secret) as images:
        digests = images.resolve_names(names)
        if not yes:
            _print_images(map(images.get, digests))
            raise FailedPrecondition("nothing was removed; give --yes to have these images removed for good")
        for digest in digests:
            images.remove(digest)
            click.echo(f"removed {digest}")
