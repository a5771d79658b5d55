# SPDX-License-Identifier: Apache-2.0
"""The way out of a lab, between namespaces that play its host, the world and its guests."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from lab import netns, network, paths, process, uplink
from lab.errors import UserError
from lab.guest import open_session, run_in
from lab.paths import LabPaths
from lab.topology_file import parse_topology

from .conftest import look_at_host, run_cli, write_topology

NAME = f"e2e-{os.getpid()}u"
TOPOLOGY = """
name: {name}
networks:
  out: {subnet: 10.93.1.0/24, uplink: nat}
  shut: {subnet: 10.93.2.0/24}
guests: [one]
"""
WORLD_ADDRESS = "203.0.113.9"


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Stage:
    """Namespaces: `host` with the labs' uplinks, `world` behind it, and the labs' own with a guest each."""

    def __init__(self, stack):
        self.stack = stack
        self.host = self.namespace("host")
        self.world = self.namespace("world")
        self.join(self.host, "eth0", "192.0.2.1/24", self.world, "eth0", "192.0.2.2/24")
        ip("-n", self.world, "address", "add", f"{WORLD_ADDRESS}/32", "dev", "lo")
        ip("-n", self.host, "route", "add", "default", "via", "192.0.2.2")
        # The world does not know the way back to any lab: only translated addresses get answers.

    def namespace(self, name):
        full = f"{NAME}-{name}"
        netns.create(full)
        self.stack.callback(netns.remove, full)
        return full

    def join(self, one, device, address, other, other_device, other_address):
        ip("-n", one, "link", "add", device, "type", "veth", "peer", "name", other_device, "netns", other)
        for where, what, has in ((one, device, address), (other, other_device, other_address)):
            if has:
                ip("-n", where, "address", "add", has, "dev", what)
            ip("-n", where, "link", "set", what, "up")

    def lab(self, suffix):
        """A lab's namespace with its bridges, as libvirt makes them, and a guest on each network."""
        topology = parse_topology(TOPOLOGY.replace("{name}", f"{NAME}{suffix}"), "t.yaml")
        lab = LabPaths(topology.name)
        netns.create(lab.netns)
        self.stack.callback(self.on_host, lambda: (netns.remove(lab.netns), uplink.remove(lab)))
        for each in topology.networks.values():
            bridge = network.bridge_name(topology.name, each.name)
            ip("-n", lab.netns, "link", "add", bridge, "type", "bridge")
            ip("-n", lab.netns, "address", "add", f"{each.host_address}/24", "dev", bridge)
            ip("-n", lab.netns, "link", "set", bridge, "up")
            guest = self.namespace(f"{suffix}-{each.name}")
            self.join(lab.netns, f"tap-{each.name}", "", guest, "eth0", f"{each.subnet[11]}/24")
            ip("-n", lab.netns, "link", "set", f"tap-{each.name}", "master", bridge)
            ip("-n", guest, "route", "add", "default", "via", str(each.host_address))
        return topology

    def on_host(self, function):
        return netns.call(Path("/run/netns") / self.host, function)

    def reaches(self, namespace, address, port, timeout=0.5):
        """The address under which the other side saw us, or None."""
        file = Path("/run/netns") / f"{NAME}-{namespace}"
        try:
            with netns.open_connection(file, address, port, timeout) as connection:
                return connection.recv(100).decode()
        except OSError:
            return None

    def host_state(self):
        def look():
            tables = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
            rules = [
                line for line in tables.splitlines() if line.startswith(("-", ":")) and "ACCEPT [" not in line
            ]
            links = [line.split()[0] for line in Path("/proc/thread-self/net/dev").read_text().splitlines()]
            conf = Path("/proc/sys/net/ipv4/conf")
            switches = {entry.name: (entry / "forwarding").read_text() for entry in conf.iterdir()}
            return rules, links, switches

        return *self.on_host(look), sorted(map(str, paths.runtime_root().glob("forwarding-*")))


@pytest.fixture
def stage():
    with contextlib.ExitStack() as stack:
        yield Stage(stack)


@pytest.fixture
def world_port(stage):
    """A server in the world that tells each client its address."""
    server = netns.call(Path("/run/netns") / stage.world, lambda: socket.create_server((WORLD_ADDRESS, 0)))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, peer = server.accept()
                with connection:
                    connection.sendall(peer[0].encode())

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def test_only_networks_with_an_uplink_get_out(stage, world_port):
    before = stage.host_state()
    topology = stage.lab("a")
    lab = LabPaths(topology.name)
    assert stage.reaches("a-out", WORLD_ADDRESS, world_port) is None
    stage.on_host(lambda: uplink.ensure(topology))
    assert stage.reaches("a-out", WORLD_ADDRESS, world_port) == "192.0.2.1", "as the host, not as itself"
    assert stage.reaches("a-shut", WORLD_ADDRESS, world_port) is None
    # Again, as after an interrupted `up`.
    stage.on_host(lambda: uplink.ensure(topology))
    assert stage.reaches("a-out", WORLD_ADDRESS, world_port) == "192.0.2.1"
    assert stage.on_host(lambda: netns.remove(lab.netns) and uplink.remove(lab))
    assert stage.host_state() == before
    assert not stage.on_host(lambda: uplink.remove(lab))


