"""Several sources as one: each below a top folder, with its own rules and its own credential."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import groupby

from csi.errors import DataCacheError, InvalidParameter, OriginThrottled, OriginUnavailable
from csi.manifest.manifest import Entry, Manifest, build_manifest
from csi.manifest.reader import ManyReader, PendingFiles, Reader, RequestPermits
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.composite import CompositeSpec
from csi.parameters.dialects.keys import SourceSpec
from csi.parameters.dialects.table import secret_key_names
from csi.parameters.volume_parameters import parse_volume_parameters
from csi.sources.source import Source

_CREDENTIAL_KEYS = frozenset(name.lower() for name in secret_key_names())
OpenSource = Callable[[CacheSpec, Mapping[str, str]], Source]


class CompositeSource(Source):
    """Source that combines the parts of several others; error messages begin with the folder."""

    def __init__(self, spec: CacheSpec, secrets: Mapping[str, str], open_source: OpenSource) -> None:
        """Open all sources; `secrets` has their credentials under FOLDER.KEY.

        Raises InvalidParameter for a credential that belongs to no source.
        """
        if not isinstance(spec.source, CompositeSpec):
            raise InvalidParameter(f"{spec.source.display_name} is one source, not several")
        self._spec, self._composite = spec, spec.source
        secrets_by_folder = split_secrets(spec.source, secrets)
        self._sources: dict[str, Source] = {}
        self._split_manifest: tuple[Manifest, dict[str, Manifest]] | None = None
        try:
            for folder, source in spec.source.parts:
                with prefix_errors(folder):
                    self._sources[folder] = open_source(
                        self._build_part_spec(folder, source), secrets_by_folder[folder]
                    )
        except BaseException:
            self.close()
            raise

    def _build_part_spec(self, folder: str, source: SourceSpec) -> CacheSpec:
        limits = (dict(self._composite.limits).get(folder), self._spec.bandwidth_limit)
        limit = min((limit for limit in limits if limit), default=None)
        # The worker is inside the egress profile's network already; the parts need not enter it.
        return replace(self._spec, source=source, egress_profile="", bandwidth_limit=limit)

    def pin(self) -> CacheSpec:
        """Return the spec with every revision pinned that can be."""
        return replace(
            self._spec,
            source=replace(
                self._composite,
                parts=tuple((folder, spec.source) for folder, spec in self._pin_parts().items()),
            ),
        )

    def resolve(self, pinned: CacheSpec) -> Manifest:
        """List every source, each under the restrictions that it has alone."""
        assert isinstance(pinned.source, CompositeSpec)
        entries: list[Entry] = []
        for folder, source in pinned.source.parts:
            with prefix_errors(folder):
                part = self._sources[folder].resolve(CacheSpec(source, pinned.preserve_ownership))
            entries += (replace(entry, path=f"{folder}/{entry.path}") for entry in part.entries)
        return build_manifest(entries, pinned.to_context(), preserve_ownership=pinned.preserve_ownership)

    def check_read_access(self, manifest: Manifest) -> None:
        """Check every source with its own credential."""
        parts = self._get_part_manifests(manifest)
        for folder, source in self._sources.items():
            with prefix_errors(folder):
                source.check_read_access(parts[folder])

    @contextmanager
    def open_reader(self, manifest: Manifest) -> Iterator[Reader]:
        """Open a reader that delegates to the source of the folder.

        Connections to each are made on the first read.
        """
        with ExitStack() as exit_stack:
            yield _CompositeReader(self._sources, self._get_part_manifests(manifest), exit_stack)

    def close(self) -> None:
        for source in self._sources.values():
            source.close()

    def _get_part_manifests(self, manifest: Manifest) -> dict[str, Manifest]:
        if self._split_manifest is None or self._split_manifest[0] is not manifest:
            self._split_manifest = (manifest, _split_by_folder(manifest))
        return self._split_manifest[1]

    def _pin_parts(self) -> dict[str, CacheSpec]:
        pinned = {}
        for folder, source in self._sources.items():
            with prefix_errors(folder):
                pinned[folder] = source.pin()
        return pinned


class _CompositeReader(ManyReader):
    def __init__(
        self, sources: Mapping[str, Source], part_manifests: Mapping[str, Manifest], exit_stack: ExitStack
    ) -> None:
        self._sources, self._part_manifests, self._exit_stack = sources, part_manifests, exit_stack
        self._readers: dict[str, Reader] = {}

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        folder = entry.path.partition("/")[0]
        with prefix_errors(folder):
            self._get_reader(folder).read_into(_strip_folder(entry), offset, buffer)

    def read_many(self, pending: PendingFiles, permits: RequestPermits) -> dict[Entry, OriginUnavailable]:
        """Read the files of each folder in turn, for sources that read batches."""
        for folder, files in groupby(list(pending), lambda file: file[0].path.partition("/")[0]):
            with prefix_errors(folder):
                reader = self._get_reader(folder)
                if isinstance(reader, ManyReader):
                    originals = {_strip_folder(entry): (entry, buffer) for entry, buffer in files}
                    # The source removes what it has read from `remaining`.
                    remaining = [(entry, buffer) for entry, (_, buffer) in originals.items()]
                    failed = reader.read_many(remaining, permits)
                    completed = originals.keys() - {entry for entry, _ in remaining}
                    pending[:] = [
                        file
                        for file in pending
                        if _strip_folder(file[0]) not in completed
                        or not file[0].path.startswith(f"{folder}/")
                    ]
                    if failed:
                        return {originals[entry][0]: error for entry, error in failed.items()}
        return {}

    def _get_reader(self, folder: str) -> Reader:
        if folder not in self._readers:
            self._readers[folder] = self._exit_stack.enter_context(
                self._sources[folder].open_reader(self._part_manifests[folder])
            )
        return self._readers[folder]


def _strip_folder(entry: Entry) -> Entry:
    """Return the entry as its own source lists it."""
    return replace(entry, path=entry.path.partition("/")[2])


def _split_by_folder(manifest: Manifest) -> dict[str, Manifest]:
    """Return the manifest of each source alone."""
    spec = parse_volume_parameters(manifest.access).spec
    assert isinstance(spec.source, CompositeSpec)
    entries: dict[str, list[Entry]] = {folder: [] for folder, _ in spec.source.parts}
    for entry in manifest.entries:
        folder, _, path = entry.path.partition("/")
        if path:
            entries[folder].append(replace(entry, path=path))
    access = {
        folder: CacheSpec(source, spec.preserve_ownership).to_context()
        for folder, source in spec.source.parts
    }
    return {
        folder: Manifest(tuple(folder_entries), access[folder]) for folder, folder_entries in entries.items()
    }


def split_secrets(composite: CompositeSpec, secrets: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Split a Secret with FOLDER.KEY keys by folder.

    Raises InvalidParameter for a credential that belongs to no source, or if no key does.
    """
    secrets_by_folder = _assign_secret_keys([folder for folder, _ in composite.parts], secrets)
    if secrets and not any(secrets_by_folder.values()):
        folders = ", ".join(secrets_by_folder)
        raise InvalidParameter(
            "the Secret of this volume has no key of one of its sources; "
            f"write FOLDER.KEY with one of the folders {folders}"
        )
    return secrets_by_folder


def _assign_secret_keys(folders: list[str], secrets: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the keys of each folder, without the prefix; a key goes to the longest folder it begins with.

    Raises InvalidParameter for a credential of no folder: otherwise its source would silently be read
    anonymously.
    """
    secrets_by_folder: dict[str, dict[str, str]] = {folder: {} for folder in folders}
    for key, value in secrets.items():
        folder = max((folder for folder in folders if key.startswith(f"{folder}.")), key=len, default="")
        name = key.removeprefix(f"{folder}.") if folder else key
        if name.rpartition(".")[2].lower() in _CREDENTIAL_KEYS and (not folder or "." in name):
            raise InvalidParameter(
                f"the Secret's `{key}` belongs to no source of this volume; "
                f"write FOLDER.KEY with one of the folders {', '.join(folders)}, or remove it"
            )
        if folder:
            secrets_by_folder[folder][name] = value
    return secrets_by_folder


@contextmanager
def prefix_errors(folder: str) -> Iterator[None]:
    """Prefix the message of errors raised inside with `folder`."""
    try:
        yield
    except OriginThrottled as error:
        raise OriginThrottled(f"{folder}: {error}", error.retry_after) from error
    except DataCacheError as error:
        raise type(error)(f"{folder}: {error}") from error
