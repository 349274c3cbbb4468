"""The checkout as it was before the last change of its programs or its chart."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.cluster.driver_image import DOCKERFILE, context

_CHART = "deploy/chart"
# Parts of the image that no program reads.
_WORDS = ("LICENSE", "README.md")


def earlier(tree: Path, folder: Path) -> str:
    """Write that checkout of `tree` to `folder`; its commit, in words.

    Without a commit before (no git, or a history that is cut off) it is the same checkout with another
    licence, which makes another image.
    """
    made_from = [str(path.relative_to(tree)) for path in (*context(tree), tree / DOCKERFILE, tree / _CHART)]
    commit = _before(tree, [name for name in made_from if name not in _WORDS])
    folder.mkdir()
    if commit:
        archive = subprocess.Popen([*_argv(tree), "archive", commit], stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", str(folder)], stdin=archive.stdout, check=True)
        assert archive.wait() == 0
        return f"commit {commit[:12]}"
    for name in made_from:
        copy = shutil.copytree if (tree / name).is_dir() else shutil.copy
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy(tree / name, folder / name)
    with (folder / "LICENSE").open("a") as changed:
        changed.write("\n")
    return (
        "this very checkout, with another licence: git knows no commit before the last change of the programs"
    )


def _before(tree: Path, made_from: list[str]) -> str:
    """The last commit that has something else there; empty for none."""
    if not _git(tree, "rev-parse", "HEAD"):
        return ""
    if _git(tree, "status", "--porcelain", "--", *made_from):
        return _git(tree, "rev-parse", "HEAD")
    last = _git(tree, "log", "-1", "--format=%H", "--", *made_from)
    return _git(tree, "rev-parse", "--verify", "--quiet", f"{last}^")


def _git(tree: Path, *words: str) -> str:
    return subprocess.run([*_argv(tree), *words], capture_output=True, text=True).stdout.strip()


def _argv(tree: Path) -> list[str]:
    # Whoever owns the checkout: root looks at it.
    return ["git", "-c", "safe.directory=*", "-C", str(tree)]
