"""The same command in several guests at once, with each line of output under its guest's name."""

from __future__ import annotations

import contextlib
import io
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, BinaryIO

from lab import guest
from lab.errors import LabError
from lab.ssh_session import Command, CommandTimeoutError, Session, Stream
from lab.topology import Topology

#: Exit codes of a guest whose command has none: it took too long (as timeout(1) says), or the guest is gone
#: (as ssh(1) says).
EXIT_TIMEOUT = 124
EXIT_LOST = 255

_CHUNK = 65536

#: A line this long is cut, so that what never ends its line is seen.
_MAX_LINE = 65536

#: Chunks of input that a guest may be behind the fastest.
_AHEAD = 64
_PAUSE = 0.2

#: The words before a line of a guest: its name, in a column as wide as the widest.
Prefix = Callable[[str], bytes]


class Crowd:
    """Sessions to several guests. A context manager; entering logs in to all at the same time.

    Raises `UserError` for an unknown guest, `LabError` if one cannot be reached: then nothing ran anywhere.
    """

    def __init__(self, topology: Topology, names: Sequence[str], prefix: Prefix | None = None) -> None:
        self.names = tuple(dict.fromkeys(names))
        for name in self.names:
            topology.guest(name)
        self._topology = topology
        self._prefix = prefix if prefix is not None else plain_prefix(self.names)
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Crowd:
        self._log_in(self.names)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session in self._sessions.values():
            session.close()

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: Stream | None = None,
        stdout: BinaryIO,
        stderr: BinaryIO,
        timeout: float | None = None,
    ) -> dict[str, int]:
        """Run argv in every guest and wait for all; returns the exit codes by guest.

        `stdin` goes to all of them. A guest that is lost, or takes more than `timeout` seconds, says so in
        `stderr` and has a code of its own (`EXIT_LOST`, `EXIT_TIMEOUT`). An interrupt ends the command in
        every guest.
        """
        self._log_in([name for name in self.names if not self._sessions[name].is_alive])
        deadline = None if timeout is None else time.monotonic() + timeout
        taps = {name: _Tap() for name in self.names} if stdin is not None else {}
        writers = {name: (self._writer(name, stdout), self._writer(name, stderr)) for name in self.names}
        commands: dict[str, Command] = {}
        codes: dict[str, int] = {}
        try:
            for name, (out, errors) in writers.items():
                commands[name] = self._sessions[name].start(
                    argv, stdin=taps.get(name), stdout=out, stderr=errors
                )
            if stdin is not None:
                threading.Thread(target=_pour, args=(stdin, list(taps.values())), daemon=True).start()
            for name, command in commands.items():
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                codes[name] = self._wait(name, command, left, timeout, stderr)
                if name in taps:
                    taps[name].shut()
        except BaseException as error:
            _end(list(commands.values()), "INT" if isinstance(error, KeyboardInterrupt) else "TERM")
            raise
        finally:
            for command in commands.values():
                command.close()
            for each in (writer for pair in writers.values() for writer in pair):
                each.finish()
            for tap in taps.values():
                tap.shut()
        return codes

    def _log_in(self, names: Sequence[str]) -> None:
        if not names:
            return
        with ThreadPoolExecutor(len(names)) as pool:
            opening = {name: pool.submit(guest.open_session, self._topology, name) for name in names}
        failures = []
        for name, session in opening.items():
            if (failure := session.exception()) is not None:
                failures.append(failure)
            else:
                self._sessions[name] = session.result()
        if failures:
            for session_ in self._sessions.values():
                session_.close()
            raise failures[0]

    def _wait(
        self, name: str, command: Command, left: float | None, timeout: float | None, stderr: BinaryIO
    ) -> int:
        try:
            return command.wait(left)
        except CommandTimeoutError:
            self._writer(name, stderr).write_line(f"took more than {timeout:g} s")
            return EXIT_TIMEOUT
        except LabError as error:
            self._writer(name, stderr).write_line(error.message)
            return EXIT_LOST

    def _writer(self, name: str, sink: BinaryIO) -> _Writer:
        return _Writer(sink, self._prefix(name), self._lock)


def worst(codes: Mapping[str, int]) -> int:
    """The worst exit code: the greatest."""
    return max(codes.values(), default=0)


def plain_prefix(names: Sequence[str]) -> Prefix:
    """`client   | ` and so on."""
    width = max(map(len, names), default=0)
    return lambda name: f"{name:<{width}} | ".encode()


def _end(commands: Sequence[Command], signal: str) -> None:
    if not commands:
        return
    with ThreadPoolExecutor(len(commands)) as pool, contextlib.suppress(LabError):
        list(pool.map(lambda command: command.send_signal(signal), commands))


class _Writer(io.RawIOBase):
    """Whole lines with a prefix; lines of several writers never mix."""

    def __init__(self, sink: BinaryIO, prefix: bytes, lock: threading.Lock) -> None:
        super().__init__()
        self._sink = sink
        self._prefix = prefix
        self._lock = lock
        self._rest = b""

    def write(self, data: Any) -> int:
        """Take bytes; show the lines that are complete."""
        *lines, self._rest = (self._rest + bytes(data)).split(b"\n")
        if len(self._rest) > _MAX_LINE:
            lines.append(self._rest)
            self._rest = b""
        self._show(lines)
        return len(data)

    def write_line(self, text: str) -> None:
        """Show a line of our own."""
        self._show([text.encode()])

    def finish(self) -> None:
        """Show what no newline ended."""
        rest, self._rest = self._rest, b""
        if rest:
            self._show([rest])

    def _show(self, lines: Sequence[bytes]) -> None:
        if lines:
            with self._lock:
                self._sink.write(b"".join(self._prefix + line + b"\n" for line in lines))
                self._sink.flush()


class _Tap(io.RawIOBase):
    """One guest's share of the common input."""

    def __init__(self) -> None:
        super().__init__()
        self._chunks: queue.Queue[bytes] = queue.Queue(_AHEAD)
        self._shut = threading.Event()

    def read(self, size: int = -1) -> bytes:
        """The next piece, empty at the end."""
        while not self._shut.is_set():
            with contextlib.suppress(queue.Empty):
                return self._chunks.get(timeout=_PAUSE)
        return b""

    def put(self, chunk: bytes) -> None:
        """Wait until there is room, unless nobody reads any more."""
        while not self._shut.is_set():
            with contextlib.suppress(queue.Full):
                self._chunks.put(chunk, timeout=_PAUSE)
                return

    def shut(self) -> None:
        """The command has ended: it reads no more."""
        self._shut.set()


def _pour(source: Stream, taps: Sequence[_Tap]) -> None:
    read = getattr(source, "read1", source.read)
    with contextlib.suppress(OSError, ValueError):
        while chunk := read(_CHUNK):
            for tap in taps:
                tap.put(chunk)
    for tap in taps:
        tap.put(b"")
