"""Ports of guests on the host's loopback address: a connection there goes on in the lab's namespace."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from lab import netns
from lab.errors import LabError, UserError
from lab.paths import LabPaths
from lab.topology import Topology

LOOPBACK = "127.0.0.1"

_CHUNK = 65536
_CONNECT_TIMEOUT = 20.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Target:
    """A port of a guest."""

    guest: str
    address: str
    port: int


def parse_target(topology: Topology, text: str) -> Target:
    """What GUEST:PORT names. Raises `UserError`."""
    name, colon, port = text.partition(":")
    address = str(topology.guest(name).address)
    if not colon or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise UserError(f"{text!r} is not GUEST:PORT, such as {name}:80, with a port from 1 to 65535")
    return Target(name, address, int(port))


@dataclass
class Forward:
    """One published port. `run` serves until it is told to stop."""

    lab: LabPaths
    target: Target
    port: int
    """On the host; 0 for any that is free."""
    complain: Callable[[str], None] = lambda _: None
    _relays: set[asyncio.Task[None]] = field(default_factory=set)

    def run(self, ready: Callable[[int], None]) -> None:
        """Serve until SIGINT or SIGTERM, which end the connections too. `ready` gets the host's port.

        Raises `LabError` if the port is taken.
        """
        asyncio.run(self._serve(ready))

    async def _serve(self, ready: Callable[[int], None]) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop.set)
        try:
            server = await asyncio.start_server(self._accept, LOOPBACK, self.port, limit=_CHUNK)
        except OSError as error:
            raise LabError(
                f"cannot listen at {LOOPBACK} port {self.port}: {error.strerror or error}",
                cure=f"lab forward {self.target.guest}:{self.target.port} 0",
            ) from error
        try:
            ready(server.sockets[0].getsockname()[1])
            await stop.wait()
        finally:
            server.close()
            for relay in self._relays:
                relay.cancel()
            await asyncio.gather(*self._relays, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        try:
            await self._relay(reader, writer)
        except asyncio.CancelledError:
            _reset(writer)
        finally:
            self._relays.discard(task)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = self.target
        connect = functools.partial(
            netns.open_connection, self.lab.netns_file, target.address, target.port, _CONNECT_TIMEOUT
        )
        try:
            connection = await asyncio.get_running_loop().run_in_executor(None, connect)
        except (OSError, LabError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            self.complain(f"{target.guest} port {target.port} at {target.address}: {reason}")
            _reset(writer)
            return
        connection.setblocking(False)
        far_reader, far_writer = await asyncio.open_connection(sock=connection, limit=_CHUNK)
        directions = [
            asyncio.create_task(_copy(reader, far_writer)),
            asyncio.create_task(_copy(far_reader, writer)),
        ]
        try:
            await asyncio.gather(*directions)
        except BaseException as error:
            # A reset, or the end of all: the other side learns of it as a reset too.
            for each in directions:
                each.cancel()
            for end in (writer, far_writer):
                _reset(end)
            if not isinstance(error, OSError):
                raise
        else:
            for end in (writer, far_writer):
                end.close()
            with contextlib.suppress(OSError):
                await asyncio.gather(writer.wait_closed(), far_writer.wait_closed())


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Everything of one direction, then its end, which is not the end of the other."""
    while chunk := await source.read(_CHUNK):
        sink.write(chunk)
        await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST: what its program then sees is not a clean end."""
    handle = writer.get_extra_info("socket")
    if handle is not None:
        with contextlib.suppress(OSError):
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
