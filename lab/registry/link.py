"""The registry's connection to each guest's port: a UNIX socket on which the guest's QEMU listens.

A link connects, reconnects with growing pauses, and turns bytes into messages. That nobody listens any more
means that the QEMU process is gone, and the guest with it: the kernel says so at once, without any timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from guest_agent.messages import Message
from guest_agent.records import WireError
from guest_agent.wire import FrameReader, encode
from lab.registry.core import Registry

CHUNK: Final = 32768
MAX_UNSENT: Final = 4 << 20
"""Bytes that wait for a guest that does not read. More: the connection is given up and made anew."""
MAX_RATE: Final = 20000
"""Messages a second that are read from one guest; then its port is not read until the second is over."""
ERROR_WEIGHT: Final = 20
"""A malformed frame counts as so many messages."""
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
_NOBODY_LISTENS: Final = (errno.ECONNREFUSED, errno.ENOENT)

log = logging.getLogger("registry")


class GuestLink:
    """The port of one guest. `run` is its life; `send` may be called at any time."""

    def __init__(self, name: str, port: Path, registry: Registry) -> None:
        self.name = name
        self.port = port
        self._registry = registry
        self._writer: asyncio.StreamWriter | None = None
        self._budget = MAX_RATE

    def send(self, message: Message) -> None:
        """Send a message, or drop it if the port is not connected: the next conversation starts from
        nothing.
        """
        if self._writer is None or self._writer.is_closing():
            return
        self._writer.write(encode(message))
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT:
            log.warning("guest=%s port=given-up reason=%r", self.name, "it does not read")
            self._writer.transport.abort()

    async def run(self) -> None:
        """Keep the port connected until cancelled."""
        pause = FIRST_PAUSE
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(self.port))
            except OSError as error:
                if error.errno in _NOBODY_LISTENS:
                    self._registry.guest_died(self.name, "nobody listens at its port")
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            self._writer = writer
            try:
                await self._converse(reader)
            except OSError as error:
                log.info("guest=%s port=broken reason=%r", self.name, error.strerror or str(error))
            finally:
                self._writer = None
                writer.close()
                self._registry.port_closed(self.name)
            # Then at once try again: whether anybody listens tells a dead guest from a port that was reset.

    async def _converse(self, stream: asyncio.StreamReader) -> None:
        self._registry.port_opened(self.name)
        frames = FrameReader()
        loop = asyncio.get_running_loop()
        second = loop.time()
        self._budget = MAX_RATE
        while data := await stream.read(CHUNK):
            frames.feed(data)
            self._take(frames)
            if self._budget < 0:
                await asyncio.sleep(max(0.0, second + 1 - loop.time()))
            else:
                await asyncio.sleep(0)  # a guest that talks without end must not keep the others waiting
            if loop.time() - second >= 1:
                second = loop.time()
                self._budget = MAX_RATE

    def _take(self, frames: FrameReader) -> None:
        """Give all whole messages to the registry."""
        while True:
            try:
                message = frames.pop()
            except WireError as error:
                self._budget -= ERROR_WEIGHT
                self._registry.port_garbled(self.name, str(error))
                continue
            if message is None:
                return
            self._budget -= 1
            self._registry.receive(self.name, message)


class Links:
    """The links of all guests, as tasks of the running event loop."""

    def __init__(self, registry_for: Callable[[], Registry]) -> None:
        self._registry_for = registry_for
        self._links: dict[str, tuple[GuestLink, asyncio.Task[None]]] = {}

    def send(self, guest: str, message: Message) -> None:
        """Send a message to a guest's agent."""
        found = self._links.get(guest)
        if found is not None:
            found[0].send(message)

    async def configure(self, ports: Mapping[str, Path]) -> None:
        """Link these guests and no others; links whose port did not change go on."""
        for name, (link, task) in list(self._links.items()):
            if ports.get(name) != link.port:
                del self._links[name]
                await _cancel(task)
        for name, port in ports.items():
            if name not in self._links:
                link = GuestLink(name, port, self._registry_for())
                task = asyncio.create_task(link.run(), name=f"link {name}")
                task.add_done_callback(_report)
                self._links[name] = (link, task)

    async def close(self) -> None:
        """Disconnect all."""
        await self.configure({})


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _report(task: asyncio.Task[None]) -> None:
    """A link ends only when it is told to; anything else is a defect that must be seen."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("task=%r failed", task.get_name(), exc_info=task.exception())
