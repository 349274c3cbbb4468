"""One store for every test of images that asks for it."""

from tests.csi.images.stores import store

__all__ = ["store"]
