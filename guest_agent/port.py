"""The agent's side of the conversation with the registry, over the guest's port.

The port is a virtio-serial character device, or for tests a UNIX socket: one to connect to (`connect`), or
one to listen on as QEMU does for a guest's port (`listen`). `wire` has the rules; in short: until the
registry has answered our Reset nothing else is said or heard, and whenever anything is strange we start over.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from guest_agent.loop import READ, WRITE, Loop, Timer
from guest_agent.messages import Call, Message, Ping, Pong, Ready, Reset
from guest_agent.records import WireError
from guest_agent.wire import FrameReader, encode

CHUNK: Final = 65536
MAX_UNSENT: Final = 4 << 20
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 1.0
PINGS_PER_LEASE: Final = 3

log = logging.getLogger("agent.port")


class Port:
    """A conversation that is kept open.

    Args:
        loop: the agent's loop.
        path: the device or socket.
        listen: be the listening side of a UNIX socket.
        on_open: a conversation is open: say Hello and all that there is.
        on_closed: it is not any more; what was said meanwhile may be lost.
        on_message: a message for the agent came.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        *,
        listen: bool,
        on_open: Callable[[], None],
        on_closed: Callable[[], None],
        on_message: Callable[[Message], None],
    ) -> None:
        self._loop = loop
        self._path = path
        self._listens = listen
        self._on_open = on_open
        self._on_closed = on_closed
        self._on_message = on_message
        self._fd = -1
        self._listener: socket.socket | None = None
        self._reader = FrameReader()
        self._unsent = bytearray()
        self._session: int | None = None
        self._is_open = False
        self._timer: Timer | None = None
        self._pause = FIRST_PAUSE
        self._lease = 0
        self._ping = 0
        self._pong = 0

    def open(self) -> None:
        """Begin. OSError when the socket to listen on cannot be made; a port that is not there yet is waited
        for.
        """
        if self._listens:
            self._listener = _listen(self._path)
            self._loop.watch(self._listener.fileno(), READ, self._accept)
        else:
            self._open()

    @property
    def is_open(self) -> bool:
        """Whether the registry listens."""
        return self._is_open

    def send(self, message: Message) -> None:
        """Send, if a conversation is open. Otherwise the message is dropped: the next one begins with all
        there is.
        """
        if self._is_open:
            self._write(encode(message))

    def restart(self, why: str) -> None:
        """Begin a new conversation over the open port."""
        if self._fd >= 0:
            log.info("port=%s conversation=restart reason=%r", self._path, why)
            self._pause = FIRST_PAUSE
            self._begin()

    def set_lease(self, seconds: int) -> None:
        """Prove from now on that we are here: the registry must hear from us within so many seconds."""
        self._lease = seconds
        self._pong = self._ping
        self._schedule(seconds / PINGS_PER_LEASE, self._keep_alive)

    def close(self) -> None:
        """Close the port; it stays closed."""
        self._close_fd()
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._loop.forget(self._listener.fileno())
            self._listener.close()
            self._path.unlink(missing_ok=True)

    # --- opening --------------------------------------------------------------------------------------------

    def _open(self) -> None:
        try:
            self._fd = _open_port(self._path)
        except OSError as error:
            log.debug("port=%s open failed reason=%r", self._path, error.strerror)
            self._schedule_with_backoff(self._open)
            return
        self._begin()

    def _accept(self, events: int) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        # One registry at a time, as with QEMU's port; whoever comes last is the living one.
        self._close_fd()
        connection.setblocking(False)
        self._fd = connection.detach()
        self._begin()

    def _begin(self) -> None:
        self._lose_session()
        self._session = int.from_bytes(os.urandom(8), "big")
        self._reader.lose()
        self._unsent.clear()
        self._loop.watch(self._fd, READ, self._on_ready)
        self._say_reset()

    def _say_reset(self) -> None:
        if self._fd < 0 or self._session is None:
            return
        self._schedule_with_backoff(self._say_reset)
        if not self._unsent:
            self._write(encode(Reset(self._session)))

    def _lose_session(self) -> None:
        self._session = None
        self._lease = 0
        if self._is_open:
            self._is_open = False
            self._on_closed()

    def _hang_up(self, why: str) -> None:
        """The other side is not there: nothing can be said, and a device would report that all the time."""
        # The first time is news; a port that nobody answers is tried again and again.
        log.log(
            logging.INFO if self._is_open else logging.DEBUG, "port=%s hung up reason=%r", self._path, why
        )
        self._close_fd()
        if self._listener is None:
            self._schedule_with_backoff(self._open)

    def _close_fd(self) -> None:
        self._lose_session()
        if self._fd >= 0:
            self._loop.forget(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._unsent.clear()

    # --- talking --------------------------------------------------------------------------------------------

    def _on_ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & READ and self._fd >= 0:
            self._read()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._hang_up(error.strerror or str(error))
            return
        if not data:
            self._hang_up("nobody at the other side")
            return
        self._reader.feed(data)
        while self._fd >= 0:
            try:
                message = self._reader.pop()
            except WireError as error:
                self.restart(f"garbled: {error}")
                return
            if message is None:
                return
            self._take(message)

    def _take(self, message: Message) -> None:
        if isinstance(message, Call):
            if self._is_open:
                self.restart("called")
        elif isinstance(message, Ready):
            if message.session == self._session and not self._is_open:
                self._is_open = True
                self._pause = FIRST_PAUSE
                self._cancel_timer()
                self._on_open()
        elif isinstance(message, Pong):
            self._pong = max(self._pong, message.sequence)
        elif self._is_open:
            self._on_message(message)

    def _keep_alive(self) -> None:
        if not self._is_open or not self._lease:
            return
        if self._ping - self._pong >= PINGS_PER_LEASE:
            self.restart("the registry does not answer")
            return
        self._ping += 1
        self._write(encode(Ping(self._ping)))
        self._schedule(self._lease / PINGS_PER_LEASE, self._keep_alive)

    def _write(self, data: bytes) -> None:
        was_empty = not self._unsent
        self._unsent += data
        if was_empty:
            self._flush()
        if len(self._unsent) > MAX_UNSENT:
            self._hang_up("the registry does not read")

    def _flush(self) -> None:
        while self._unsent:
            try:
                sent = os.write(self._fd, self._unsent)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._hang_up(error.strerror or str(error))
                return
            del self._unsent[:sent]
        self._loop.watch(self._fd, READ | WRITE if self._unsent else READ, self._on_ready)

    # --- timers ---------------------------------------------------------------------------------------------

    def _schedule(self, seconds: float, callback: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = self._loop.call_later(seconds, callback)

    def _schedule_with_backoff(self, callback: Callable[[], None]) -> None:
        self._schedule(self._pause, callback)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _open_port(path: Path) -> int:
    """Return a non-blocking descriptor of the character device or UNIX socket at `path`."""
    if not stat.S_ISSOCK(path.stat().st_mode):
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
        connection.setblocking(False)
        return connection.detach()
    finally:
        connection.close()


def _listen(path: Path) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(path))
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise OSError(error.errno or errno.EIO, f"cannot listen on {path}: {error.strerror}") from error
    return listener
