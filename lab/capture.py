"""The packets of a link, as tcpdump sees them on the guest's tap, or without tcpdump as this module does."""

from __future__ import annotations

import os
import select
import shutil
import signal
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NoReturn

from lab import netns
from lab.errors import LabError, MissingError
from lab.packet_socket import PacketSocket
from lab.paths import LabPaths

_SNAPLEN = 262144
_ETHERNET = 1

#: Header of a pcap file (draft-ietf-opsawg-pcap): magic of microseconds, 2.4, zone, accuracy, snaplen, link.
_FILE_HEADER = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, _SNAPLEN, _ETHERNET)
_RECORD = struct.Struct("=IIII")


def run_tcpdump(
    lab: LabPaths, tap: str, *, file: Path | None, count: int | None, expression: Sequence[str]
) -> NoReturn:
    """Replace this process by a tcpdump of the tap. `file` None prints packets, "-" writes to stdout."""
    argv = ["tcpdump", "-i", tap, "-n", "-Z", "root"]
    argv += ["-l"] if file is None else ["-U", "-w", str(file)]
    argv += [] if count is None else ["-c", str(count)]
    inside = netns.prefix(lab.netns_file) if netns.is_usable(lab.netns_file) else []
    words = [*inside, *argv, "--", *expression]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(words[0], words)


def has_tcpdump() -> bool:
    """Whether this host has tcpdump."""
    return shutil.which("tcpdump") is not None


def need_tcpdump(what: str) -> None:
    """Raise `MissingError` unless this host has tcpdump, without which there is no `what`."""
    if not has_tcpdump():
        raise MissingError(f"{what} needs tcpdump", cure="apt-get install tcpdump")


def record(lab: LabPaths, tap: str, sink: BinaryIO, count: int | None) -> int:
    """Write the tap's packets to `sink` as pcap, until there are `count`, or SIGINT or SIGTERM comes; returns
    how many. Raises `LabError` if the tap goes.
    """
    stop = _StopSignals()
    try:
        packets = (
            netns.call(lab.netns_file, lambda: PacketSocket(tap))
            if netns.is_usable(lab.netns_file)
            else PacketSocket(tap)
        )
        with packets:
            return write_packets(packets, sink, count, stop)
    except OSError as error:
        raise LabError(f"capture of {tap}: {error.strerror or error}", cure="lab status") from error
    finally:
        stop.restore()


class _StopSignals:
    """SIGINT and SIGTERM, as a descriptor that becomes readable."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = {
            number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)
        }

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        os.write(self._writer, b"x")

    def fileno(self) -> int:
        return self._reader

    def restore(self) -> None:
        """As it was before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)


def write_packets(packets: PacketSocket, sink: BinaryIO, count: int | None, stop: _StopSignals | None) -> int:
    """Write what comes as pcap; returns how many packets, after `count` or when `stop` becomes readable."""
    sink.write(_FILE_HEADER)
    sink.flush()
    written = 0
    sources: list[PacketSocket | _StopSignals] = [packets] if stop is None else [packets, stop]
    while count is None or written < count:
        ready, _, _ = select.select(sources, [], [])
        if stop in ready:
            break
        while (count is None or written < count) and (received := packets.receive()) is not None:
            sink.write(format_record(time.time_ns(), received[1]))
            written += 1
        sink.flush()
    return written


def format_record(nanoseconds: int, frame: bytes) -> bytes:
    """A packet in a pcap file."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return _RECORD.pack(seconds, rest // 1000, min(len(frame), _SNAPLEN), len(frame)) + frame[:_SNAPLEN]
