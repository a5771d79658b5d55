# SPDX-License-Identifier: Apache-2.0
"""Links impaired, cut, recorded and published: between namespaces, then with guests."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import capture, link, netns, network, process
from lab.impairment import DIRECTIONS, FROM_GUEST, TO_GUEST, Impairment, LinkImpairment, parse
from lab.paths import LabPaths

from .conftest import REPOSITORY

NAME = f"e2e-{os.getpid()}l"


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Segment:
    """A lab's namespace with a bridge, and namespaces `a` and `b` on it as guests. The link is `a`'s."""

    def __init__(self):
        self.lab = LabPaths(NAME)
        self.bridge = network.bridge_name(NAME, "lan")
        self.place = link._Place(self.lab, "hhtap.0", self.bridge)
        netns.create(self.lab.netns)
        ip("-n", self.lab.netns, "link", "add", self.bridge, "type", "bridge")
        ip("-n", self.lab.netns, "link", "set", self.bridge, "up")
        for number, name in enumerate("ab"):
            guest = f"{NAME}-{name}"
            netns.create(guest)
            tap = f"hhtap.{number}"
            ip(
                "-n",
                self.lab.netns,
                "link",
                "add",
                tap,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                guest,
            )
            ip("-n", self.lab.netns, "link", "set", tap, "master", self.bridge, "up")
            ip("-n", guest, "address", "add", f"10.94.0.{number + 1}/24", "dev", "eth0")
            ip("-n", guest, "link", "set", "eth0", "up")

    def apply(self, by, *words, direction=DIRECTIONS):
        _, current = link._current(self.place)
        wanted = current.changed(parse(words), direction)
        link._write(self.place, by, wanted)
        if by == link.RELAY:
            link._apply_relay(self.place)
        else:
            link._apply_netem(self.place, wanted)

    def ping(self, count=5, patience=0.5):
        """How many of the datagrams came back, and the shortest round trip in ms (None without any)."""
        times = []
        with contextlib.ExitStack() as stack:
            a, b = (stack.enter_context(self._datagrams(name, patience)) for name in "ab")
            for number in range(count):
                begun = time.monotonic()
                a.sendto(bytes([number]), b.getsockname())
                with contextlib.suppress(TimeoutError):
                    b.sendto(b.recv(10), a.getsockname())
                    assert a.recv(10) == bytes([number]), "one comes back, and once"
                    times.append(1000 * (time.monotonic() - begun))
        return len(times), min(times, default=None)

    def _datagrams(self, name, patience):
        address = (f"10.94.0.{'ab'.index(name) + 1}", 0)
        handle = netns.call(
            Path("/run/netns") / f"{NAME}-{name}", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        )
        handle.bind(address)
        handle.settimeout(patience)
        return handle

    def send(self, size, source="a"):
        """Seconds that a TCP stream of so many bytes takes, its bytes checked."""
        to = "b" if source == "a" else "a"
        address = f"10.94.0.{'ab'.index(to) + 1}"
        listener = netns.call(Path("/run/netns") / f"{NAME}-{to}", lambda: socket.create_server((address, 0)))
        data = os.urandom(size)
        with listener:
            sender = netns.open_connection(
                Path("/run/netns") / f"{NAME}-{source}", address, listener.getsockname()[1], 10
            )
            receiver, _ = listener.accept()
            receiver.settimeout(30)
            with sender, receiver:
                begun = time.monotonic()
                pid = os.fork()
                if pid == 0:
                    sender.sendall(data)
                    os._exit(0)
                sender.close()
                heard = bytearray()
                while chunk := receiver.recv(1 << 20):
                    heard += chunk
                os.waitpid(pid, 0)
                assert heard == data
                return time.monotonic() - begun

    def close(self):
        process.kill(process.find(process.in_netns(self.lab.netns_file)))
        for name in (f"{NAME}-a", f"{NAME}-b", self.lab.netns):
            netns.remove(name)
        shutil.rmtree(self.lab.root, ignore_errors=True)


@pytest.fixture
def segment():
    made = Segment()
    yield made
    made.close()


def test_the_relay_delays_and_loses_and_goes(segment):
    assert segment.ping()[0] == 5
    segment.apply(link.RELAY, "delay=30ms")
    received, shortest = segment.ping()
    assert received == 5
    assert 60 <= shortest < 90
    assert link._current(segment.place) == ("relay", LinkImpairment(Impairment(0.03), Impairment(0.03)))
    relay = link._find_relay(segment.place)
    segment.apply(link.RELAY, "delay=0", "loss=100%", direction=[TO_GUEST])
    assert segment.ping(2)[0] == 0
    assert link._find_relay(segment.place) == relay, "changed, not started again"
    segment.apply(link.RELAY, "loss=0", direction=[TO_GUEST])
    assert 30 <= segment.ping()[1] < 55, "only what the guest sends is late"
    link._reset(segment.place)
    assert link._find_relay(segment.place) is None
    assert link._current(segment.place) == ("", LinkImpairment())
    assert segment.ping()[1] < 20
    links = json.loads(subprocess.check_output(["ip", "-n", segment.lab.netns, "-j", "link"]))
    assert {each["ifname"] for each in links} == {"lo", segment.bridge, "hhtap.0", "hhtap.1"}
    assert all("NOARP" not in each["flags"] for each in links)


def test_the_relay_passes_streams_on_whole(segment):
    """Large frames with unfinished checksums, both ways, and VLAN tags."""
    segment.apply(link.RELAY, "delay=1ms")
    assert segment.send(20 << 20, "a") < 20
    assert segment.send(20 << 20, "b") < 20


def test_the_relay_has_a_rate(segment):
    segment.apply(link.RELAY, "rate=8mbit")
    assert 0.8 < segment.send(1_000_000) < 3


def test_a_killed_relay_is_replaced_and_a_dead_one_reset(segment):
    segment.apply(link.RELAY, "delay=10ms")
    process.kill([link._find_relay(segment.place)])
    assert link._current(segment.place) == ("", LinkImpairment())
    assert segment.ping(2)[0] == 0
    segment.apply(link.RELAY, "delay=10ms")
    # Each has forgotten the other's hardware address, and asks for it once a second.
    assert segment.ping(3, patience=5)[0] == 3
    process.kill([link._find_relay(segment.place)])
    link._reset(segment.place)
    assert segment.ping(3, patience=5)[0] == 3


def test_a_relay_ends_with_its_tap(segment):
    segment.apply(link.RELAY, "delay=10ms")
    relay = link._find_relay(segment.place)
    ip("-n", segment.lab.netns, "link", "delete", "hhtap.0")
    deadline = time.monotonic() + 10
    while relay.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_kernels_way(segment, monkeypatch):
    """Both directions of netem's way. On a kernel without netem a token bucket takes its place, so that the
    redirection and the removal are tested everywhere.
    """
    has_netem = link.has_netem()
    if not has_netem:
        bucket = ["tbf", "rate", "8mbit", "burst", "64kbit", "latency", "100ms"]
        monkeypatch.setattr(Impairment, "qdisc", lambda self: bucket)
    segment.apply(link.NETEM, "rate=8mbit")
    assert link._current(segment.place)[0] == "netem"
    for source in "ab":
        assert 0.8 < segment.send(1_000_000, source) < 4
    if has_netem:
        segment.apply(link.NETEM, "rate=0", "delay=30ms")
        assert 60 <= segment.ping()[1] < 90
        segment.apply(link.NETEM, "delay=0", direction=[FROM_GUEST])
        assert 30 <= segment.ping()[1] < 60
    link._reset(segment.place)
    assert segment.send(1_000_000) < 0.5
    shown = subprocess.check_output(["ip", "netns", "exec", segment.lab.netns, "tc", "qdisc"], text=True)
    assert not re.search("tbf|netem|ingress", shown)
    assert segment.place.index_of(segment.place.redirected) is None


def test_a_capture_of_our_own(segment, tmp_path):
    """What `lab capture` writes where there is no tcpdump."""
    file = tmp_path / "own.pcap"
    code = (
        "import sys; from lab import capture; from lab.paths import LabPaths\n"
        "with open(sys.argv[1], 'wb') as sink:\n"
        "    print(capture.record(LabPaths(sys.argv[2]), 'hhtap.0', sink, None))\n"
    )
    argv = [sys.executable, "-c", code, str(file), NAME]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=REPOSITORY) as child:
        while not (file.exists() and file.stat().st_size):
            assert child.poll() is None
            time.sleep(0.02)
        answered = segment.ping(5)[0]
        child.send_signal(signal.SIGINT)
        written = int(child.stdout.read())
    frames = read_pcap(file.read_bytes())
    assert len(frames) == written
    datagrams = [frame for frame in frames if frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_UDP]
    assert answered == 5
    assert len(datagrams) == 10, "questions and answers"
    if capture.has_tcpdump():
        shown = subprocess.run(["tcpdump", "-n", "-r", str(file)], capture_output=True, text=True, check=True)
        assert shown.stdout.count("UDP, length 1") == 10


def read_pcap(data):
    """The frames of a pcap file."""
    magic, major, minor, _, _, _, kind = struct.unpack_from("=IHHiIII", data)
    assert (magic, major, minor, kind) == (0xA1B2C3D4, 2, 4, 1)
    frames, at = [], 24
    while at < len(data):
        _, _, length, whole = struct.unpack_from("=IIII", data, at)
        assert length == whole
        frames.append(data[at + 16 : at + 16 + length])
        at += 16 + length
    return frames


# --- with guests


def round_trip(lab, guest, to):
    """The shortest of three pings, in ms."""
    said = lab.run(guest, "ping", "-q", "-c", "3", "-i", "0.2", "-W", "5", to).stdout.decode()
    return float(re.search(r"= ([0-9.]+)/", said)[1])


@pytest.fixture
def mended(hello_lab):
    """hello_lab, with its links as they were after the test."""
    yield hello_lab
    for name in hello_lab.topology.guests:
        hello_lab.cli("link", "reset", f"{name}:lan")


def test_a_guests_link_is_impaired_and_reset(mended):
    before = round_trip(mended, "outsider", "client")
    done = mended.cli("link", "set", "outsider:lan", "delay=60ms", "rate=20mbit")
    assert done.returncode == 0, done.stderr.decode()
    assert b"outsider:lan: up, delay=60ms rate=20mbit each way" in done.stdout
    assert round_trip(mended, "outsider", "client") >= 120
    shown = json.loads(mended.cli("link", "show", "--json").stdout)
    found = {each["guest"]: each for each in shown}
    assert found["outsider"]["impairment"]["to_guest"]["rate"] == 20_000_000
    assert found["client"]["by"] == ""
    # `up` finds the lab as it is and leaves it so.
    assert not mended.up().changed
    assert mended.cli("link", "reset", "outsider:lan").returncode == 0
    assert round_trip(mended, "outsider", "client") < before + 60


def test_a_link_is_cut_and_mended(mended):
    assert mended.cli("link", "down", "outsider").returncode == 0
    assert mended.run("client", "ping", "-c1", "-W2", "outsider", check=False).code != 0
    assert [each.state for each in link.show(mended.topology)] == ["up", "up", "down"]
    assert mended.cli("link", "up", "outsider").returncode == 0
    assert mended.run("client", "ping", "-c3", "-W5", "outsider").code == 0
    kernel = mended.run("outsider", "dmesg").stdout.decode()
    carrier = mended.run("outsider", "cat", "/sys/class/net/eth0/carrier_down_count").stdout
    assert int(carrier) >= 1, kernel


def test_a_link_that_is_not_there(hello_lab):
    done = hello_lab.cli("link", "down", "client:wan")
    assert done.returncode == 2
    assert b"is not on network 'wan'; its links are client:lan" in done.stderr


def test_every_guest_resolves_every_name(hello_lab):
    for name in hello_lab.topology.guests:
        for other, guest in hello_lab.topology.guests.items():
            for word in (other, f"{other}.lan"):
                said = hello_lab.run(name, "getent", "ahostsv4", word).stdout.decode()
                assert said.split()[0] == str(guest.address)
        hello_lab.run(name, "getent", "hosts", "host.lan")


def test_guests_make_vlans_of_their_own(mended):
    """The bridge passes tagged frames on, and so does a link that is impaired."""
    for number, name in enumerate(("client", "outsider"), start=1):
        mended.run(name, "modprobe", "8021q")
        mended.run(name, "ip", "link", "add", "link", "eth0", "name", "eth0.5", "type", "vlan", "id", "5")
        mended.run(name, "ip", "address", "add", f"10.95.0.{number}/24", "dev", "eth0.5")
        mended.run(name, "ip", "link", "set", "eth0.5", "up")
    try:
        mended.run("client", "ping", "-c1", "-W5", "10.95.0.2")
        assert mended.cli("link", "set", "outsider", "delay=50ms").returncode == 0
        assert round_trip(mended, "client", "10.95.0.2") >= 100
    finally:
        for name in ("client", "outsider"):
            mended.run(name, "ip", "link", "delete", "eth0.5")


def test_forward(hello_lab):
    argv = [sys.executable, "-m", "lab", "forward", "-t", str(hello_lab.file), "--json", "server:22", "0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=REPOSITORY) as child:
        where = json.loads(child.stdout.readline())
        with socket.create_connection((where["address"], where["port"]), 20) as connection:
            assert connection.recv(100).startswith(b"SSH-2.0-")
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == 0


@pytest.mark.skipif(not capture.has_tcpdump(), reason="a filter needs tcpdump")
def test_capture_with_a_filter(hello_lab, tmp_path):
    file = tmp_path / "client.pcap"
    argv = [sys.executable, "-m", "lab", "capture", "-t", str(hello_lab.file), "client:lan"]
    with subprocess.Popen([*argv, "-w", str(file), "-c", "4", "icmp"], cwd=REPOSITORY) as child:
        while child.poll() is None:
            hello_lab.run("client", "ping", "-4", "-c2", "-W5", "server")
        assert child.returncode == 0
    frames = read_pcap(file.read_bytes())
    assert len(frames) == 4
    assert all(frame[23] == socket.IPPROTO_ICMP for frame in frames)
