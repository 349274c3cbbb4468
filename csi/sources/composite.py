"""Several sources as one: each below a top folder, by its own rules and with its own credential."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import groupby

from csi.errors import DataCacheError, InvalidParameter, OriginThrottled, OriginUnavailable
from csi.manifest.manifest import Entry, Manifest, build
from csi.manifest.reader import ManyReader, Reader, Turns, Wanted
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.composite import SeveralSpec
from csi.parameters.dialects.keys import SourceSpec
from csi.parameters.dialects.table import secret_names
from csi.parameters.volume_parameters import parse
from csi.sources.source import Source

_CREDENTIALS = frozenset(name.lower() for name in secret_names())
Open = Callable[[CacheSpec, Mapping[str, str]], Source]


class SeveralSource:
    """Asks each of its sources for its part. Implements `csi.sources.source.Source`; errors name the folder."""

    def __init__(self, spec: CacheSpec, secrets: Mapping[str, str], open_source: Open) -> None:
        """`secrets` are those of all sources, each behind its folder and a dot. Raises InvalidParameter for one that is no source's."""
        if not isinstance(spec.source, SeveralSpec):
            raise InvalidParameter(f"{spec.source.shown} is one source, not several")
        self._spec, self._several = spec, spec.source
        own = own_secrets(spec.source, secrets)
        self._sources: dict[str, Source] = {}
        self._split: tuple[Manifest, dict[str, Manifest]] | None = None
        try:
            for folder, source in spec.source.parts:
                with naming(folder):
                    self._sources[folder] = open_source(self._alone(folder, source), own[folder])
        except BaseException:
            self.close()
            raise

    def _alone(self, folder: str, source: SourceSpec) -> CacheSpec:
        limits = (dict(self._several.limits).get(folder), self._spec.bandwidth_limit)
        limit = min((limit for limit in limits if limit), default=None)
        return replace(self._spec, source=source, egress_profile="", bandwidth_limit=limit)

    def pin(self) -> CacheSpec:
        """The spec with every revision pinned that can be."""
        return replace(self._spec, source=replace(self._several, parts=tuple((folder, spec.source) for folder, spec in self._pinned().items())))

    def resolve(self, pinned: CacheSpec) -> Manifest:
        """List every source; what one may not hold alone, it may not hold here."""
        assert isinstance(pinned.source, SeveralSpec)
        entries: list[Entry] = []
        for folder, source in pinned.source.parts:
            with naming(folder):
                part = self._sources[folder].resolve(CacheSpec(source, pinned.preserve_ownership))
            entries += (replace(entry, path=f"{folder}/{entry.path}") for entry in part.entries)
        return build(entries, pinned.to_context(), preserve_ownership=pinned.preserve_ownership)

    def prove(self, manifest: Manifest) -> None:
        """Prove every source with its own credential."""
        parts = self._parts(manifest)
        for folder, source in self._sources.items():
            with naming(folder):
                source.prove(parts[folder])

    @contextmanager
    def reader(self, manifest: Manifest) -> Iterator[Reader]:
        """A reader that asks the folder's own source; the connections to each are made on the first read."""
        with ExitStack() as opened:
            yield _SeveralReader(self._sources, self._parts(manifest), opened)

    def close(self) -> None:
        """Let go of all connections."""
        for source in self._sources.values():
            source.close()

    def _parts(self, manifest: Manifest) -> dict[str, Manifest]:
        if self._split is None or self._split[0] is not manifest:
            self._split = (manifest, _parts(manifest))
        return self._split[1]

    def _pinned(self) -> dict[str, CacheSpec]:
        found = {}
        for folder, source in self._sources.items():
            with naming(folder):
                found[folder] = source.pin()
        return found


class _SeveralReader:
    def __init__(self, sources: Mapping[str, Source], parts: Mapping[str, Manifest], opened: ExitStack) -> None:
        self._sources, self._parts, self._opened = sources, parts, opened
        self._readers: dict[str, Reader] = {}

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        folder = entry.path.partition("/")[0]
        with naming(folder):
            self._reader(folder).read_into(_below(entry), offset, buffer)

    def read_many(self, wanted: Wanted, turns: Turns) -> dict[Entry, OriginUnavailable]:
        """Each folder's in its turn, of the sources that can."""
        for folder, files in groupby(list(wanted), lambda file: file[0].path.partition("/")[0]):
            with naming(folder):
                reader = self._reader(folder)
                if isinstance(reader, ManyReader):
                    whole = {_below(entry): (entry, buffer) for entry, buffer in files}
                    left = [(entry, buffer) for entry, (_, buffer) in whole.items()]
                    in_vain = reader.read_many(left, turns)
                    read = whole.keys() - {entry for entry, _ in left}
                    wanted[:] = [file for file in wanted if _below(file[0]) not in read or not file[0].path.startswith(f"{folder}/")]
                    if in_vain:
                        return {whole[entry][0]: error for entry, error in in_vain.items()}
        return {}

    def _reader(self, folder: str) -> Reader:
        if folder not in self._readers:
            self._readers[folder] = self._opened.enter_context(self._sources[folder].reader(self._parts[folder]))
        return self._readers[folder]


def _below(entry: Entry) -> Entry:
    """The entry as its own source has it."""
    return replace(entry, path=entry.path.partition("/")[2])


def _parts(manifest: Manifest) -> dict[str, Manifest]:
    """The manifest of each source alone."""
    spec = parse(manifest.access).spec
    assert isinstance(spec.source, SeveralSpec)
    entries: dict[str, list[Entry]] = {folder: [] for folder, _ in spec.source.parts}
    for entry in manifest.entries:
        folder, _, path = entry.path.partition("/")
        if path:
            entries[folder].append(replace(entry, path=path))
    access = {folder: CacheSpec(source, spec.preserve_ownership).to_context() for folder, source in spec.source.parts}
    return {folder: Manifest(tuple(found), access[folder]) for folder, found in entries.items()}


def own_secrets(several: SeveralSpec, secrets: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What each folder's source has of a Secret whose keys are FOLDER.KEY. Raises InvalidParameter for a credential that is no source's, or none."""
    own = _shared_out([folder for folder, _ in several.parts], secrets)
    if secrets and not any(own.values()):
        folders = ", ".join(own)
        raise InvalidParameter(f"the Secret of this volume has no key of one of its sources; write FOLDER.KEY with one of the folders {folders}")
    return own


def _shared_out(folders: list[str], secrets: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Each folder's own keys, without the folder; a key goes to the longest folder that it begins with.

    Raises InvalidParameter for a credential of no folder: its source would be read as anybody.
    """
    own: dict[str, dict[str, str]] = {folder: {} for folder in folders}
    for key, value in secrets.items():
        folder = max((folder for folder in folders if key.startswith(f"{folder}.")), key=len, default="")
        name = key.removeprefix(f"{folder}.") if folder else key
        if name.rpartition(".")[2].lower() in _CREDENTIALS and (not folder or "." in name):
            raise InvalidParameter(
                f"the Secret's `{key}` is of no source of this volume; write FOLDER.KEY with one of the folders {', '.join(folders)}, or remove it"
            )
        if folder:
            own[folder][name] = value
    return own


@contextmanager
def naming(folder: str) -> Iterator[None]:
    """Errors of the source of `folder` name it."""
    try:
        yield
    except OriginThrottled as error:
        raise OriginThrottled(f"{folder}: {error}", error.retry_after) from error
    except DataCacheError as error:
        raise type(error)(f"{folder}: {error}") from error
