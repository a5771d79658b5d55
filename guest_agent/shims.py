"""The agent's side of the socket on which shims talk to it: processes, their bells, packets with
descriptors.
"""

from __future__ import annotations

import array
import contextlib
import functools
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from guest_agent import shim_protocol
from guest_agent.device import ProcessFile
from guest_agent.loop import READ, WRITE, Loop
from guest_agent.shim_protocol import Packet, Type
from guest_agent.slots import Slots
from guest_agent.sockdiag import TcpSocket

MAX_PROCESSES: Final = 4096
MAX_UNSENT: Final = 4096
"""Packets that wait for a process which does not read them."""
PACKETS_A_TURN: Final = 64

log = logging.getLogger("agent.shims")


class Process:
    """A process with the shim, as long as its connection lasts."""

    def __init__(self, connection: socket.socket, pid: int, uid: int) -> None:
        self.connection = connection
        self.pid = pid
        self.uid = uid
        self.program = ""
        self.slot = 0
        """The number of its bell; 0 before its HELLO."""
        self.bell = -1
        """The eventfd on which it sleeps, which belongs to the slot."""
        self.files: dict[int, ProcessFile] = {}
        """Its open files of heaps, by heap number."""
        self.waiting: set[int] = set()
        """Cookies of the ends that it announced."""
        self.granted: set[int] = set()
        """Cookies of the ends whose memory it was given."""
        self.on_ready: Callable[[int], None] = _do_nothing
        self.unsent: deque[tuple[Packet, int]] = deque()

    def may_have(self, found: TcpSocket) -> bool:
        """Whether it may have a socket's memory: it is the user's who made the socket, or root's, or has it
        open.
        """
        if self.uid in (0, found.uid):
            return True
        wanted = f"socket:[{found.inode}]"
        try:
            with os.scandir(f"/proc/{self.pid}/fd") as entries:
                return any(Path(entry.path).readlink().name == wanted for entry in entries)
        except OSError:
            return False

    def ring(self) -> None:
        """Wake it."""
        if self.bell >= 0:
            with contextlib.suppress(BlockingIOError):  # the counter is full: it is awake, or will be
                os.eventfd_write(self.bell, 1)


def _do_nothing(events: int) -> None:
    """Stand for a handler that is not set yet."""


class ShimServer:
    """Serves `path`. Calls `on_packet(process, packet)` for what processes say, and `on_closed(process)`.

    HELLO is answered here: each process gets its bell.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        *,
        slots: Slots,
        epoch: int,
        on_packet: Callable[[Process, Packet], None],
        on_closed: Callable[[Process], None],
    ) -> None:
        self._loop = loop
        self._path = path
        self._slots = slots
        self._epoch = epoch
        self._on_packet = on_packet
        self._on_closed = on_closed
        self.processes: dict[int, Process] = {}
        """By the descriptor of the connection."""
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(str(path))
        path.chmod(0o666)
        self._listener.listen(128)
        loop.watch(self._listener.fileno(), READ, self._accept)

    def send(self, process: Process, packet: Packet, fd: int = -1) -> None:
        """Send a packet, with a descriptor if `fd` is one; the process gets a duplicate of it. Does not wait.

        A process that reads nothing for too long is disconnected.
        """
        process.unsent.append((packet, fd if fd < 0 else os.dup(fd)))
        if len(process.unsent) == 1:
            self._flush(process)
        elif len(process.unsent) > MAX_UNSENT:
            self._close(process, "it does not read")

    def close(self) -> None:
        """Disconnect all."""
        for process in list(self.processes.values()):
            self._close(process, "the agent ends")
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self, events: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            log.warning("accept failed reason=%r", error.strerror)
            return
        if len(self.processes) >= MAX_PROCESSES:
            log.warning("process refused reason=%r", f"{MAX_PROCESSES} processes already")
            connection.close()
            return
        connection.setblocking(False)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("=iII", credentials)
        process = Process(connection, pid, uid)
        self.processes[connection.fileno()] = process
        process.on_ready = functools.partial(self._on_ready, process)
        self._loop.watch(connection.fileno(), READ, process.on_ready)

    def _on_ready(self, process: Process, events: int) -> None:
        if events & WRITE:
            self._flush(process)
        for _ in range(PACKETS_A_TURN):
            if process.connection.fileno() not in self.processes:
                return
            try:
                data = process.connection.recv(shim_protocol.SIZE + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._close(process, error.strerror or str(error))
                return
            if not data:
                self._close(process, "it closed")
                return
            packet = shim_protocol.unpack(data)
            if packet is None:
                self._close(process, "not a packet of this version")
                return
            self._take(process, packet)

    def _take(self, process: Process, packet: Packet) -> None:
        if packet.type == Type.HELLO:
            self._welcome(process, packet)
        elif process.bell < 0:
            self._close(process, "no HELLO")
        else:
            self._on_packet(process, packet)

    def _welcome(self, process: Process, packet: Packet) -> None:
        process.program = packet.program
        if not process.slot:
            try:
                process.slot, process.bell = self._slots.take(process.pid)
            except OSError as error:
                log.warning("pid=%d program=%r no bell reason=%r", process.pid, process.program, str(error))
                self._close(process, "there is no bell for it")
                return
        welcome = Packet(Type.WELCOME, slot=process.slot, agent_epoch=self._epoch)
        self.send(process, welcome, process.bell)

    def _flush(self, process: Process) -> None:
        while process.unsent:
            packet, fd = process.unsent[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
            try:
                process.connection.sendmsg([packet.pack()], rights, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._close(process, error.strerror or str(error))
                return
            process.unsent.popleft()
            if fd >= 0:
                os.close(fd)
        events = READ | WRITE if process.unsent else READ
        self._loop.watch(process.connection.fileno(), events, lambda ready: self._on_ready(process, ready))

    def _close(self, process: Process, why: str) -> None:
        fd = process.connection.fileno()
        if self.processes.pop(fd, None) is None:
            return
        log.debug("pid=%d program=%r disconnected reason=%r", process.pid, process.program, why)
        self._loop.forget(fd)
        process.connection.close()
        for _, passed in process.unsent:
            if passed >= 0:
                os.close(passed)
        process.unsent.clear()
        for file in process.files.values():
            file.close()
        process.files.clear()
        if process.slot:
            self._slots.give_back(process.slot)
        self._on_closed(process)
