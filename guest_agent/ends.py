"""The ends of this guest: connections that processes announced, listening sockets, and the region of ends.

The region file is the truth about ends that have a channel: processes work with it whether there is an agent
or not. The journal keeps what the region has no room for: addresses and program names.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from guest_agent.journal import Journal
from guest_agent.messages import Buffer, Counters, FastPath, Offer, Role
from guest_agent.messages import Path as WirePath
from guest_agent.records import Endpoint
from guest_agent.shim_protocol import ShimReason
from guest_agent.shims import Process
from guest_agent.sockdiag import TcpSocket, open_socket_inodes
from ivshmem import core

END_COUNT: Final = 4096

log = logging.getLogger("agent.ends")


@dataclass(slots=True, eq=False)
class End:
    """One end of a connection: a socket of this guest."""

    cookie: int
    local: Endpoint
    remote: Endpoint
    role: Role
    program: str
    pid: int
    uid: int
    inode: int
    """Of the socket, as /proc/PID/fd shows it."""
    announcers: set[Process] = field(default_factory=set)
    """Processes that wait for a grant or a verdict."""
    holders: set[Process] = field(default_factory=set)
    """Processes that were given the memory."""
    verdict: ShimReason | None = None
    index: int = -1
    """Of its entry in the region; -1: it has no channel."""
    channel: int = 0
    side: int = 0
    heap: int = 0
    """The heap's number; 0: memory of the guest."""
    peer_id: int = 0
    buffer: Buffer | None = None
    fast_path: FastPath = FastPath.SHARED_VM
    dying: bool = False
    """Its socket is destroyed; a process may still be inside its memory."""


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """A listening socket that a process told of."""

    cookie: int
    endpoint: Endpoint
    program: str
    pid: int


class EndTable:
    """All ends and listeners by cookie, over the region file `<run>/ends`."""

    def __init__(self, run: Path, journal: Journal) -> None:
        self.ends: dict[int, End] = {}
        self.listeners: dict[int, ListeningSocket] = {}
        self._journal = journal
        self.region, self.is_new = _open_region(run / "ends")
        self.epoch = self.region.adopt()

    def recover(self, live: Iterable[TcpSocket], heap_uuids: dict[int, str]) -> list[tuple[End, Counters]]:
        """Take over what an earlier agent knew and the kernel still has.

        Args:
            live: the sockets that the kernel tells of.
            heap_uuids: of the heaps that this guest has, by number.

        Returns:
            Cookie and last counters of each end whose socket was destroyed meanwhile. They are no longer
            here.
        """
        sockets = {each.cookie: each for each in live}
        still_open: set[int] | None = None
        for key, record in self._journal:
            kind, _, name = key.partition(" ")
            if kind == "end":
                self.ends[int(name)] = _end_from(int(name), record)
            elif kind == "listener" and int(name) not in sockets:
                self._journal.drop(key)
            elif kind == "listener":
                self.listeners[int(name)] = _listener_from(int(name), record)
        lost = []
        for stats in () if self.is_new else self.region:
            found = sockets.get(stats.cookie)
            end = self._adopt(stats, found, heap_uuids)
            if found is None:
                still_open = open_socket_inodes() if still_open is None else still_open
                if end.inode not in still_open:
                    lost.append((end, counters_of(stats, None)))
        for cookie, end in list(self.ends.items()):
            if cookie not in sockets and end.index < 0:
                self.forget(cookie)
        return lost

    def _adopt(self, stats: core.EndStats, found: TcpSocket | None, heap_uuids: dict[int, str]) -> End:
        """Return the end of an entry in the region; `found` is its socket."""
        end = self.ends.get(stats.cookie)
        if end is None:
            nowhere = Endpoint("0.0.0.0", 0)
            local, remote = (found.local, found.remote) if found else (nowhere, nowhere)
            uid, inode = (found.uid, found.inode) if found else (0, 0)
            end = End(stats.cookie, local, remote, Role.UNKNOWN, "?", 0, uid, inode)
            self.add(end)
        end.index, end.channel, end.side = stats.index, stats.channel, stats.side
        end.heap, end.peer_id = stats.heap, stats.peer_id
        length = core.channel_length(stats.ring_size)
        uuid = heap_uuids.get(stats.heap, "")
        end.buffer = Buffer(uuid, stats.offset, length, stats.ring_size, stats.generation)
        end.fast_path = FastPath.SHARED_HYPERVISOR if stats.heap else FastPath.SHARED_VM
        log.info("cookie=%d channel=%d heap=%d adopted", end.cookie, end.channel, end.heap)
        return end

    def add(self, end: End) -> None:
        """Take in an announced end."""
        self.ends[end.cookie] = end
        self._journal.put(f"end {end.cookie}", _end_record(end))

    def add_listener(self, listener: ListeningSocket) -> None:
        """Take in a listening socket."""
        self.listeners[listener.cookie] = listener
        record = {"at": list(listener.endpoint), "program": listener.program, "pid": listener.pid}
        self._journal.put(f"listener {listener.cookie}", record)

    def forget(self, cookie: int) -> None:
        """The socket is destroyed."""
        if self.ends.pop(cookie, None) is not None:
            self._journal.drop(f"end {cookie}")
        if self.listeners.pop(cookie, None) is not None:
            self._journal.drop(f"listener {cookie}")

    def put(self, end: End, offer: Offer, heap: int) -> None:
        """Give an end its entry in the region. OSError ENOSPC: the region is full near its place."""
        buffer = offer.buffer
        end.index = self.region.put(
            core.Offer(
                end.cookie,
                offer.channel,
                buffer.offset,
                buffer.ring,
                buffer.generation,
                heap,
                offer.side,
                offer.peer_id,
            )
        )
        end.channel, end.side, end.heap = offer.channel, offer.side, heap
        end.peer_id, end.buffer, end.fast_path = offer.peer_id, buffer, offer.fast_path

    def counters(self, end: End, found: TcpSocket | None) -> Counters:
        """Return what an end has moved; `found` is its socket, where known."""
        stats = self.region.stats(end.index) if end.index >= 0 else None
        return counters_of(stats, found)


