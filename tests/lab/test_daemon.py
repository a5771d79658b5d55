"""The lab's daemon as a process, its links to ports, and its control socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from guest_agent.messages import Call, Hello, Message, Ping, Pong, Ready, Reset, Settled, Welcome
from guest_agent.wire import MARKER, FrameReader, encode
from lab import control, daemon_file
from lab.control import ControlError
from lab.daemon_file import DaemonFileError
from lab.registry import link
from lab.sockets import TABLE_COLUMNS, format_table, make_row

SECONDS = 20.0


class GuestPort:
    """A guest's port with an agent that is played."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.settimeout(SECONDS)
        self.accept()

    def accept(self) -> None:
        self.connection, _ = self.listener.accept()
        self.connection.settimeout(SECONDS)
        self.frames = FrameReader()

    def say(self, data: bytes | Message) -> None:
        self.connection.sendall(data if isinstance(data, bytes) else encode(data))

    def hear(self, kind: type[Message]) -> Message:
        while True:
            while (message := self.frames.pop()) is not None:
                if isinstance(message, kind):
                    return message
            data = self.connection.recv(65536)
            assert data, f"closed while waiting for {kind.__name__}"
            self.frames.feed(data)

    def open(self) -> None:
        self.say(Reset(random.getrandbits(60)))
        self.hear(Ready)
        self.say(Hello("0.1.0", "boot", 42, ()))
        self.hear(Welcome)
        self.say(Settled())

    def close(self) -> None:
        self.connection.close()
        self.listener.close()


class Daemon:
    """A daemon in a directory of its own."""

    def __init__(self, directory: Path, guests: tuple[str, ...]) -> None:
        self.directory = directory
        self.socket = directory / "daemon.sock"
        self.write(guests)
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, names: tuple[str, ...], **changes: Any) -> None:
        heap = {
            "name": "shared",
            "size": 1 << 20,
            "file": str(self.directory / "heap"),
            "socket": str(self.directory / "heaps" / "shared.sock"),
            "vectors": 4,
            "buffer": 4096,
            "members": list(names),
        }
        entries = [
            {"name": name, "port": str(self.directory / name), "addresses": [f"10.0.0.{number}"]}
            for number, name in enumerate(names, 1)
        ]
        content = {"version": 1, "lab": "test", "heaps": [heap], "guests": entries} | changes
        (self.directory / "daemon.json").write_text(json.dumps(content))

    def start(self) -> None:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "lab.daemon", "--lab-dir", str(self.directory)],
                env={**os.environ, "PYTHONPATH": path},
                stderr=log,
            )
        self.until(lambda: self.ask("ping")["ok"])

    def ask(self, operation: str) -> dict[str, Any]:
        return control.ask(self.socket, operation)

    def agent(self, name: str) -> dict[str, Any]:
        return dict(self.ask("status")["agents"][name])

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while True:
            with contextlib.suppress(ControlError):
                if condition():
                    return
            assert time.monotonic() < deadline, (self.directory / "log").read_text()
            time.sleep(0.01)

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="hh-") as directory:
        daemon = Daemon(Path(directory), ("one", "two"))
        daemon.start()
        yield daemon
        assert daemon.process is not None
        if daemon.process.poll() is None:
            daemon.end(signal.SIGKILL)


# --- the process --------------------------------------------------------------------------------------------


def test_status_before_any_guest(daemon: Daemon) -> None:
    status = daemon.ask("status")
    assert status["lab"] == "test"
    assert daemon.process is not None
    assert status["pid"] == daemon.process.pid == int((daemon.directory / "daemon.pid").read_text())
    assert {name: (agent["connected"], agent["presence"]) for name, agent in status["agents"].items()} == {
        "one": (False, "absent"),
        "two": (False, "absent"),
    }
    heap = status["heaps"]["shared"]
    assert (heap["size"], heap["leased"], heap["channels"], heap["peers"]) == (1 << 20, 0, 0, 0)
    assert daemon.ask("sockets")["connections"] == []
    assert daemon.socket.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("way", ["TERM", "INT", "stop"])
def test_it_ends_cleanly(daemon: Daemon, way: str) -> None:
    if way == "stop":
        daemon.ask("stop")
        assert daemon.process is not None
        assert daemon.process.wait(SECONDS) == 0
    else:
        assert daemon.end(signal.Signals[f"SIG{way}"]) == 0
    left = {path.name for path in daemon.directory.iterdir()}
    assert "daemon.sock" not in left
    assert "daemon.pid" not in left
    assert "heap" in left, "the heap is the lab's, not the daemon's"
    assert not list((daemon.directory / "heaps").glob("*.sock"))


