# SPDX-License-Identifier: Apache-2.0
"""Unmodified programs between real guests: the path, every byte, and what happens when things die."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from lab import process
from lab.guest import Completed

from .conftest import RunningLab

STREAM = Path(__file__).with_name("stream.py").read_bytes()
MIB = 1 << 20
_ports = itertools.count(6001)


@pytest.fixture(scope="module")
def lab(hello_lab: RunningLab) -> RunningLab:
    for name in ("client", "server", "outsider"):
        hello_lab.run(name, "tee", "/root/stream.py", stdin=STREAM)
    return hello_lab


class Stream:
    """A server and a client program on one port, and what each reported."""

    def __init__(
        self, lab: RunningLab, server: str, serve: str, client: str, connect: str, shim: bool = True
    ) -> None:
        self.lab, self.port = lab, next(_ports)
        self.guests = {"server": server, "client": client}
        prefix = ["lab-run"] if shim else []
        program = [*prefix, "python3", "/root/stream.py"]
        self._ends: dict[str, Future[Completed]] = {}
        self._ends["server"] = lab.start(server, *program, "serve", str(self.port), *serve.split())
        self._wait(lambda: lab.run(server, "ss", "-Hltn", f"sport = :{self.port}").stdout.strip())
        address = str(lab.topology.guest(server).address)
        self._ends["client"] = lab.start(
            client, *program, "connect", address, str(self.port), *connect.split()
        )

    def _wait(self, condition: Any, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"port {self.port}: waited {seconds} s in vain; {self.row()}"
            time.sleep(0.1)

    def row(self) -> dict[str, Any] | None:
        """What the registry has of this connection."""
        rows = [row for row in self.lab.sockets() if row["server"]["port"] == self.port]
        return rows[-1] if rows else None

    def shared(self) -> int:
        row = self.row()
        return row["to_server"]["shared"] + row["to_client"]["shared"] if row else 0

    def wait_shared(self) -> None:
        """Until the registry knows of bytes in shared memory."""
        self._wait(lambda: self.shared() > 0)

    def wait_ended(self) -> dict[str, Any]:
        """Until the registry has the final counters of the connection."""
        self._wait(lambda: (row := self.row()) and row["ended"] is not None)
        row = self.row()
        assert row is not None
        return row

    def report(self, end: str, seconds: float = 120) -> dict[str, Any]:
        done = self._ends[end].result(seconds)
        assert done.code == 0, f"{end}: {done.stdout!r} {done.stderr!r}"
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def reports(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.report("server"), self.report("client")


def kill_agents(lab: RunningLab, *names: str) -> None:
    for name in names:
        lab.run(name, "systemctl", "kill", "--signal=KILL", "hyperheap-agent.service")


def agent_pid(lab: RunningLab, name: str) -> bytes:
    return lab.run(
        name, "systemctl", "show", "--value", "-p", "MainPID", "hyperheap-agent.service"
    ).stdout.strip()


# --- The path


def test_members_of_a_heap_share_memory(lab: RunningLab) -> None:
    stream = Stream(lab, "server", "echo", "client", "ask 1000")
    server, client = stream.reports()
    assert client["bytes"] == server["bytes"] == 1000 * 12
    row = stream.wait_ended()
    assert row["fast_path"] == "SharedHypervisor"
    assert (row["client"]["guest"], row["server"]["guest"]) == ("client", "server")
    for way in ("to_server", "to_client"):
        assert row[way]["shared"] > 500 * 12
        assert row[way]["shared"] + row[way]["network"] == 1000 * 12


def test_an_outsider_stays_on_the_network(lab: RunningLab) -> None:
    stream = Stream(lab, "outsider", "echo", "client", "ask 1000")
    stream.reports()
    row = stream.wait_ended()
    assert row["fast_path"] == "External"
    assert row["to_server"]["shared"] == row["to_client"]["shared"] == 0
    assert row["to_server"]["network"] == 1000 * 12


def test_without_the_shim_nothing_is_shared(lab: RunningLab) -> None:
    stream = Stream(lab, "server", "echo", "client", "ask 100", shim=False)
    stream.reports()
    row = stream.row()
    assert row is None or row["to_server"]["shared"] == 0


def test_one_end_without_the_shim_stays_on_the_network(lab: RunningLab) -> None:
    port = next(_ports)
    server = lab.start("server", "python3", "/root/stream.py", "serve", str(port), "echo")
    time.sleep(2)
    address = str(lab.topology.guest("server").address)
    client = lab.run(
        "client", "lab-run", "python3", "/root/stream.py", "connect", address, str(port), "ask", "200"
    )
    assert json.loads(client.stdout)["bytes"] == 200 * 12
    assert server.result(30).code == 0
    assert all(row["to_server"]["shared"] == 0 for row in lab.sockets() if row["server"]["port"] == port)


# --- The bytes


@pytest.mark.parametrize(("server_role", "client_role"), [("receive", "send"), ("send", "receive")])
def test_every_byte_arrives(lab: RunningLab, server_role: str, client_role: str) -> None:
    size = 96 * MIB
    roles = {"send": f"send {size}", "receive": "receive"}
    stream = Stream(lab, "server", roles[server_role], "client", roles[client_role])
    server, client = stream.reports()
    assert server["bytes"] == client["bytes"] == size
    assert server["sha256"] == client["sha256"]
    row = stream.wait_ended()
    way = row["to_server"] if client_role == "send" else row["to_client"]
    assert way["shared"] + way["network"] == size
    assert way["shared"] > size * 9 // 10


def test_many_streams_at_once(lab: RunningLab) -> None:
    size = 4 * MIB
    streams = [Stream(lab, "server", "receive", "client", f"send {size}") for _ in range(8)]
    for stream in streams:
        server, client = stream.reports()
        assert server["bytes"] == size
        assert server["sha256"] == client["sha256"]


# --- What fails


def test_killed_agents_disturb_nobody(lab: RunningLab) -> None:
    size = 64 * MIB
    before = agent_pid(lab, "client")
    stream = Stream(lab, "server", "receive", "client", f"send {size} --slow 0.1")
    stream.wait_shared()
    kill_agents(lab, "client", "server")
    server, client = stream.reports()
    assert server["bytes"] == size
    assert server["sha256"] == client["sha256"]
    stream._wait(lambda: agent_pid(lab, "client") not in (b"0", before))
    # The new agents serve new connections.
    after = Stream(lab, "server", "echo", "client", "ask 400 --slow 0.02")
    after.wait_shared()
    after.reports()


def test_a_killed_server_process_is_an_end(lab: RunningLab) -> None:
    stream = Stream(lab, "server", f"send {1024 * MIB} --slow 0.05", "client", "receive")
    stream.wait_shared()
    lab.run("server", "pkill", "-KILL", "-f", f"serve {stream.port}")
    client = stream.report("client", 30)
    assert client["error"] in (None, "ECONNRESET")
    assert client["bytes"] > 0
    # What arrived is a prefix of what was sent.
    body = stream_prefix(client["bytes"])
    assert client["sha256"] == body


def stream_prefix(length: int) -> str:
    """sha256 of the first bytes that `send` sends."""
    namespace: dict[str, Any] = {"__name__": "stream"}
    exec(compile(STREAM, "stream.py", "exec"), namespace)
    digest = hashlib.sha256()
    for number in range(-(-length // namespace["BLOCK"])):
        block = number.to_bytes(8, "big") + namespace["BODY"]
        digest.update(block[: length - number * namespace["BLOCK"]])
    return digest.hexdigest()


def test_a_killed_daemon_disturbs_nobody(lab: RunningLab) -> None:
    size = 64 * MIB
    stream = Stream(lab, "server", "receive", "client", f"send {size} --slow 0.1")
    stream.wait_shared()
    os.kill(int((lab.paths.root / "daemon.pid").read_text()), signal.SIGKILL)
    try:
        server, client = stream.reports()
    finally:
        lab.up()
    assert server["bytes"] == size
    assert server["sha256"] == client["sha256"]
    after = Stream(lab, "server", "echo", "client", "ask 400 --slow 0.02")
    after.wait_shared()
    after.reports()


def test_a_destroyed_guest_resets_its_peers(lab: RunningLab) -> None:
    """The last test of the module: it boots the server anew."""
    stream = Stream(lab, "server", f"send {1024 * MIB} --slow 0.05", "client", "receive")
    stream.wait_shared()
    qemu = next(
        found
        for found in process.find(process.in_netns(lab.paths.netns_file))
        if is_qemu_of(found.pid, lab, "server")
    )
    os.kill(qemu.pid, signal.SIGKILL)
    begin = time.monotonic()
    try:
        client = stream.report("client", 30)
        assert time.monotonic() - begin < 4  # 2 s to notice, and an ssh session under TCG to hear of it
        assert client["error"] == "ECONNRESET"
        assert client["sha256"] == stream_prefix(client["bytes"])
    finally:
        lab.up()
    lab.run("server", "tee", "/root/stream.py", stdin=STREAM)
    after = Stream(lab, "server", "echo", "client", "ask 400 --slow 0.02")
    after.wait_shared()
    after.reports()


def is_qemu_of(pid: int, lab: RunningLab, name: str) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return b"qemu" in words[0] and any(f"/{name}/".encode() in word for word in words)
