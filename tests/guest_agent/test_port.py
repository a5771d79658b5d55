"""The agent's port against a registry that is played, through a port with QEMU's manners."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from port_relay import PortRelay

from guest_agent.loop import Loop
from guest_agent.messages import (
    Answer,
    Call,
    FastPath,
    Hello,
    Message,
    Ping,
    Pong,
    Query,
    Ready,
    Reset,
    Settled,
)
from guest_agent.port import Port
from guest_agent.wire import MARKER, FrameReader, encode

SECONDS = 5.0


class Bench:
    """A port, a relay, and the registry's side of it by hand."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loop = Loop()
        self.heard: list[Message] = []
        self.opened = 0
        self.closed = 0
        self.relay = PortRelay(directory / "host", directory / "guest")
        self.port = Port(
            self.loop,
            directory / "guest",
            listen=False,
            on_open=self.on_open,
            on_closed=self.on_closed,
            on_message=self.heard.append,
        )
        self.host: socket.socket | None = None
        self.frames = FrameReader()

    def on_open(self) -> None:
        self.opened += 1
        self.port.send(Hello("v", "b", 1, ()))
        self.port.send(Settled())

    def on_closed(self) -> None:
        self.closed += 1

    def connect(self) -> None:
        """Connect the registry's side."""
        if self.host is not None:
            self.host.close()
        self.host = socket.socket(socket.AF_UNIX)
        self.host.connect(str(self.directory / "host"))
        self.host.setblocking(False)
        self.frames = FrameReader()

    def say(self, data: bytes | Message) -> None:
        assert self.host is not None
        self.host.sendall(data if isinstance(data, bytes) else encode(data))

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            self.loop.step(0.01)

    def hear(self, kind: type[Message]) -> Message:
        """Return the next message of a kind that the agent says."""
        found: list[Message] = []

        def look() -> bool:
            assert self.host is not None
            with contextlib.suppress(BlockingIOError):
                self.frames.feed(self.host.recv(65536))
            while (message := self.frames.pop()) is not None:
                if isinstance(message, kind):
                    found.append(message)
                    return True
            return False

        self.until(look)
        return found[0]

    def open(self) -> None:
        """Open a conversation."""
        reset = self.hear(Reset)
        assert isinstance(reset, Reset)
        opened = self.opened
        self.say(Ready(reset.session))
        self.until(lambda: self.opened > opened)
        self.hear(Settled)

    def close(self) -> None:
        self.port.close()
        self.relay.close()
        if self.host is not None:
            self.host.close()
        self.loop.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="hh-") as directory:
        bench = Bench(Path(directory))
        bench.port.open()
        yield bench
        bench.close()


def test_a_conversation_opens_though_the_registry_comes_late(bench: Bench) -> None:
    for _ in range(30):
        bench.loop.step(0.01)
    bench.connect()
    bench.open()
    assert bench.port.is_open
    bench.say(Answer(1, FastPath.EXTERNAL, 1))
    bench.until(lambda: bench.heard == [Answer(1, FastPath.EXTERNAL, 1)])


def test_nothing_is_heard_before_the_answer_to_our_own_reset(bench: Bench) -> None:
    bench.connect()
    reset = bench.hear(Reset)
    assert isinstance(reset, Reset)
    bench.say(MARKER + encode(Query(1)) + encode(Ready(reset.session ^ 1)) + encode(Query(2)))
    for _ in range(20):
        bench.loop.step(0.01)
    assert (bench.heard, bench.opened) == ([], 0)
    bench.open()


@pytest.mark.parametrize(
    "nonsense",
    [b"\xff" * 100, b"\x00\x00\x00\x04nons", encode(Hello("v", "b", 1, ())), MARKER + os.urandom(64)],
)
def test_nonsense_begins_a_new_conversation(bench: Bench, nonsense: bytes) -> None:
    bench.connect()
    bench.open()
    bench.say(nonsense[:-1])
    bench.say(encode(Call()))
    bench.open()
    assert bench.closed == 1


def test_a_registry_that_comes_back_calls(bench: Bench) -> None:
    bench.connect()
    bench.open()
    bench.say(encode(Query(1))[:-3])
    for turn in range(3):
        bench.connect()
        bench.say(Call())
        bench.open()
        bench.say(Query(turn))
        bench.until(lambda turn=turn: Query(turn) in bench.heard)  # type: ignore[misc]


def test_a_port_that_vanishes_is_opened_again(bench: Bench) -> None:
    bench.connect()
    bench.open()
    bench.relay.close()
    bench.until(lambda: bench.closed == 1)
    bench.port.send(Settled())
    bench.relay = PortRelay(bench.directory / "host", bench.directory / "guest")
    bench.connect()
    bench.open()


def test_pings_prove_life_and_their_answers_are_wanted(bench: Bench) -> None:
    bench.connect()
    bench.open()
    bench.port.set_lease(1)
    for _ in range(4):
        ping = bench.hear(Ping)
        assert isinstance(ping, Ping)
        bench.say(Pong(ping.sequence))
    assert bench.closed == 0
    bench.until(lambda: bench.closed == 1)
    bench.open()


def test_a_registry_that_does_not_read_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guest_agent.port.MAX_UNSENT", 100_000)
    bench.connect()
    bench.open()
    for _ in range(200_000):
        bench.port.send(Hello("v" * 60, "b", 1, ()))
        if bench.closed:
            break
    assert bench.closed == 1


def test_a_character_device_is_a_port_as_well() -> None:
    """A pseudoterminal: what nobody answers is not read as an end of file."""
    import pty
    import tty

    host, guest = pty.openpty()
    tty.setraw(guest)
    loop = Loop()
    opened: list[bool] = []
    port = Port(
        loop,
        Path(os.ttyname(guest)),
        listen=False,
        on_open=lambda: opened.append(True),
        on_closed=lambda: None,
        on_message=lambda _: None,
    )
    port.open()
    frames = FrameReader()
    frames.feed(os.read(host, 1000))
    reset = frames.pop()
    assert isinstance(reset, Reset)
    os.write(host, encode(Ready(reset.session)))
    while not opened:
        loop.step(1)
    port.close()
    loop.close()
    os.close(host)
    os.close(guest)


def test_the_listening_side(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="hh-") as directory:
        loop = Loop()
        opened: list[bool] = []
        port = Port(
            loop,
            Path(directory, "port"),
            listen=True,
            on_open=lambda: opened.append(True),
            on_closed=lambda: None,
            on_message=lambda _: None,
        )
        port.open()
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as host:
                host.connect(str(Path(directory, "port")))
                host.settimeout(SECONDS)
                loop.step(1)
                frames = FrameReader()
                frames.feed(host.recv(1000))
                reset = frames.pop()
                assert isinstance(reset, Reset)
                host.sendall(encode(Ready(reset.session)))
                opened.clear()
                while not opened:
                    loop.step(1)
            loop.step(1)
        port.close()
        loop.close()