def test_only_one_daemon_serves_a_lab(daemon: Daemon) -> None:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    second = subprocess.run(
        [sys.executable, "-P", "-m", "lab.daemon", "--lab-dir", str(daemon.directory)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    assert second.returncode == 1
    assert b"runs already" in second.stderr
    assert daemon.ask("ping")["ok"]


def test_it_starts_again_after_a_kill(daemon: Daemon) -> None:
    uuid = daemon.ask("status")["heaps"]["shared"]["uuid"]
    daemon.end(signal.SIGKILL)
    daemon.start()
    assert daemon.ask("status")["heaps"]["shared"]["uuid"] == uuid


def test_a_new_configuration_is_read_on_sighup(daemon: Daemon) -> None:
    assert daemon.process is not None
    daemon.write(("one", "three"))
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda: set(daemon.ask("status")["agents"]) == {"one", "three"})
    (daemon.directory / "daemon.json").write_text("{")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda: "ignored" in (daemon.directory / "log").read_text())
    assert set(daemon.ask("status")["agents"]) == {"one", "three"}
    daemon.write(("one",), heaps=[])
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda: daemon.ask("status")["heaps"] == {})


# --- control ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["", "nonsense", "[]", "{}", '{"op":"dance"}', '{"op":["ping"]}', '{"op":null}']
)
def test_what_is_no_operation_is_refused(daemon: Daemon, line: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(daemon.socket))
        connection.sendall(line.encode() + b"\n")
        with connection.makefile("rb") as stream:
            assert json.loads(stream.readline())["ok"] is False
    assert daemon.ask("ping")["ok"]


def test_a_request_without_end_is_refused(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(daemon.socket))
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"x" * 1_000_000)
    assert daemon.ask("ping")["ok"]


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="does not answer"):
        control.ask(tmp_path / "daemon.sock", "ping")


# --- ports --------------------------------------------------------------------------------------------------


def test_an_agent_registers_and_is_seen(daemon: Daemon) -> None:
    port = GuestPort(daemon.directory / "one")
    port.hear(Call)
    port.open()
    daemon.until(lambda: daemon.agent("one")["connected"])
    assert (daemon.agent("one")["version"], daemon.agent("one")["pid"]) == ("0.1.0", 42)
    port.close()


def test_a_port_that_nobody_listens_on_is_a_dead_guest(daemon: Daemon) -> None:
    port = GuestPort(daemon.directory / "one")
    port.open()
    daemon.until(lambda: daemon.agent("one")["connected"])
    began = time.monotonic()
    port.close()
    daemon.until(lambda: daemon.agent("one")["presence"] == "dead")
    assert time.monotonic() - began < 2
    port.path.unlink()
    port = GuestPort(port.path)
    port.open()
    daemon.until(lambda: daemon.agent("one")["presence"] == "connected")
    port.close()


def test_a_port_that_closes_and_listens_on_is_a_silent_agent(daemon: Daemon) -> None:
    port = GuestPort(daemon.directory / "one")
    port.open()
    port.connection.close()
    port.accept()
    port.hear(Call)
    assert daemon.agent("one")["presence"] == "silent"
    port.open()
    assert daemon.agent("one")["presence"] == "connected"
    port.close()


def test_a_malicious_port_harms_nobody(daemon: Daemon) -> None:
    bad, good = GuestPort(daemon.directory / "one"), GuestPort(daemon.directory / "two")
    bad.open()
    good.open()
    assert daemon.process is not None
    before = memory_of(daemon.process.pid)
    chance = random.Random(4)
    frames = [
        encode(message)
        for message in (Ping(1), Hello("v", "b", 1, ()), Settled(), Welcome("g", "l", 1, 1, 1, 1))
    ]
    slowest = 0.0
    deadline = time.monotonic() + 3
    bad.connection.settimeout(0.05)
    while time.monotonic() < deadline:
        piece = chance.choice([MARKER, os.urandom(300), b"\0\1\0\0", b"\0\0\0\2ab", *frames])
        with contextlib.suppress(TimeoutError):
            bad.say(piece * chance.randrange(1, 200))
        with contextlib.suppress(TimeoutError, BlockingIOError):
            bad.connection.recv(1 << 20)
        began = time.monotonic()
        good.say(Ping(7))
        assert good.hear(Pong) == Pong(7)
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 0.5
    assert memory_of(daemon.process.pid) < before + (16 << 20)
    assert daemon.agent("one")["refused"] > 0
    assert daemon.agent("two")["refused"] == 0
    bad.close()
    good.close()