def test_networks_do_not_reach_each_other(stage):
    topology = stage.lab("a")
    for ensure in (topology, _without_uplinks(topology)):
        stage.on_host(lambda ensure=ensure: uplink.ensure(ensure))
        server = netns.call(
            Path("/run/netns") / f"{NAME}-a-shut", lambda: socket.create_server(("10.93.2.11", 0))
        )
        with server:
            assert stage.reaches("a-out", "10.93.2.11", server.getsockname()[1]) is None


def _without_uplinks(topology):
    networks = {name: each.model_copy(update={"uplink": "none"}) for name, each in topology.networks.items()}
    return topology.model_copy(update={"networks": networks})


def test_labs_of_equal_subnets_share_a_host(stage, world_port):
    before = stage.host_state()
    one, two = stage.lab("a"), stage.lab("b")
    for topology in (one, two):
        stage.on_host(lambda topology=topology: uplink.ensure(topology))
    assert stage.reaches("a-out", WORLD_ADDRESS, world_port) == "192.0.2.1"
    assert stage.reaches("b-out", WORLD_ADDRESS, world_port) == "192.0.2.1"
    # The namespace is killed first, by whomever: `down` still finds what is left on the host.
    netns.remove(LabPaths(one.name).netns)
    stage.on_host(lambda: uplink.remove(LabPaths(one.name)))
    assert stage.reaches("b-out", WORLD_ADDRESS, world_port) == "192.0.2.1"
    netns.remove(LabPaths(two.name).netns)
    assert stage.on_host(lambda: uplink.remove(LabPaths(two.name)))
    assert stage.host_state() == before


def test_the_host_passes_on_nothing_else(stage, world_port):
    """Its forwarding was off: what was not routed before is not routed now."""
    other = stage.namespace("other")
    stage.join(stage.host, "eth1", "198.51.100.1/24", other, "eth0", "198.51.100.2/24")
    ip("-n", other, "route", "add", "default", "via", "198.51.100.1")
    ip("-n", stage.world, "route", "add", "198.51.100.0/24", "via", "192.0.2.1")
    topology = stage.lab("a")
    stage.on_host(lambda: uplink.ensure(topology))
    assert stage.reaches("a-out", WORLD_ADDRESS, world_port) == "192.0.2.1"
    assert stage.reaches("other", WORLD_ADDRESS, world_port) is None
    transit = stage.on_host(
        lambda: subprocess.run(["ip", "-4", "-br", "a"], capture_output=True, text=True).stdout
    )
    inside = next(line for line in transit.splitlines() if line.startswith("hhu")).split()[2]
    ip(
        "-n",
        other,
        "route",
        "replace",
        inside.split("/")[0].rpartition(".")[0] + ".0/24",
        "via",
        "198.51.100.1",
    )
    assert stage.reaches("other", str(topology.networks["out"].host_address), 1) is None


def test_forwarding_that_somebody_else_wants_stays(stage, world_port):
    stage.on_host(lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("0\n"))
    topology = stage.lab("a")
    stage.on_host(lambda: uplink.ensure(topology))
    stage.on_host(lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n"))
    netns.remove(LabPaths(topology.name).netns)
    stage.on_host(lambda: uplink.remove(LabPaths(topology.name)))
    switch = stage.on_host(lambda: Path("/proc/sys/net/ipv4/conf/eth0/forwarding").read_text())
    assert switch == "1\n"


def test_an_existing_libvirt_has_no_uplinks(stage):
    topology = stage.lab("a")
    with pytest.raises(UserError, match="uplink"):
        uplink.ensure(topology, "qemu:///system")
    uplink.ensure(_without_uplinks(topology), "qemu:///system")


GUEST_TOPOLOGY = """
name: {name}
networks:
  lan: {subnet: 10.96.0.0/24, mtu: 9000}
  out: {subnet: 10.96.1.0/24, uplink: nat}
guests:
  one: {memory: 256MiB}
"""
ASK = """import socket, sys
print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 10).recv(99).decode())
"""


def test_a_guest_gets_out(stage, world_port, repository, tmp_path):
    """A real guest, on networks with an MTU and with an uplink, whose lab is killed."""
    image = re.search(
        r"^image:\n(?:  .*\n)+", (repository / "examples" / "hello.yaml").read_text(), flags=re.M
    )
    topology, file = write_topology(tmp_path, GUEST_TOPOLOGY + image[0], "g")
    lab = LabPaths(topology.name)
    before, host_before = look_at_host(topology.name), stage.host_state()
    try:
        up = stage.on_host(lambda: run_cli("up", str(file)))
        assert up.returncode == 0, up.stderr.decode()
        with open_session(topology, "one") as session:

            def run(*argv):
                return run_in(session, argv).stdout.decode().strip()

            assert run("python3", "-c", ASK, WORLD_ADDRESS, str(world_port)) == "192.0.2.1"
            assert run("cat", "/sys/class/net/eth0/mtu", "/sys/class/net/eth1/mtu") == "9000\n1500"
            assert run("ping", "-c1", "-W5", "-M", "do", "-s", "8972", "host.lan").count("1 received") == 1
            assert run("getent", "ahostsv4", "one.out").split()[0] == "10.96.1.11"
        for root in (lab.root, lab.disks):
            process.kill(process.find(process.works_in(root, ("libvirtd", "qemu", "python"))))
    finally:
        down = stage.on_host(lambda: run_cli("down", str(file)))
    assert down.returncode == 0, down.stderr.decode()
    assert stage.host_state() == host_before
    assert look_at_host(topology.name) == before
