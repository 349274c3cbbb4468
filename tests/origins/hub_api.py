"""What a hub answers: repositories' facts, their trees, their files, redirects of large files to signed
addresses."""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from tests.origins.listener import Handler
from tests.origins.repositories import Commit, Repository, StoredFile

if TYPE_CHECKING:
    from tests.origins.hub import Hub

PAGE, EXPANDED_PAGE = 1000, 50
_API = re.compile(
    r"/api/(?P<kind>model|dataset)s/(?P<id>.+?)(?:/(?P<call>revision|tree|auth-check|refs)(?:/(?P<rest>.*))?)?$"
)
_RESOLVE = re.compile(r"/(?P<dataset>datasets/)?(?P<id>.+?)/resolve/(?P<rev>[^/]+)/(?P<path>.+)$")
_CACHED = re.compile(
    r"/api/resolve-cache/(?P<kind>model|dataset)s/(?P<id>.+?)/(?P<rev>[0-9a-f]{40})/(?P<path>.+)$"
)


class Refused(Exception):
    """An error answer: status, X-Error-Code (may be empty) and X-Error-Message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class HubHandler(Handler):
    """The hub's own host."""

    def answer(self) -> None:
        hub: Hub = self.server.owner
        url = urlsplit(self.path)
        try:
            self._route(hub, url.path, {k: v[-1] for k, v in parse_qs(url.query).items()})
        except Refused as refused:
            headers = {"X-Error-Message": refused.message} | (
                {"X-Error-Code": refused.code} if refused.code else {}
            )
            self.send_json({"error": refused.message}, refused.status, headers)

    def _route(self, hub: Hub, path: str, query: dict[str, str]) -> None:
        if match := _CACHED.match(path):
            self._file(
                hub, match["kind"], unquote(match["id"]), match["rev"], unquote(match["path"]), near=True
            )
        elif match := _API.match(path):
            self._api(
                hub, match["kind"], unquote(match["id"]), match["call"] or "", match["rest"] or "", query
            )
        elif match := _RESOLVE.match(path):
            kind = "dataset" if match["dataset"] else "model"
            self._file(
                hub,
                kind,
                unquote(match["id"]),
                unquote(match["rev"]),
                unquote(match["path"]),
                near=not hub.relative_redirects,
            )
        elif path == "/api/whoami-v2":
            self._asked("whoami")
            user = self._user(hub)
            if user is None:
                raise Refused(401, "", "Invalid username or password.")
            self.send_json(
                {"type": "user", "name": user, "fullname": user, "orgs": [], "auth": {"type": "access_token"}}
            )
        else:
            self._asked("other")
            raise Refused(404, "", "Not Found")

    def _asked(self, kind: str) -> None:
        self.server.counters.asked(kind, "hub", self.headers.get("Authorization"))

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _user(self, hub: Hub) -> str | None:
        """Who asks; None for nobody. A token that is not known is refused wherever it appears."""
        token = self._token()
        if token and token not in hub.tokens:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return hub.tokens.get(token)

    def _repository(self, hub: Hub, kind: str, name: str) -> Repository:
        user = self._user(hub)
        repository = hub.repositories.get((kind, name))
        if repository is None or (repository.private and self._token() not in repository.readers):
            raise Refused(401 if user is None else 404, "RepoNotFound", "Repository not found")
        return repository

    def _commit(self, repository: Repository, revision: str) -> Commit:
        commit = repository.at(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _admit(self, repository: Repository) -> None:
        """Raise unless who asks may read files here; a gated repository lists for everyone."""
        if repository.gated and self._token() not in repository.granted:
            known = bool(self._token())
            raise Refused(
                403 if known else 401,
                "GatedRepo",
                f"Access to {repository.kind} {repository.id} is restricted.",
            )

    def _api(self, hub: Hub, kind: str, name: str, call: str, rest: str, query: dict[str, str]) -> None:
        blobs = query.get("blobs", "").lower() == "true"
        what = {"": "info", "revision": "info"}.get(call, call) + ("-with-blobs" if blobs else "")
        self._asked(what)
        if self.refused_on_purpose(f"api/{what}/{name}"):
            return
        repository = self._repository(hub, kind, name)
        if call == "auth-check":
            self._admit(repository)
            self.send_json({})
        elif call == "refs":
            self.send_json(
                {
                    "branches": _refs("heads", repository.branches),
                    "tags": _refs("tags", repository.tags),
                    "converts": [],
                }
            )
        elif call == "tree":
            revision, _, folder = rest.partition("/")
            self._tree(
                hub, repository, self._commit(repository, unquote(revision)), revision, unquote(folder), query
            )
        else:
            self.send_json(_info(repository, self._commit(repository, unquote(rest) or "main"), blobs))

    def _tree(
        self,
        hub: Hub,
        repository: Repository,
        commit: Commit,
        revision: str,
        folder: str,
        query: dict[str, str],
    ) -> None:
        rows = _all_rows(
            commit, repository.xet, folder.strip("/"), query.get("recursive", "").lower() == "true"
        )
        if folder and not rows:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        most = min(hub.page, EXPANDED_PAGE) if query.get("expand", "").lower() == "true" else hub.page
        start = int(query.get("cursor", "0"))
        headers = {"X-Repo-Commit": commit.sha}
        if start + most < len(rows):
            more = urlencode({**query, "cursor": str(start + most)})
            headers["Link"] = f'<{hub.endpoint}{urlsplit(self.path).path}?{more}>; rel="next"'
        self.send_json(rows[start : start + most], headers=headers)

    def _file(self, hub: Hub, kind: str, name: str, revision: str, path: str, near: bool) -> None:
        self._asked("resolve")
        key = f"{name}/{path}"
        if self.refused_on_purpose(key):
            return
        repository = self._repository(hub, kind, name)
        self._admit(repository)
        commit = self._commit(repository, revision)
        file = commit.files.get(path)
        headers = {"X-Repo-Commit": commit.sha}
        if file is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        if file.sha256 and hub.redirects:
            self._redirect_to_cdn(hub, repository, path, file, headers)
        elif near:
            self.send_content(key, file.content, {**headers, "ETag": f'"{file.etag}"'})
        else:
            target = f"/api/resolve-cache/{kind}s/{repository.id}/{commit.sha}/{quote(path)}"
            linked = {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.etag}"'}
            self.send_small(b"", 307, {**headers, **linked, "Location": target, "ETag": f'"{file.etag}"'})

    def _redirect_to_cdn(
        self, hub: Hub, repository: Repository, path: str, file: StoredFile, headers: dict[str, str]
    ) -> None:
        location = hub.signed(repository, path, file.sha256)
        linked = {
            "X-Linked-Size": str(file.size),
            "X-Linked-ETag": f'"{file.sha256}"',
            "ETag": f'"{file.sha256}"',
            "Location": location,
        }
        if repository.xet:
            token = f"{hub.endpoint}/api/{repository.kind}s/{repository.id}/xet-read-token/{headers['X-Repo-Commit']}"  # noqa: E501
            linked |= {
                "X-Xet-Hash": file.xet_hash,
                "X-Xet-Refresh-Route": token,
                "Link": f'<{token}>; rel="xet-auth"',
            }
        self.send_small(
            f"Found. Redirecting to {location}".encode(), 302, {**headers, **linked, "Accept-Ranges": "bytes"}
        )


class CdnHandler(Handler):
    """The other host: files by a signed address that ends at a given time, and nothing else."""

    def answer(self) -> None:
        hub: Hub = self.server.owner
        url = urlsplit(self.path)
        self.server.counters.asked("cdn", "cdn", self.headers.get("Authorization"))
        query = {k: v[-1] for k, v in parse_qs(url.query).items()}
        kind, name, path = (unquote(part) for part in url.path[1:].split("/", 2))
        repository = hub.repositories.get((kind, name))
        key = f"{name}/{path}"
        if self.refused_on_purpose(key):
            return
        fits = hmac.compare_digest(
            query.get("Signature", ""), signature(hub.signing_key, url.path, query.get("Expires", ""))
        )
        if repository is None or not fits or float(query["Expires"]) < time.time():
            self.server.counters.ended()
            self.send_small(
                b"<Error><Code>AccessDenied</Code></Error>", 403, {"Content-Type": "application/xml"}
            )
            return
        file = next(
            c.files[path]
            for c in repository.commits.values()
            if path in c.files and c.files[path].sha256 == query["Content"]
        )
        self.send_content(key, file.content, {"ETag": f'"{file.sha256[:32]}"'})


def signature(key: bytes, path: str, expires: str) -> str:
    return hmac.new(key, f"{path} {expires}".encode(), hashlib.sha256).hexdigest()


def _refs(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in names.items()]


def _info(repository: Repository, commit: Commit, blobs: bool) -> dict[str, Any]:
    moment = "2024-01-01T00:00:00.000Z"
    siblings = [{"rfilename": path, **(_blob(file) if blobs else {})} for path, file in commit.files.items()]
    facts = {
        "_id": commit.sha[:24],
        "id": repository.id,
        "sha": commit.sha,
        "private": repository.private,
        "siblings": siblings,
    }
    gated = "auto" if repository.gated else False
    more: dict[str, Any] = {
        "gated": gated,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "lastModified": moment,
        "createdAt": moment,
    }
    return {**facts, **more, **({"modelId": repository.id} if repository.kind == "model" else {})}


def _blob(file: StoredFile) -> dict[str, Any]:
    lfs = (
        {"lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}}
        if file.sha256
        else {}
    )
    return {"size": file.size, "blobId": file.oid, **lfs}


@functools.lru_cache(maxsize=2)
def _all_rows(commit: Commit, xet: bool, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """The rows of every page, made once: a tree of 100,000 files has 100 pages."""
    return list(_rows(commit, xet, folder, recursive))


def _rows(commit: Commit, xet: bool, folder: str, recursive: bool) -> Iterator[dict[str, Any]]:
    """The entries below `folder`, folders before what they hold."""
    seen: set[str] = set()
    prefix = f"{folder}/" if folder else ""
    for path, file in sorted(commit.files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        parents = [prefix + "/".join(parts[:n]) for n in range(1, len(parts))]
        for parent in parents if recursive else parents[:1]:
            if parent not in seen:
                seen.add(parent)
                yield {
                    "type": "directory",
                    "oid": hashlib.sha1(f"{commit.sha} {parent}".encode()).hexdigest(),
                    "size": 0,
                    "path": parent,
                }
        if recursive or not parents:
            yield _row(path, file, xet)


def _row(path: str, file: StoredFile, xet: bool) -> dict[str, Any]:
    lfs = (
        {"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}}
        if file.sha256
        else {}
    )
    stored = {"xetHash": file.xet_hash} if xet and file.sha256 else {}
    return {"type": "file", "oid": file.oid, "size": file.size, "path": path, **lfs, **stored}
