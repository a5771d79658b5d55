"""One ssh connection to a guest, by paramiko over a socket that was opened for it, for any number of
commands.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, ClassVar

import paramiko
from paramiko.common import MSG_CHANNEL_REQUEST

from lab.errors import LabError

_CHUNK = 65536

#: For `Session.start`, as in subprocess: the caller reads or writes the stream itself.
PIPE = -1

Stream = BinaryIO | io.RawIOBase

#: Seconds for the handshake, which takes one under TCG when the host has nothing else to do.
_HANDSHAKE_TIMEOUT = 60.0

_CHANNEL_TIMEOUT = 30.0

#: Seconds between two signs of life, and without any answer until the guest counts as gone.
_KEEPALIVE = 5
_SILENCE_TIMEOUT = 20


class CommandTimeoutError(LabError):
    """A command in a guest took longer than it was allowed to. It was ended."""


def _on_channel_request(channel: paramiko.Channel, message: paramiko.Message) -> None:
    """Take down which signal ended a command (RFC 4254, 6.10), which paramiko does not know; leave it the
    rest.
    """
    position = message.packet.tell()
    if message.get_text() == "exit-signal":
        message.get_boolean()
        number = getattr(signal, f"SIG{message.get_text()}", signal.SIGKILL)
        channel.exit_status = 128 + int(number)
        channel.status_event.set()
        return
    message.packet.seek(position)
    paramiko.Channel._handle_request(channel, message)  # type: ignore[attr-defined]


class _Transport(paramiko.Transport):
    _channel_handler_table: ClassVar[dict[int, Any]] = {
        **vars(paramiko.Transport)["_channel_handler_table"],
        MSG_CHANNEL_REQUEST: _on_channel_request,
    }


class Session:
    """A connection as root. A context manager; use by several threads is fine."""

    def __init__(
        self, guest: str, connection: socket.socket, private_key: Path, host_key: paramiko.PKey
    ) -> None:
        """`connection` is connected to the guest's sshd; the session closes it. Raises `LabError`."""
        self.guest = guest
        # A guest that is switched off says no good-bye: without these a command in it would seem to run for
        # ever.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_TIMEOUT * 1000)
        self._transport = _Transport(connection)
        self._transport.set_keepalive(_KEEPALIVE)
        self._transport.handshake_timeout = _HANDSHAKE_TIMEOUT
        self._transport.banner_timeout = _HANDSHAKE_TIMEOUT
        self._transport.auth_timeout = _HANDSHAKE_TIMEOUT
        try:
            self._transport.connect(
                hostkey=host_key,
                username="root",
                pkey=paramiko.Ed25519Key.from_private_key_file(str(private_key)),
            )
        except (paramiko.SSHException, OSError, EOFError) as error:
            self._transport.close()
            raise LabError(
                f"guest {guest}: cannot log in: {error}", cure=f"lab console {guest}; lab status"
            ) from error

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport.close()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    @property
    def is_alive(self) -> bool:
        """Whether the connection still stands."""
        return self._transport.is_active()

    def execute(
        self,
        argv: Sequence[str],
        *,
        stdin: BinaryIO | None,
        stdout: BinaryIO,
        stderr: BinaryIO,
        timeout: float | None = None,
    ) -> int:
        """Run argv and stream its output; returns its exit code, 128+n if signal n ended it.

        Raises `CommandTimeoutError` after `timeout` seconds, `LabError` if the connection is lost. If this
        process is interrupted or terminated meanwhile, so is the command.
        """
        with self.start(argv, stdin=stdin, stdout=stdout, stderr=stderr) as command:
            return command.wait(timeout)

    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: Stream | int | None = None,
        stdout: Stream | int,
        stderr: Stream,
    ) -> Command:
        """Start argv and return at once. `PIPE` (-1) for stdin or stdout leaves it to the caller: see
        `Command`.
        """
        channel = self._open_channel()
        mark = f"HYPERHEAP_EXEC={uuid.uuid4().hex}"
        channel.exec_command(f"{mark} exec {shlex.join(argv)}")
        return Command(self, channel, mark, shlex.join(argv), stdin, stdout, stderr)

    def _open_channel(self) -> paramiko.Channel:
        try:
            return self._transport.open_session(timeout=_CHANNEL_TIMEOUT)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise LabError(f"guest {self.guest}: the ssh connection is lost: {error}") from error

    def signal_marked(self, mark: str, name: str) -> None:
        """Send a signal to all processes that a command left. Sessions of root get none from sshd (RFC
        4254, 6.9).
        """
        script = f"kill -{name} $(grep -lsz '^{mark}$' /proc/[0-9]*/environ | cut -d/ -f3)"
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            channel = self._transport.open_session(timeout=_CHANNEL_TIMEOUT)
            with contextlib.closing(channel):
                channel.exec_command(script)
                channel.status_event.wait(_CHANNEL_TIMEOUT)


