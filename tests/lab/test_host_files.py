"""What `lab` writes for a guest and for its daemon, and the paths where it does."""

from __future__ import annotations

import json

import pytest

from lab import daemon_process, tools_disk, uplink
from lab.paths import SOCKET_PATH_LIMIT, LabPaths
from lab.topology_file import load_topology, parse_topology


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
    lines = tools_disk.hosts_table(hello, hello.guest("client")).splitlines()
    for line in (
        "10.77.0.11 client client.lan",
        "fd77::12 server server.lan",
        "10.77.0.13 outsider outsider.lan",
        "10.77.0.1 host host.lan",
        "fd77::1 host host.lan",
    ):
        assert line in lines


@pytest.fixture
def routed():
    return parse_topology(
        "name: x\n"
        "networks:\n  lan: 10.1.0.0/24\n  out: {subnet: 10.2.0.0/24, uplink: nat}\n  back: 10.3.0.0/24\n"
        "guests:\n  a: {networks: [lan, out]}\n  b: {networks: [lan, back]}\n  c: {networks: [back]}\n",
        "t.yaml",
    )


def test_names_are_those_that_a_guest_can_reach(routed):
    table = tools_disk.hosts_table(routed, routed.guest("a"))
    assert "10.1.0.12 b b.lan\n" in table
    assert "b.back" not in table
    assert " c" not in table
    assert "10.1.0.1 host host.lan\n10.2.0.1 host host.out\n" in table
    described = json.loads(tools_disk.own_files(routed, routed.guest("a"))["guest.json"])
    assert described["hosts"] == {"a": ["10.1.0.11", "10.2.0.11"], "b": ["10.1.0.12"], "c": []}


def test_only_a_network_with_an_uplink_has_a_router(routed, monkeypatch):
    monkeypatch.setattr(uplink, "resolvers", lambda: "nameserver 192.0.2.53\n")
    files = tools_disk.own_files(routed, routed.guest("a"))
    lan, out = files["interfaces"].splitlines()
    assert lan.endswith(" 10.1.0.11/24")
    assert out.endswith(" 10.2.0.11/24 via=10.2.0.1")
    assert files["resolvers"] == "nameserver 192.0.2.53\n"
    others = tools_disk.own_files(routed, routed.guest("b"))
    assert "via=" not in others["interfaces"]
    assert others["resolvers"] == ""


def test_resolvers_of_the_host_alone_are_of_no_use(monkeypatch, tmp_path):
    stub, real = tmp_path / "stub", tmp_path / "real"
    monkeypatch.setattr(uplink, "_RESOLVERS", (stub, real))
    assert uplink.resolvers() == ""
    stub.write_text("# by systemd\nnameserver 127.0.0.53\nnameserver\nnameserver x\noptions edns0\n")
    real.write_text("nameserver 192.0.2.1\nnameserver ::1\nnameserver 192.0.2.2\n")
    assert uplink.resolvers() == "nameserver 192.0.2.1\nnameserver 192.0.2.2\n"


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
