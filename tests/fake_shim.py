"""A process with the shim, as its agent sees it: packets over the agent's socket, and nothing behind them."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
from pathlib import Path

from guest_agent import shim_protocol
from guest_agent.records import Endpoint, canonical_address
from guest_agent.shim_protocol import Packet, Type

SECONDS = 5.0


class FakeShim:
    """A connection to the agent; a context manager that closes all descriptors it got."""

    def __init__(self, run: Path, program: str = "fake") -> None:
        self._run = run
        self._program = program
        self._fds: list[int] = []
        self.bell = -1

    def __enter__(self) -> FakeShim:
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.settimeout(SECONDS)
        self._connection.connect(str(self._run / "agent.sock"))
        self.say(Packet(Type.HELLO, program=self._program))
        welcome, self.bell = self.hear(Type.WELCOME)
        assert welcome.agent_epoch > 0
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        for fd in self._fds:
            os.close(fd)

    def say(self, packet: Packet) -> None:
        """Send a packet."""
        self._connection.send(packet.pack())

    def say_bytes(self, data: bytes) -> None:
        """Send something that is perhaps no packet."""
        self._connection.send(data)

    def hear(self, kind: Type) -> tuple[Packet, int]:
        """Return the next packet, which must be of this type, and its descriptor or -1."""
        data, ancillary, _, _ = self._connection.recvmsg(shim_protocol.SIZE, socket.CMSG_SPACE(4))
        fd = -1
        for _, _, payload in ancillary:
            fd = array.array("i", payload)[0]
            self._fds.append(fd)
        packet = shim_protocol.unpack(data)
        assert packet is not None, f"the agent closed, or sent {data!r}"
        assert packet.type == kind, packet
        return packet, fd

    def is_quiet(self, seconds: float = 0.2) -> bool:
        """Whether nothing comes for a while."""
        return not select.select([self._connection], [], [], seconds)[0]

    def is_closed(self) -> bool:
        """Whether the agent has closed the connection."""
        with contextlib.suppress(ConnectionError):
            return self._connection.recv(1000) == b""
        return True

    def announce(self, connection: socket.socket, side: int = 2) -> int:
        """Announce a TCP socket; returns its cookie."""
        cookie = cookie_of(connection)
        local, remote = endpoint(connection.getsockname()), endpoint(connection.getpeername())
        self.say(
            Packet(Type.ANNOUNCE, cookie=cookie, local=local, remote=remote, side=side, program=self._program)
        )
        return cookie

    def listen(self, listener: socket.socket) -> int:
        """Tell of a listening socket; returns its cookie."""
        cookie = cookie_of(listener)
        at = endpoint(listener.getsockname())
        self.say(Packet(Type.LISTEN, cookie=cookie, local=at, program=self._program))
        return cookie

    def is_rung(self, seconds: float = SECONDS) -> bool:
        """Whether the bell rings within that time; it is silent again afterwards."""
        rung = bool(select.select([self.bell], [], [], seconds)[0])
        if rung:
            os.eventfd_read(self.bell)
        return rung


def cookie_of(connection: socket.socket) -> int:
    """SO_COOKIE."""
    return int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, 57, 8), "little")


def endpoint(name: tuple[str, int]) -> Endpoint:
    """Return a socket name as an endpoint."""
    return Endpoint(canonical_address(name[0]), name[1])


def connected_pair(host: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a TCP connection: the connecting and the accepting one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen()
        near = socket.socket(family)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    return near, far