def counters_of(stats: core.EndStats | None, found: TcpSocket | None) -> Counters:
    """Return an end's counters from its entry in the region and its socket, as far as there are any."""
    network_sent, network_received = (found.sent, found.received) if found is not None else (0, 0)
    if stats is None:
        return Counters(
            network_sent=network_sent,
            network_received=network_received,
            written=network_sent,
            read=network_received,
        )
    return Counters(
        shared_sent=stats.tx_shared,
        shared_received=stats.rx_shared,
        network_sent=network_sent,
        network_received=network_received,
        sent_path=_path(stats.tx_path),
        received_path=_path(stats.rx_path),
        written=stats.tx_shared + network_sent,
        read=stats.rx_shared + network_received,
    )


def _path(number: int) -> WirePath:
    return WirePath.SHARED if number == core.PATH_SHARED else WirePath.NETWORK


def _open_region(path: Path) -> tuple[core.Region, bool]:
    """Return the region in the file at `path`, made anew unless one of this version is there, and whether it
    was.
    """
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            size = os.fstat(fd).st_size
            if size >= core.region_length(END_COUNT):
                region = core.Region(mmap.mmap(fd, size))
                if region.check():
                    return region, False
        finally:
            os.close(fd)
    log.info("region=%s made", path)
    return _make_region(path), True


def _make_region(path: Path) -> core.Region:
    """Make a region in a new file, which takes the name when it is complete: processes may look at any
    time.
    """
    length = core.region_length(END_COUNT)
    scratch = path.with_name(path.name + ".new")
    scratch.unlink(missing_ok=True)
    fd = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.ftruncate(fd, length)
        region = core.Region.format(mmap.mmap(fd, length), END_COUNT)
        os.fchmod(fd, 0o666)  # every program of the guest may have the shim, whoever runs it
        scratch.replace(path)
    finally:
        os.close(fd)
    return region


def _end_record(end: End) -> dict[str, Any]:
    return {
        "local": list(end.local),
        "remote": list(end.remote),
        "role": end.role.value,
        "program": end.program,
        "pid": end.pid,
        "uid": end.uid,
        "inode": end.inode,
    }


def _end_from(cookie: int, record: dict[str, Any]) -> End:
    return End(
        cookie,
        Endpoint(*record["local"]),
        Endpoint(*record["remote"]),
        Role(record["role"]),
        record["program"],
        record["pid"],
        record["uid"],
        record["inode"],
    )


def _listener_from(cookie: int, record: dict[str, Any]) -> ListeningSocket:
    return ListeningSocket(cookie, Endpoint(*record["at"]), record["program"], record["pid"])
