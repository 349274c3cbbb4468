"""`datacache image-store`: list, show and delete images of an image store."""

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
    help="location of the images: file:///folder, s3://bucket/folder?endpoint=..., oss://...",
)
_SECRET = click.option(
    "--image-store-secret",
    "secret",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    envvar="DATACACHE_IMAGE_STORE_SECRET",
    help="folder with the access key, one file per key",
)
_OUTPUT = click.option(
    "--output",
    "-o",
    type=click.Choice(["text", "json"]),
    default="text",
    help="text to read, json for programs",
)
_JSON = click.option("--json", "output", flag_value="json", help="as --output json")


def _open_images(url: str, secret: Path | None) -> AbstractContextManager[ImageStoreView]:
    # Imports the image layout, and for a bucket its client, which no other command needs.
    from datacache.image_store import open_image_store_view

    return open_image_store_view(url, secret)


@click.group(name="image-store")
def image_store() -> None:
    """List, show and delete images of an image store, which keeps images of DataCaches beyond their origins.

    Images that no DataCache refers to are removed by datacache-operator after its --image-store-grace. No
    command here does that, since only the operator knows all DataCaches.
    """


@image_store.command("list")
@_STORE
@_SECRET
@_OUTPUT
@_JSON
def list_images(url: str, secret: Path | None, output: str) -> None:
    """List the images, including damaged and incomplete ones with the reason."""
    with _open_images(url, secret) as images:
        listed = images.list_all()
    if output == "json":
        click.echo(json.dumps([image.to_json() for image in listed], indent=1))
    else:
        _print_images(listed)


def _print_images(listed: Iterable[ListedImage]) -> None:
    from datacache.image_store import IMAGE_COLUMNS

    print_table(IMAGE_COLUMNS, (image.to_columns() for image in listed), unfolded=2)


@image_store.command("show")
@click.argument("name")
@_STORE
@_SECRET
@_OUTPUT
@_JSON
@click.option("--files", is_flag=True, help="list every file")
def show_image(name: str, url: str, secret: Path | None, output: str, files: bool) -> None:
    """Show the record of an image, and the first of its files.

    NAME is its digest, its snapshot id (s-...), or at least the first 4 digits of one.
    """
    with _open_images(url, secret) as images:
        (digest,) = images.resolve_names([name])
        details = images.read_details(digest)
    if output == "json":
        click.echo(json.dumps({**details.to_json(), "list": details.list_files(files)}, indent=1))
    else:
        _print_details(details, files)


def _print_details(details: ImageDetails, files: bool) -> None:
    print_facts({key: value for key, value in details.to_json().items() if value is not None})
    listed = details.list_files(files)
    rows = (
        (str(file["path"]), str(file["bytes"]), str(file["digest"] or "none (change token)"))
        for file in listed
    )
    print_table(("file", "bytes", "digest"), rows)
    if remaining := len(details.files) - len(listed):
        click.echo(f"and {remaining} more (--files)")


@image_store.command("delete")
@click.argument("names", nargs=-1, required=True)
@_STORE
@_SECRET
@click.option("--yes", is_flag=True, help="delete; without it, only show what would be deleted")
def delete_images(names: tuple[str, ...], url: str, secret: Path | None, yes: bool) -> None:
    """Delete images for good, including the remains of damaged and incomplete ones.

    NAMES are digests, snapshot ids (s-...), or at least the first 4 digits of one. If one of them matches no
    image, or several, nothing is deleted. A DataCache that still refers to a deleted image depends on its
    origin again.
    """
    with _open_images(url, secret) as images:
        digests = images.resolve_names(names)
        if not yes:
            _print_images(map(images.get, digests))
            raise FailedPrecondition("nothing was deleted; give --yes to delete these images for good")
        for digest in digests:
            images.remove(digest)
            click.echo(f"removed {digest}")
