"""ModelScope's hub on loopback, as its real client asks it: `with ModelScopeHub() as hub:
hub.repo("org/name", {...})`.

Paths and bodies are those of the SDK's legacy client (modelscope_hub 0.5: repo/files, repo/tree,
repo?FilePath=, revisions).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.origins.faults import Counters, Faults
from tests.origins.hub_api import signature
from tests.origins.listener import Handler, Listener
from tests.origins.repositories import Content, size_of

HUB_ADDRESS, STORE_ADDRESS = "127.0.0.1", "127.0.0.3"
# What `repo/files` tells of a folder at most.
LIMIT = 3000


@dataclass
class ModelScopeRepository:
    """Files of each revision by path.

    `readers` are the tokens that may see a private one, `unreadable` lists and sends no bytes.
    """

    kind: str
    id: str
    revisions: dict[str, dict[str, Content]]
    private: bool = False
    readers: set[str] = field(default_factory=set)
    unreadable: bool = False

    def update(self, files: Mapping[str, Content], revision: str = "master") -> None:
        """A new commit on a branch."""
        self.revisions[revision] = {**self.revisions[revision], **files}


class Refused(Exception):
    """An error answer: HTTP status and the body's Message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class HubHandler(Handler):
    """The hub's own host. Fault keys: "api/<kind>/<id>" for listings, "<id>/<path>" for files."""

    def answer(self) -> None:
        hub: ModelScopeHub = self.server.owner
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        parts = unquote(url.path).strip("/").split("/")
        try:
            if parts[:2] == ["api", "v1"] and len(parts) >= 5 and parts[2] in ("models", "datasets"):
                self._repository(
                    hub, parts[2].removesuffix("s"), "/".join(parts[3:5]), "/".join(parts[5:]), query
                )
            else:
                raise Refused(404, "page not found")
        except Refused as refused:
            self.send_json(
                {"Code": refused.status, "Message": refused.message, "Success": False, "Data": None},
                refused.status,
            )

    def _repository(self, hub: ModelScopeHub, kind: str, name: str, call: str, query: dict[str, str]) -> None:
        self.server.counters.asked(call or "info", "hub", self.headers.get("Authorization"))
        if call != "repo" and self.refused_on_purpose(f"api/{kind}/{name}"):
            return
        repository = self._seen(hub, kind, name)
        files = repository.revisions.get(query.get("Revision", "master"))
        if files is None:
            raise Refused(404, f"revision {query.get('Revision')} not found")
        if call == "repo":
            self._file(hub, repository, files, query["FilePath"])
        elif call in ("repo/files", "repo/tree"):
            self.send_data(self._listing(hub, kind, files, query))
        elif call == "revisions":
            names = [{"Revision": name} for name in repository.revisions]
            self.send_data({"RevisionMap": {"Branches": names, "Tags": []}})
        else:
            self.send_data(
                {
                    "Name": name.partition("/")[2],
                    "Path": name.partition("/")[0],
                    "Id": 1,
                    "IsPublic": not repository.private,
                }
            )

    def send_data(self, data: object) -> None:
        """A success as the hub wraps it."""
        self.send_json({"Code": 200, "Message": "success", "Success": True, "Data": data})

    def _seen(self, hub: ModelScopeHub, kind: str, name: str) -> ModelScopeRepository:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in hub.tokens:
            raise Refused(401, "invalid token")
        repository = hub.repositories.get((kind, name))
        if repository is None:
            raise Refused(404, "record not found")
        if repository.private and token not in repository.readers:
            raise Refused(403 if token else 401, "no permission")
        return repository

    def _listing(
        self, hub: ModelScopeHub, kind: str, files: Mapping[str, Content], query: dict[str, str]
    ) -> dict[str, Any]:
        rows = hub.rows(files, query.get("Root", "").strip("/"), query.get("Recursive", "").lower() == "true")
        if kind == "dataset":
            size, number = int(query.get("PageSize", "100")), int(query.get("PageNumber", "1"))
            return {"Files": rows[(number - 1) * size : number * size], "TotalCount": len(rows)}
        return {"Files": rows[: hub.limit]}

    def _file(
        self, hub: ModelScopeHub, repository: ModelScopeRepository, files: Mapping[str, Content], path: str
    ) -> None:
        key = f"{repository.id}/{path}"
        if path not in files:
            raise Refused(404, f"{path} not found")
        if repository.unreadable:
            raise Refused(403, "no permission to read files")
        if self.refused_on_purpose(key):
            return
        if size_of(files[path]) >= hub.redirect_over:
            self.send_small(b"", 302, {"Location": hub.signed(repository, path)})
        else:
            self.send_content(key, files[path], {})


