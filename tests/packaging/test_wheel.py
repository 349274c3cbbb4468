"""What `pip install .` installs: the wheel, built from a copy of the sources, and looked into."""

from __future__ import annotations

import configparser
import email
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from csi import __version__

ROOT = Path(__file__).parents[2]
PACKAGES = ("csi", "controller_plugin", "node_plugin", "datacache")
PROGRAMS = {"datacache-controller", "datacache-node", "datacache-operator", "datacache"}
INFO = f"datacache_csi-{__version__}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel; the checkout stays as it is, since the build writes beside the sources."""
    sources = tmp_path_factory.mktemp("sources")
    for name in (*PACKAGES, "tests/packaging", "docs"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources / name)
    made = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", made, sources]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (path,) = made.iterdir()
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    """What the wheel says of itself."""
    return email.message_from_bytes(wheel.read(f"{INFO}/METADATA"))


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_says_that_it_is_typed(wheel: zipfile.ZipFile, package: str) -> None:
    assert f"{package}/py.typed" in wheel.namelist()


def test_every_module_and_data_file_is_there(wheel: zipfile.ZipFile) -> None:
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for pattern in ("*.py", "*.pyi", "*.json", "py.typed")
        for path in (ROOT / package).rglob(pattern)
    }
    assert "datacache/cluster/crd_fields.json" in wanted
    assert wanted - set(wheel.namelist()) == set()


def test_nothing_but_the_packages_is_there(wheel: zipfile.ZipFile) -> None:
    assert {name.partition("/")[0] for name in wheel.namelist()} == {*PACKAGES, INFO}


def test_the_programs_are_entry_points_that_exist(wheel: zipfile.ZipFile) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(f"{INFO}/entry_points.txt").decode())
    scripts = dict(parser["console_scripts"])
    assert set(scripts) == PROGRAMS
    modules = {target.partition(":")[0].replace(".", "/") + ".py" for target in scripts.values()}
    assert modules - set(wheel.namelist()) == set()


def test_the_licence_is_in_the_wheel(wheel: zipfile.ZipFile, metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert wheel.read(f"{INFO}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_the_urls_name_home_documentation_source_issues_and_changes(metadata: Message) -> None:
    urls = dict(re.split(r",\s*", url, maxsplit=1) for url in metadata.get_all("Project-URL", []))
    assert set(urls) == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    assert [url for url in urls.values() if not url.startswith("https://")] == []


def test_the_classifiers_say_for_whom_and_where_it_is(metadata: Message) -> None:
    classifiers = metadata.get_all("Classifier", [])
    versions = [name.rpartition(" :: ")[2] for name in classifiers if re.search(r"Python :: 3\.\d+$", name)]
    assert versions == ["3.11", "3.12", "3.13"]
    for wanted in ("Development Status", "Intended Audience", "Operating System :: POSIX :: Linux", "Topic"):
        assert [name for name in classifiers if name.startswith(wanted)], wanted
    assert "Typing :: Typed" in classifiers
    assert metadata["Requires-Python"] == ">=3.11"
