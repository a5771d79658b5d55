"""What is installed is what is in the tree, and what `make` installs is what the project says it needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import lab

PACKAGES = ("lab", "guest_agent", "ivshmem")
NOT_INSTALLED = ("ivshmem/core/", "ivshmem/shim/", "ivshmem/meson.build")


def files_of(top, package):
    paths = (path for path in (top / package).rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(top)) for path in paths}


def test_no_cache_of_a_run_in_the_tree_would_be_installed(repository):
    excluded = re.findall(r"'((?:\w+/)*__pycache__)'", (repository / "meson.build").read_text())
    for package in PACKAGES:
        for directory in {path.parent for path in (repository / package).rglob("*.py")}:
            where = str((directory / "__pycache__").relative_to(repository / package))
            assert where in excluded, f"meson.build does not exclude {where} of {package}"


def test_every_file_of_the_packages_is_installed(repository):
    installed = Path(lab.__file__).resolve().parent.parent
    if installed == repository:
        pytest.skip("the tree is tested, not what was installed: run `make unit`")
    for package in PACKAGES:
        wanted = {each for each in files_of(repository, package) if not each.startswith(NOT_INSTALLED)}
        found = files_of(installed, package)
        assert wanted <= found
        assert found - wanted <= {"ivshmem/lib/libivshmem.so", "ivshmem/lib/libhyperheap.so"}


def test_versions_agree(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    match = re.search(r"version: '([^']+)'", (repository / "meson.build").read_text())
    assert match is not None
    assert project["version"] == lab.__version__ == match.group(1)


def test_every_dependency_has_a_version_to_be_tested_with(repository):
    configuration = tomllib.loads((repository / "pyproject.toml").read_text())
    project = configuration["project"]
    wanted = [*configuration["build-system"]["requires"], *project["dependencies"]]
    wanted += project["optional-dependencies"]["dev"]
    pinned = set(
        re.findall(r"^([\w.-]+)==", (repository / ".ci" / "constraints.txt").read_text(), re.MULTILINE)
    )
    for requirement in wanted:
        name = re.split(r"[<>=\[]", requirement)[0]
        assert _canonical(name) in {_canonical(each) for each in pinned}


def _canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()
