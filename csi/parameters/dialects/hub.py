"""Repositories of model hubs: Hugging Face and ModelScope."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from csi.errors import InvalidParameter
from csi.parameters.dialects.keys import Dialect, Key, SecretKey, SourceSpec
from csi.parameters.dialects.mount_flags import refuse_mount_flags
from csi.values import join_list, redact, split_list

REPO_SOURCES = ("HuggingFace/Model", "HuggingFace/DataSet", "ModelScope/Model", "ModelScope/DataSet")
# The rules of huggingface_hub's validate_repo_id, and those of git for references (git-check-ref-format).
_REPO_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"(?!.*(\.\.|//|@\{))[^\x00-\x20~^:?*\[\\\x7f/][^\x00-\x20~^:?*\[\\\x7f]{0,254}")
_DEFAULT_REVISIONS = {"HuggingFace": "main", "ModelScope": "master"}


@dataclass(frozen=True)
class HubSpec(SourceSpec):
    """A repository of a model hub.

    `repo_source` is one of REPO_SOURCES, `repo_id` "org/name" or "name", `revision` a branch, tag or (pinned)
    commit. `allow_patterns` and `ignore_patterns` are shell patterns over repository paths, as in `hf
    download`; empty means that everything is allowed and nothing ignored.
    """

    repo_source: str
    repo_id: str
    revision: str = "main"
    allow_patterns: tuple[str, ...] = ()
    ignore_patterns: tuple[str, ...] = ()

    @property
    def hub(self) -> str:
        """The name of the hub, "HuggingFace" or "ModelScope"."""
        return self.repo_source.partition("/")[0]

    @property
    def display_name(self) -> str:
        return f"{self.origin_scope}@{self.revision}"

    @property
    def grants_whole_scope(self) -> bool:
        """True: hubs grant access by repository."""
        return True

    @property
    def origin_scope(self) -> str:
        """The repository, whatever its revision."""
        return f"{self.repo_source} {self.repo_id}"

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit; never for ModelScope, which lists no commits."""
        return not self.is_unpinnable and is_commit(self.revision)

    @property
    def is_unpinnable(self) -> bool:
        """Whether only the digests of the files identify the content (ModelScope)."""
        return self.hub == "ModelScope"

    @property
    def addresses(self) -> tuple[str, ...]:
        """Empty: the operator configures the hub's address."""
        return ()

    def to_context(self) -> dict[str, str]:
        context = {
            "type": "URL",
            "repoSource": self.repo_source,
            "repoId": self.repo_id,
            "revision": self.revision,
        }
        patterns = {"allowPatterns": self.allow_patterns, "ignorePatterns": self.ignore_patterns}
        return context | {key: join_list(value) for key, value in patterns.items() if value}


def is_commit(revision: str) -> bool:
    """Return whether `revision` is a full commit id (40 hex digits), which never moves."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def _parse_hub_source(values: Mapping[str, str], flags: Sequence[str]) -> HubSpec:
    refuse_mount_flags(flags, "a hub repository")
    repo_id = values.get("repoId", "")
    if not repo_id:
        raise InvalidParameter(
            "repoId is missing; give the repository as org/name (for plain files give url)"
        )
    if not _REPO_ID.fullmatch(repo_id):
        raise InvalidParameter(
            f"repoId is {redact(repo_id, 100)}; it is org/name of letters, digits, '-', '_' and '.'"
        )
    source = _parse_repo_source(values.get("repoSource", ""), values.get("type", ""))
    revision = values.get("revision", "") or _DEFAULT_REVISIONS[source.partition("/")[0]]
    if not _REVISION.fullmatch(revision):
        raise InvalidParameter(f"revision is {redact(revision, 100)}; it is a branch, tag or commit")
    patterns = {key: split_list(values.get(key, "")) for key in ("allowPatterns", "ignorePatterns")}
    return HubSpec(source, repo_id, revision, patterns["allowPatterns"], patterns["ignorePatterns"])


def _parse_repo_source(text: str, given_type: str) -> str:
    by_lower_case = {source.lower(): source for source in REPO_SOURCES}
    if not text:
        return "ModelScope/Model" if given_type.upper() == "MODELSCOPE" else REPO_SOURCES[0]
    hub = {"HUGGINGFACE": "huggingface/", "MODELSCOPE": "modelscope/"}.get(given_type.upper(), "")
    if text.lower() not in by_lower_case or not text.lower().startswith(hub):
        allowed = [source for source in REPO_SOURCES if source.lower().startswith(hub)]
        raise InvalidParameter(f"repoSource is {redact(text)}; it is one of {', '.join(allowed)}")
    return by_lower_case[text.lower()]


DIALECT = Dialect(
    "hub",
    "a hub repository",
    "A repository: Hugging Face or ModelScope",
    ("URL", "HUGGINGFACE", "MODELSCOPE"),
    (
        Key(
            "repoSource",
            f"which hub and kind of repository: {', '.join(f'`{source}`' for source in REPO_SOURCES)}",
            "`HuggingFace/Model`",
        ),
        Key("repoId", "the repository, `org/name`", is_required=True),
        Key(
            "revision",
            "branch, tag or commit; on Hugging Face pinned to the commit when the volume is created",
            "`main` (Hugging Face), `master` (ModelScope)",
        ),
        Key("allowPatterns", "shell patterns of files to keep, by commas or one a line", "all"),
        Key("ignorePatterns", "shell patterns of files to leave out", "none"),
    ),
    _parse_hub_source,
    (
        SecretKey("token", "the hub's token"),
        SecretKey("accessToken", "the same, as ECI spells it"),
        SecretKey("HF_TOKEN", "the same, as Hugging Face's tools spell it"),
        SecretKey("MODELSCOPE_API_TOKEN", "the same, as ModelScope's tools spell it"),
    ),
)