def memory_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


class SilentRegistry:
    """A registry that only counts."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed = 0
        self.received = 0

    def port_opened(self, name: str) -> None:
        self.opened += 1

    def port_closed(self, name: str) -> None:
        self.closed += 1

    def receive(self, name: str, message: Message) -> None:
        self.received += 1


def test_a_guest_that_does_not_read_is_given_up_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "MAX_UNSENT", 100_000)
    registry = SilentRegistry()

    async def talk(path: Path) -> None:
        forever = asyncio.Event()

        async def never_read(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await forever.wait()
            writer.close()

        async with await asyncio.start_unix_server(never_read, str(path)):
            guest = link.GuestLink("one", path, registry)  # type: ignore[arg-type]
            task = asyncio.create_task(guest.run())
            while registry.opened < 2:
                guest.send(Pong(1))
                await asyncio.sleep(0 if registry.opened else 0.01)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            forever.set()
            await asyncio.sleep(0.01)

    with tempfile.TemporaryDirectory(prefix="hh-") as directory:
        asyncio.run(asyncio.wait_for(talk(Path(directory, "port")), SECONDS))
    assert registry.closed == 2


def test_a_guest_that_talks_too_much_is_read_no_faster_than_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "MAX_RATE", 100)

    async def talk() -> int:
        registry = SilentRegistry()
        stream = asyncio.StreamReader()
        stream.feed_data(MARKER + encode(Ping(1)) * 5000)
        guest = link.GuestLink("one", Path("/nowhere"), registry)  # type: ignore[arg-type]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(guest._converse(stream), 0.3)
        return registry.received

    assert asyncio.run(talk()) < 3000


# --- daemon.json and rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"version": 2}, "version"),
        ({"strange": 1}, "strange"),
        ({"heaps": [{"name": "x"}]}, r"heaps\.0\.size"),
        (
            {"guests": [{"name": "a", "port": "/p", "addresses": ["nonsense"]}]},
            "not an IP address: 'nonsense'",
        ),
        (
            {"guests": [{"name": n, "port": "/p", "addresses": ["10.0.0.1"]} for n in "ab"]},
            "10.0.0.1 belongs to a and to b",
        ),
        ({"guests": [{"name": "a", "port": "/p", "addresses": []}] * 2}, "same name"),
        ({"policy": {"upgrade": "perhaps"}}, r"policy\.upgrade"),
    ],
)
def test_a_bad_daemon_json_says_where(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    daemon = Daemon(tmp_path, ("one",))
    daemon.write(("one",), **change)
    with pytest.raises(DaemonFileError, match=what):
        daemon_file.read(tmp_path / "daemon.json")


def test_addresses_are_made_canonical(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, ())
    daemon.write((), guests=[{"name": "a", "port": "/p", "addresses": ["FD77:0::11", "::ffff:10.0.0.1"]}])
    (guest,) = daemon_file.read(tmp_path / "daemon.json").guests
    assert guest.addresses == ("fd77::11", "10.0.0.1")


def test_rows_are_flat_and_have_a_table() -> None:
    end = {"guest": "client", "address": "fd77::11", "port": 5000, "program": "curl", "pid": 7, "gone": False}
    direction = {"path": "shared", "shared": 900, "network": 100, "written": 1000, "read": 900}
    connection = {
        "number": 3,
        "fast_path": "SharedHypervisor",
        "state": "shared",
        "detail": "",
        "heap": "shared",
        "channel": 5,
        "ring": 4096,
        "generation": 1,
        "age": 1.25,
        "ended": None,
        "client": end,
        "server": {**end, "guest": "", "address": "10.0.0.1", "program": ""},
        "to_server": direction,
        "to_client": {**direction, "shared": 0, "network": 10, "path": "network"},
    }
    row = make_row(connection)
    assert row["path"] == "shared"
    assert row["to_client_path"] == "network"
    assert not any(isinstance(value, dict | list) for value in row.values())
    (line,) = format_table([row])
    assert len(line) == len(TABLE_COLUMNS)
    assert line[:3] == ("client [fd77::11]:5000", "outside 10.0.0.1:5000", "curl / -")