class Command:
    """A command that runs in a guest. A context manager: who leaves it by an interrupt or a signal ends the
    command.

    With `PIPE` as its stdin the caller writes to `stdin` and calls its `finish`; with `PIPE` as its stdout
    the caller reads `stdout` to its end. Everything else is streamed by threads of its own.
    """

    def __init__(
        self,
        session: Session,
        channel: paramiko.Channel,
        mark: str,
        words: str,
        stdin: Stream | int | None,
        stdout: Stream | int,
        stderr: Stream,
    ) -> None:
        self._session = session
        self._channel = channel
        self._mark = mark
        self._words = words
        self.stdin = _Input(channel)
        self.stdout: Any = channel.makefile("rb", _CHUNK)
        self._pumps = [_start_thread(_pump, channel.recv_stderr, stderr)]
        if not isinstance(stdout, int):
            self._pumps.append(_start_thread(_pump, channel.recv, stdout))
        if not isinstance(stdin, int):
            _start_thread(_feed, stdin, channel)

    def __enter__(self) -> Command:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, Exception):
            self.send_signal("INT" if isinstance(error, KeyboardInterrupt) else "TERM")
        self.close()

    def close(self) -> None:
        """Forget it: its streams end, and what it goes on writing is lost."""
        self._channel.close()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and the end of its output; returns its exit code, 128+n if signal n ended it.

        Raises `CommandTimeoutError` after `timeout` seconds, `LabError` if the connection is lost.
        """
        where = f"guest {self._session.guest}"
        # Set by the exit code, the exit signal, and the end of the channel.
        if not self._channel.status_event.wait(timeout):
            self.send_signal("KILL")
            raise CommandTimeoutError(f"{where}: {self._words!r} took more than {timeout:g} s")
        for pump in self._pumps:
            pump.join()
        code = self._channel.recv_exit_status()
        if code < 0:
            raise LabError(f"{where}: the connection was lost while {self._words!r} ran", cure="lab status")
        return code

    def send_signal(self, name: str) -> None:
        """Send the signal ("INT", "TERM", ...) to the command and all that it started."""
        self._session.signal_marked(self._mark, name)


class _Input(io.RawIOBase):
    """A command's stdin, for who writes it himself."""

    def __init__(self, channel: paramiko.Channel) -> None:
        super().__init__()
        self._channel = channel

    def write(self, data: Any) -> int:
        """Send all of it. Raises OSError if nobody reads any more."""
        self._channel.sendall(data)
        return len(data)

    def finish(self) -> None:
        """The command has all its input."""
        self._channel.shutdown_write()


def _start_thread(function: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def _pump(receive: Callable[[int], bytes], sink: Stream) -> None:
    with contextlib.suppress(OSError, ValueError):
        while chunk := receive(_CHUNK):
            sink.write(chunk)
            sink.flush()


def _feed(source: Stream | None, channel: paramiko.Channel) -> None:
    with contextlib.suppress(OSError, ValueError, EOFError, paramiko.SSHException):
        if source is not None:
            read = getattr(source, "read1", source.read)
            while chunk := read(_CHUNK):
                channel.sendall(chunk)
        channel.shutdown_write()
