from __future__ import annotations

import subprocess

import pytest

from ivshmem import artifacts
from lab import doctor
from lab.doctor import Level
from lab.progress import Progress
from lab.topology_file import parse_topology


def findings_about(subject, **options):
    found = doctor.examine(Progress.silent(), quick=True, **options)
    return [finding for finding in found if finding.subject == subject]


def test_every_package_that_doctor_names_is_installed_by_make(repository):
    wanted = (repository / ".ci" / "packages.txt").read_text().split()
    assert {*doctor.PROGRAMS.values(), "libvirt-daemon-system"} <= set(wanted)


def test_a_missing_program_comes_with_its_package(monkeypatch):
    monkeypatch.setattr(
        doctor, "find_program", lambda name: None if name in ("mke2fs", "ssh") else "/bin/true"
    )
    (finding,) = findings_about("programs")
    assert finding.level is Level.MISSING
    assert "mke2fs" in finding.text
    assert finding.cure is not None
    assert finding.cure.startswith("apt-get update && apt-get install --yes e2fsprogs")
    assert "openssh-client" in finding.cure


def test_without_root_that_is_what_is_missing(monkeypatch):
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 1000)
    (finding,) = findings_about("rights")
    assert (finding.level, finding.cure) == (Level.MISSING, "sudo lab doctor")


def test_the_device_alone_is_no_claim_of_kvm():
    for finding in findings_about("accelerator"):
        assert finding.level is not Level.OK


def test_a_lab_that_is_too_big_is_told(monkeypatch):
    monkeypatch.setattr(doctor, "_available_memory", lambda: 1 << 30)
    big = parse_topology(
        "name: big\nguests: {a: {memory: 512GiB}}\nheaps: {h: {size: 64GiB, members: a}}\n", "t"
    )
    texts = [finding.text for finding in findings_about("room", topology=big)]
    assert any("the heaps of lab big need 64GiB" in text for text in texts)
    assert any("lab big may use 576.0 GiB" in text for text in texts)


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    def broken():
        raise OSError("no such thing")

    monkeypatch.setattr(doctor.image, "find_all", broken)
    (finding,) = findings_about("image")
    assert finding.level is Level.ADVICE
    assert "no such thing" in finding.text


@pytest.mark.parametrize(
    ("library", "needed"),
    [
        (b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.9\0", (2, 34)),
        (b"\0GLIBC_PRIVATE\0", (0,)),
        (b"GLIBC_2.99 as a text\0", (0,)),
    ],
)
def test_needed_glibc(library, needed):
    assert doctor.needed_glibc(library) == needed


def test_needed_glibc_of_the_real_shim_is_what_objdump_says():
    try:
        shim = artifacts.shim_library()
    except artifacts.ArtifactMissing as error:
        pytest.skip(str(error))
    said = subprocess.run(["objdump", "-T", shim], capture_output=True, text=True, check=True).stdout
    versions = {tuple(map(int, word[6:].strip(")").split("."))) for word in _glibc_words(said)}
    assert doctor.needed_glibc(shim.read_bytes()) == max(versions)


def _glibc_words(text):
    return [word.strip("()") for word in text.split() if word.strip("()").startswith("GLIBC_2")]


def test_a_shim_that_is_too_new_is_told(monkeypatch, tmp_path):
    library = tmp_path / "libhyperheap.so"
    library.write_bytes(b"\0GLIBC_2.99\0")
    monkeypatch.setattr(artifacts, "core_library", lambda: library)
    monkeypatch.setattr(artifacts, "shim_library", lambda: library)
    (finding,) = findings_about("C parts")
    assert finding.level is Level.MISSING
    assert "glibc 2.99" in finding.text


def test_stale_labs_come_with_their_cure(monkeypatch, tmp_path):
    monkeypatch.setenv("HYPERHEAP_RUNTIME", str(tmp_path))
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 0)
    (tmp_path / "old").mkdir()
    stale = [finding for finding in findings_about("labs") if "lab old" in finding.text]
    assert [finding.cure for finding in stale] == ["lab down --lab old"]
