from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile

import pytest

from ivshmem import artifacts
from lab import bundle, driver


@pytest.fixture(autouse=True)
def built():
    try:
        artifacts.shim_library()
    except artifacts.ArtifactMissing as error:
        pytest.skip(str(error))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache without images, and so without drivers that are built."""
    monkeypatch.setenv("HYPERHEAP_CACHE", str(tmp_path / "cache"))


def names_of(file):
    with tarfile.open(file) as archive:
        return archive.getnames()


def test_the_same_installation_gives_the_same_bytes(tmp_path, cache):
    one = bundle.make(tmp_path / "one")
    other = bundle.make(tmp_path / "other")
    assert one.digest == other.digest
    first, second = (tmp_path / where / f"hyperheap-{one.digest}.tar" for where in ("one", "other"))
    assert first.read_bytes() == second.read_bytes()
    assert bundle.make(tmp_path / "one") == one
    assert len(list((tmp_path / "one").iterdir())) == 1


def test_what_is_in_it(tmp_path, cache):
    made = bundle.make(tmp_path, "/opt/elsewhere/")
    top = f"opt/elsewhere/releases/{made.digest}"
    names = names_of(made.file)
    for name in ("bin/lab-run", "lib/libhyperheap.so", "python/guest_agent/agent.py", "src/kmod/Kbuild"):
        assert f"{top}/{name}" in names
    assert all(name.startswith(f"{top}/") for name in names)
    assert names[-1] == f"{top}/src/kmod/hyperheap.c", "playbooks/agent.yml takes it for the last one"
    assert made.kernels == ()
    with tarfile.open(made.file) as archive:
        lab_run = archive.extractfile(f"{top}/bin/lab-run").read()
    assert b"/opt/elsewhere/current/lib/libhyperheap.so" in lab_run
    assert bundle.make(tmp_path, "/opt/other").digest != made.digest


def test_old_archives_go(tmp_path, cache):
    for number in range(6):
        (tmp_path / f"hyperheap-{number}.tar").touch()
        os.utime(tmp_path / f"hyperheap-{number}.tar", (number, number))
    made = bundle.make(tmp_path)
    kept = {path.name for path in tmp_path.glob("*.tar")}
    assert kept == {f"hyperheap-{name}.tar" for name in (made.digest, 5, 4, 3)}


def test_the_program(tmp_path, cache):
    argv = [sys.executable, "-m", "lab.bundle", "--prefix", "/opt/x", str(tmp_path)]
    told = json.loads(subprocess.run(argv, capture_output=True, check=True, timeout=30).stdout)
    assert told["driver_digest"] == driver.source_digest()
    assert names_of(told["file"])


@pytest.fixture
def release(tmp_path, cache):
    """An unpacked archive."""
    made = bundle.make(tmp_path, str(tmp_path / "prefix"))
    with tarfile.open(made.file) as archive:
        archive.extractall("/", filter="tar")
    return tmp_path / "prefix" / "releases" / made.digest


def load_driver(release, *, kernel, path):
    """load-driver --build-only on a machine with this kernel and these programs besides the usual ones."""
    path.mkdir(exist_ok=True)
    (path / "uname").write_text(f"#!/bin/sh\necho {kernel}\n")
    (path / "uname").chmod(0o755)
    environment = {"PATH": f"{path}:/usr/bin:/bin"}
    argv = [str(release / "bin" / "load-driver"), "--build-only"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment)


def test_a_driver_that_came_along_is_taken(release, tmp_path):
    done = load_driver(release, kernel="1.2.3-none", path=tmp_path / "bin")
    assert done.returncode == 3
    assert "install linux-headers-1.2.3-none" in done.stderr
    came = release / "drivers" / "1.2.3-none" / "hyperheap.ko"
    came.parent.mkdir(parents=True)
    came.write_bytes(b"driver")
    done = load_driver(release, kernel="1.2.3-none", path=tmp_path / "bin")
    assert done.returncode == 0, done.stderr
    module = tmp_path / "prefix" / "modules" / "1.2.3-none" / driver.source_digest() / "hyperheap.ko"
    assert done.stdout == f"copied {module}\n"
    assert module.read_bytes() == b"driver"
    assert load_driver(release, kernel="1.2.3-none", path=tmp_path / "bin").stdout == ""
