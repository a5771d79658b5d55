"""A guest's voice: its serial console and its journal."""

from __future__ import annotations

import os
import re
import select
import socket
import sys
import termios
import time
import tty
from pathlib import Path
from typing import BinaryIO

from lab.errors import LabError, UserError
from lab.paths import LabPaths
from lab.topology import Topology

_CONTROL = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-_])|[\x00-\x08\x0b-\x1f\x7f]")

#: Ctrl-], as in telnet and virsh.
_DETACH = b"\x1d"

_TAIL_BYTES = 16384


def last_lines(log: Path, count: int = 15) -> tuple[str, ...]:
    """The last lines of a console log, cleaned of control sequences; empty if there is no log."""
    try:
        with log.open("rb") as handle:
            handle.seek(max(0, handle.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = handle.read().decode(errors="replace")
    except OSError:
        return ()
    lines = (_CONTROL.sub("", line).rstrip() for line in text.splitlines())
    return tuple(line for line in lines if line)[-count:]


def text_of(log: Path) -> str:
    """All of a console log, cleaned of control sequences; empty if there is no log."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return ""
    return "\n".join(_CONTROL.sub("", line).rstrip() for line in text.splitlines())


def attach(topology: Topology, guest: str) -> int:
    """Connect this terminal to the guest's serial console until Ctrl-] or the guest's end; returns the exit
    code of the verb.
    """
    topology.guest(guest)
    path = LabPaths(topology.name).guest(guest).console_socket
    if not sys.stdin.isatty():
        raise UserError("the console needs a terminal", cure=f"lab logs {guest} shows what the guest said")
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError as error:
            raise LabError(f"guest {guest} has no console: {error.strerror}", cure="lab status") from error
        saved = termios.tcgetattr(sys.stdin)
        try:
            # Not TCSAFLUSH, the default: what was typed ahead is meant for the guest.
            tty.setraw(sys.stdin, termios.TCSADRAIN)
            sys.stderr.write(f"console of {guest}; Ctrl-] detaches\r\n")
            sys.stderr.flush()
            # A shell that waits shows its prompt once more.
            connection.sendall(b"\r")
            _relay(connection)
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)
            sys.stderr.write("\r\n")
    return 0


def _relay(connection: socket.socket) -> None:
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    while True:
        ready, _, _ = select.select([connection, keyboard], [], [])
        if connection in ready:
            heard = connection.recv(4096)
            if not heard:
                return
            os.write(screen, heard)
        if keyboard in ready:
            typed = os.read(keyboard, 4096)
            before, detach, _ = typed.partition(_DETACH)
            connection.sendall(before)
            if detach or not typed:
                return


def show_log(
    topology: Topology, guest: str | None, *, source: str, out: BinaryIO, follow: bool = False
) -> None:
    """Write a log to `out`: source "console" or "agent" of a guest, or (guest None) "daemon" or "libvirt" of
    the lab.

    With `follow`, go on until interrupted. Raises `LabError` if there is no such log, `UserError` for an
    unknown source.
    """
    lab = LabPaths(topology.name)
    if guest is not None:
        topology.guest(guest)
        if source == "agent":
            _show_journal(topology, guest, out, follow=follow)
            return
    files = (
        {"daemon": lab.daemon_log, "libvirt": lab.libvirt_log}
        if guest is None
        else {"console": lab.guest(guest).console_log}
    )
    if source not in files:
        raise UserError(f"no log {source!r} of {guest or 'the lab'}; there are: {', '.join(files)}")
    _copy(files[source], out, follow=follow)


def _show_journal(topology: Topology, guest: str, out: BinaryIO, *, follow: bool) -> None:
    from lab import guest as guests

    argv = ["journalctl", "--no-pager", "--output=short-precise", "--unit=hyperheap-agent.service"]
    code = guests.execute(topology, guest, [*argv, *(["--follow"] if follow else [])], stdout=out, stderr=out)
    if code:
        raise LabError(f"guest {guest}: journalctl ended with {code}")


def _copy(log: Path, out: BinaryIO, *, follow: bool) -> None:
    try:
        handle = log.open("rb")
    except FileNotFoundError:
        raise LabError(f"there is no log {log}", cure="lab status") from None
    with handle:
        while True:
            while chunk := handle.read(65536):
                out.write(chunk)
            out.flush()
            if not follow:
                return
            time.sleep(0.2)