class StoreHandler(Handler):
    """The host of large files, which knows no tokens but signatures in its addresses."""

    def answer(self) -> None:
        hub: ModelScopeHub = self.server.owner
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.server.counters.asked("store", "store", self.headers.get("Authorization"))
        kind, name, path = (unquote(part) for part in url.path.lstrip("/").split("/", 2))
        if (
            query.get("Signature") != signature(hub.signing_key, url.path, query["Expires"])
            or float(query["Expires"]) < time.time()
        ):
            self.server.counters.ended()
            self.send_json({"Code": "AccessDenied"}, 403)
        elif not self.refused_on_purpose(f"{name}/{path}"):
            files = hub.repositories[kind, name].revisions["master"]
            self.send_content(f"{name}/{path}", files[path], {})


class ModelScopeHub:
    """The hub (`endpoint`); files of `redirect_over` bytes and more come from a second host, or
    (`store_base`) from an nginx whose root holds org/name/... `limit` entries of a model are listed at
    once."""

    def __init__(
        self,
        *,
        redirect_over: int = 100_000,
        limit: int = LIMIT,
        store_base: str = "",
        addresses: tuple[str, str] = (HUB_ADDRESS, STORE_ADDRESS),
    ) -> None:
        self.repositories: dict[tuple[str, str], ModelScopeRepository] = {}
        self.tokens: set[str] = set()
        self.faults, self.counters = Faults(), Counters()
        self.redirect_over, self.limit, self.store_base, self.signing_key = (
            redirect_over,
            limit,
            store_base,
            b"first",
        )
        self._listeners: list[Listener] = []
        self._addresses, self._ports = addresses, (0, 0)
        self._digests: dict[int, tuple[Content, str]] = {}
        self._listed: tuple[Mapping[str, Content], str, bool, list[dict[str, Any]]] = ({}, "", False, [])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, if it does not yet; after a `stop`, on the same ports."""
        if not self._listeners:
            self._listeners = [
                Listener(
                    "hub", (self._addresses[0], self._ports[0]), HubHandler, self, self.faults, self.counters
                ),
                Listener(
                    "store",
                    (self._addresses[1], self._ports[1]),
                    StoreHandler,
                    self,
                    self.faults,
                    self.counters,
                ),
            ]
            self._ports = (self._listeners[0].port, self._listeners[1].port)

    def stop(self) -> None:
        """Refuse new connections and cut the open ones; repositories and counters stay."""
        for listener in self._listeners:
            listener.stop()
        self._listeners = []

    @property
    def endpoint(self) -> str:
        return f"http://{self._addresses[0]}:{self._ports[0]}"

    def repo(
        self,
        name: str,
        files: Mapping[str, Content],
        *,
        kind: str = "model",
        private: bool = False,
        tokens: Iterable[str] = (),
    ) -> ModelScopeRepository:
        """A new repository with one commit on master."""
        repository = ModelScopeRepository(kind, name, {"master": dict(files)}, private, set(tokens))
        self.repositories[kind, name] = repository
        self.tokens |= repository.readers
        return repository

    def expire_urls(self) -> None:
        """Every signed address given out so far is refused from now on."""
        self.signing_key += b"+"

    def signed(self, repository: ModelScopeRepository, path: str) -> str:
        """Where the bytes of a large file are."""
        if self.store_base:
            return f"{self.store_base}/{quote(repository.id)}/{quote(path)}"
        target = f"/{repository.kind}/{quote(repository.id, safe='')}/{quote(path)}"
        expires = f"{time.time() + 3600:.3f}"
        return f"http://{self._addresses[1]}:{self._ports[1]}{target}?Expires={expires}&Signature={signature(self.signing_key, target, expires)}"  # noqa: E501

    def rows(self, files: Mapping[str, Content], root: str, recursive: bool) -> list[dict[str, Any]]:
        """Entries below `root`: folders first, then files, as the hub lists them; made once for all pages."""
        known = self._listed
        if known[0] is not files or known[1:3] != (root, recursive):
            known = self._listed = (files, root, recursive, list(self._rows(files, root, recursive)))
        return known[3]

    def _rows(self, files: Mapping[str, Content], root: str, recursive: bool) -> Iterable[dict[str, Any]]:
        below = sorted(path for path in files if not root or path.startswith(root + "/"))
        start = len(root) + 1 if root else 0
        folders = {
            path[: at + start] for path in below for at, letter in enumerate(path[start:]) if letter == "/"
        }
        for folder in sorted(folders):
            if recursive or "/" not in folder[start:]:
                yield {
                    "Path": folder,
                    "Name": folder.rpartition("/")[2],
                    "Type": "tree",
                    "Size": 0,
                    "Sha256": "",
                    "Revision": "r1",
                }
        for path in below:
            if recursive or "/" not in path[start:]:
                facts = {"Size": size_of(files[path]), "Sha256": self._sha256(files[path])}
                yield {
                    "Path": path,
                    "Name": path.rpartition("/")[2],
                    "Type": "blob",
                    "Revision": "r1",
                    **facts,
                }

    def _sha256(self, content: Content) -> str:
        known = self._digests.get(id(content))
        if known is None or known[0] is not content:
            data = content.read_bytes() if isinstance(content, Path) else content
            assert isinstance(data, bytes)
            known = self._digests[id(content)] = (content, hashlib.sha256(data).hexdigest())
        return known[1]
