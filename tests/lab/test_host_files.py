"""What `lab` writes for a guest and for its daemon, and the paths where it does."""

from __future__ import annotations

import json

import pytest

from lab import daemon_process, tools_disk
from lab.paths import SOCKET_PATH_LIMIT, LabPaths
from lab.topology_file import load_topology


@pytest.fixture
def hello(repository):
    return load_topology(repository / "examples" / "hello.yaml")


def test_own_files_of_a_guest(hello):
    files = tools_disk.own_files(hello, hello.guest("client"))
    mac = hello.guest("client").interfaces[0].mac
    assert files["interfaces"] == f"{mac} 10.77.0.11/24 fd77::11/64\n"
    assert files["hostname"] == "client\n"
    described = json.loads(files["guest.json"])
    assert described["heaps"] == ["shared"]
    assert described["interfaces"] == [{"mac": mac, "addresses": ["10.77.0.11/24", "fd77::11/64"]}]
    assert described["hosts"]["server"] == ["10.77.0.12", "fd77::12"]


def test_hosts_table_names_every_guest_and_the_host(hello):
    lines = tools_disk.hosts_table(hello).splitlines()
    for line in (
        "10.77.0.11 client",
        "fd77::12 server",
        "10.77.0.13 outsider",
        "10.77.0.1 host",
        "fd77::1 host",
    ):
        assert line in lines


def test_daemon_file_is_what_the_daemon_reads(hello, tmp_path):
    daemon_file = pytest.importorskip("lab.daemon_file")
    path = tmp_path / "daemon.json"
    path.write_text(json.dumps(daemon_process.describe(hello)))
    read = daemon_file.read(path)
    assert [heap.name for heap in read.heaps] == ["shared"]
    assert read.heaps[0].members == ("client", "server")
    assert str(read.guests[0].port) == "/run/hyperheap/hello/guests/client/registry.sock"


def test_sockets_fit_whatever_the_names():
    lab = LabPaths("l" * 24)
    guest = lab.guest("g" * 32)
    for path in (guest.registry_socket, guest.console_socket, lab.heap_socket("h" * 24), lab.libvirt_socket):
        assert len(str(path)) < SOCKET_PATH_LIMIT


def test_roots_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("HYPERHEAP_RUNTIME", str(tmp_path))
    assert LabPaths("x").daemon_socket == tmp_path / "x" / "daemon.sock"
