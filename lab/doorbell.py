"""The doorbell server: introduces the guests of one heap to each other.

QEMU's ivshmem-doorbell device connects to a UNIX socket and is told, by protocol version 0 of QEMU's
docs/specs/ivshmem-spec.rst, who else has the heap. Every message is one native-endian signed 64-bit
value, some with one file descriptor as ancillary data:

    to a newcomer   0                      the protocol version
                    id                     its own peer id
                    -1    + heap file
                    peer  + eventfd        for each peer already there, `vectors` times, vector 0 first
                    id    + eventfd        its own vectors, the ends that interrupt it
    to the others   id    + eventfd        the newcomer's, `vectors` times
    and later       id                     that peer is gone

A client never says anything; its end of file says that the guest has lost the device. The eventfds carry
the interrupts themselves, from QEMU to QEMU: this server only hands them out, and doorbells that two guests
have exchanged go on ringing while it is away. QEMU does not reconnect to a restarted server.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import errno
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lab.errors import LabError
from lab.heap_file import HeapFile

PROTOCOL_VERSION = 0
MAX_PEER_ID = 0xFFFF
"""IVSHMEM_MAX_PEERS: the doorbell register has 16 bits for the peer."""
MAX_VECTORS = 256
"""The doorbell register has 8 bits for the vector."""

_RETRY_SECONDS = 0.05
"""Until a send is tried again that the kernel refused for want of something other than buffer space."""
_ACCEPT_PAUSE_SECONDS = 1.0
"""Until connections are accepted again after the process ran out of descriptors."""
_SHORT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)

log = logging.getLogger(__name__)


class DoorbellError(LabError):
    """The doorbell server cannot serve its socket."""


@dataclass(frozen=True)
class Peer:
    """One connected client, which is one doorbell device of one guest.

    `pid` is the QEMU process at the other end (SO_PEERCRED), so that what a guest says about its own peer id
    can be checked against something that it cannot forge.
    """

    id: int
    pid: int


@dataclass(frozen=True)
class _Message:
    """A message on its way to one client.

    `about` is the peer that it announces or buries, None in the preamble.
    """

    data: bytes
    about: int | None = None
    fd: int | None = None


class _Connection:
    """The server's side of one client: its socket, its eventfds and what it has not been told yet."""

    def __init__(self, peer: Peer, client: socket.socket, bells: list[int]) -> None:
        self.peer = peer
        self.client = client
        self.bells = bells
        self.queue: deque[_Message] = deque()
        self.known: set[int] = set()
        """Peers of which this client has been sent at least one eventfd."""
        self.writing = False
        """Waiting for the socket to take more."""
        self.retry: asyncio.TimerHandle | None = None

    def queue_peer(self, about: _Connection) -> None:
        """Announce a peer (perhaps this client itself): one eventfd per vector, in order."""
        data = struct.pack("=q", about.peer.id)
        self.queue.extend(_Message(data, about.peer.id, fd) for fd in about.bells)

    def queue_gone(self, peer_id: int) -> None:
        """Take back what was not sent about a peer, and bury it if anything was.

        So the queue is bounded by the number of peers, however slow the client and however many come and go.
        """
        self.queue = deque(m for m in self.queue if m.about != peer_id or m.fd is None)
        if peer_id in self.known:
            self.known.discard(peer_id)
            self.queue.append(_Message(struct.pack("=q", peer_id), peer_id))

    def send_queued(self) -> bool:
        """Send until done (True) or until the socket takes no more (False).

        Raises:
            OSError: the client is gone, or the kernel passes no more descriptors for now (ETOOMANYREFS).
        """
        while self.queue:
            message = self.queue[0]
            ancillary = []
            if message.fd is not None:
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=i", message.fd))]
            try:
                sent = self.client.sendmsg([message.data], ancillary, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return False
            # Linux takes eight bytes into a UNIX socket as one buffer or not at all.
            assert sent == len(message.data)
            self.queue.popleft()
            if message.fd is not None and message.about is not None:
                self.known.add(message.about)
        return True

    def close(self) -> None:
        self.queue.clear()
        self.client.close()
        for fd in self.bells:
            os.close(fd)
        self.bells = []


def _read_numbers(path: Path) -> list[int]:
    try:
        return sorted(int(line) for line in path.read_text().split())
    except (FileNotFoundError, ValueError):
        return []


def _runs_file(socket: Path) -> Path:
    return socket.with_name(socket.name + ".runs")


def have_met(socket: Path, one: int, other: int) -> bool:
    """Whether two peers of a doorbell socket can ring each other: one run of its server introduced both."""
    runs = _read_numbers(_runs_file(socket))
    return bisect.bisect(runs, one) == bisect.bisect(runs, other)


class DoorbellServer:
    """Serves one heap's doorbell socket on the running event loop.

    It keeps no task: the loop calls it when a socket is ready, and nothing in here waits for a client. The
    heap file stays the caller's, and must stay open as long as the server runs.

    The next peer id is remembered in `<socket>.next-id`, because guests keep the id and the doorbells that an
    earlier server gave them, and nobody may be taken for somebody else after a restart. `<socket>.runs` has
    the first id of each run: QEMU does not reconnect, so only peers of one run know each other's doorbells.
    """

    _listener: socket.socket | None = None
    _resume: asyncio.TimerHandle | None = None

    def __init__(
        self,
        heap: HeapFile,
        socket: Path,
        vectors: int,
        *,
        limit: int = 64,
        mode: int = 0o600,
        on_peer_gone: Callable[[int], None] | None = None,
    ) -> None:
        """Nothing happens before `start`.

        Args:
            heap: what the clients get to map.
            socket: path of the UNIX socket; a stale one is replaced.
            vectors: interrupts per client, 1 to 256, the same number as in the guests' device.
            limit: most clients at a time.
            mode: permissions of the socket.
            on_peer_gone: called in the loop with the id of each client that went away, but not by `close`.
        """
        if not 1 <= vectors <= MAX_VECTORS:
            raise ValueError(f"vectors must be 1 to {MAX_VECTORS}, not {vectors}")
        self._heap = heap
        self._path = socket
        self._vectors = vectors
        self._limit = limit
        self._mode = mode
        self._on_peer_gone = on_peer_gone
        self._connections: dict[int, _Connection] = {}
        self._peers: dict[int, Peer] = {}
        self._id_file = socket.with_name(socket.name + ".next-id")
        self._runs = _read_numbers(_runs_file(socket))
        self._run_begun = False

    @property
    def peers(self) -> Mapping[int, Peer]:
        """The connected clients by peer id; a live, read-only view."""
        return MappingProxyType(self._peers)

    async def start(self) -> None:
        """Listen. Clients may connect as soon as this returns.

        Raises:
            DoorbellError: the socket cannot be made, or another server answers on it.
            RuntimeError: started already.
        """
        if self._listener is not None:
            raise RuntimeError(f"doorbell server {self._path}: start() while it is listening")
        self._listener = _listen(self._path, self._mode)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)
        log.info("doorbell %s: serving %s with %d vectors", self._path, self._heap.path, self._vectors)

    async def close(self) -> None:
        """Stop serving and remove the socket; the guests' doorbells for each other go on. Twice is fine."""
        if self._listener is None:
            return
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        self._listener = None
        self._path.unlink(missing_ok=True)
        for connection in list(self._connections.values()):
            self._forget(connection)
        log.info("doorbell %s: closed", self._path)

    # accepting

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno not in _SHORT_OF_DESCRIPTORS:
                raise
            log.error("doorbell %s: cannot accept: %s; waiting", self._path, error.strerror)
            self._pause_accepting()
            return
        client.setblocking(False)
        try:
            self._admit(client)
        except DoorbellError as error:
            log.error("doorbell %s: client refused: %s", self._path, error)
            client.close()

    def _pause_accepting(self) -> None:
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        self._resume = loop.call_later(_ACCEPT_PAUSE_SECONDS, self._resume_accepting)

    def _resume_accepting(self) -> None:
        self._resume = None
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _admit(self, client: socket.socket) -> None:
        """Make a peer of a new client and introduce it to the others."""
        if len(self._connections) >= self._limit:
            raise DoorbellError(f"{self._limit} peers already")
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", credentials)[0]
        bells = _make_bells(self._vectors)
        try:
            peer = Peer(self._take_id(), pid)
        except DoorbellError:
            for fd in bells:
                os.close(fd)
            raise
        newcomer = _Connection(peer, client, bells)
        newcomer.queue.append(_Message(struct.pack("=q", PROTOCOL_VERSION)))
        newcomer.queue.append(_Message(struct.pack("=q", peer.id)))
        newcomer.queue.append(_Message(struct.pack("=q", -1), None, self._heap.fd))
        others = list(self._connections.values())
        for other in others:
            newcomer.queue_peer(other)
            other.queue_peer(newcomer)
        newcomer.queue_peer(newcomer)
        self._connections[peer.id] = newcomer
        self._peers[peer.id] = peer
        asyncio.get_running_loop().add_reader(client, self._hear, newcomer)
        log.info("doorbell %s: peer %d is pid %d, one of %d", self._path, peer.id, pid, len(self._peers))
        for connection in (newcomer, *others):
            self._flush(connection)

    def _take_id(self) -> int:
        """The next id in turn that is free; ids start at 1 and come again only after all the others."""
        try:
            following = int(self._id_file.read_text())
        except (FileNotFoundError, ValueError):
            following = 1
        while not 1 <= following <= MAX_PEER_ID or following in self._connections:
            following = following + 1 if 1 <= following < MAX_PEER_ID else 1
        try:
            self._note_run(following)
            scratch = self._id_file.with_name(self._id_file.name + ".new")
            scratch.write_text(f"{following + 1}\n")
            scratch.replace(self._id_file)
        except OSError as error:
            raise DoorbellError(f"cannot write {self._id_file}: {error.strerror}") from error
        return following

    def _note_run(self, first: int) -> None:
        """Remember where this run's ids begin. Once they wrap, whoever came before is a stranger."""
        if self._runs and first < self._runs[-1]:
            self._runs, self._run_begun = [], False
        if not self._run_begun:
            self._run_begun = True
            self._runs.append(first)
            _runs_file(self._path).write_text("".join(f"{number}\n" for number in self._runs))

    # talking

    def _flush(self, connection: _Connection) -> None:
        """Send what is queued for a client; what the socket does not take follows when it does."""
        if connection.peer.id not in self._connections:
            return
        loop = asyncio.get_running_loop()
        connection.retry = None
        try:
            done = connection.send_queued()
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS or error.errno in _SHORT_OF_DESCRIPTORS:
                if connection.writing:
                    loop.remove_writer(connection.client)
                    connection.writing = False
                connection.retry = loop.call_later(_RETRY_SECONDS, self._flush, connection)
            else:
                self._drop(connection, f"cannot send: {error.strerror}")
            return
        if not done and not connection.writing:
            loop.add_writer(connection.client, self._flush, connection)
        elif done and connection.writing:
            loop.remove_writer(connection.client)
        connection.writing = not done

    def _hear(self, connection: _Connection) -> None:
        """A client's socket is readable: it hung up, or it says something, which no client may."""
        try:
            data = connection.client.recv(64)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._drop(connection, error.strerror or str(error))
            return
        self._drop(connection, "spoke where only the server speaks" if data else "hung up")

    def _drop(self, connection: _Connection, why: str) -> None:
        """A client is gone: forget it, then tell the others and the owner."""
        peer_id = connection.peer.id
        self._forget(connection)
        log.info("doorbell %s: peer %d (pid %d) is gone: %s", self._path, peer_id, connection.peer.pid, why)
        for other in list(self._connections.values()):
            other.queue_gone(peer_id)
            self._flush(other)
        if self._on_peer_gone is not None:
            self._on_peer_gone(peer_id)

    def _forget(self, connection: _Connection) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(connection.client)
        if connection.writing:
            loop.remove_writer(connection.client)
        if connection.retry is not None:
            connection.retry.cancel()
        del self._connections[connection.peer.id]
        del self._peers[connection.peer.id]
        connection.close()


def _make_bells(vectors: int) -> list[int]:
    bells: list[int] = []
    try:
        for _ in range(vectors):
            bells.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
    except OSError as error:
        for fd in bells:
            os.close(fd)
        raise DoorbellError(
            f"cannot make {vectors} eventfds: {error.strerror}", cure="raise RLIMIT_NOFILE"
        ) from error
    return bells


def _listen(path: Path, mode: int) -> socket.socket:
    """A listening socket at `path` with permissions `mode` from its first moment on."""
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(_unix_socket())
        _remove_stale(path)
        try:
            # The inode that bind makes takes its mode from the socket: no moment with a wider one.
            os.fchmod(listener.fileno(), mode)
            listener.bind(os.fspath(path))
            listener.listen(64)
        except OSError as error:
            reason = error.strerror or str(error)
            raise DoorbellError(f"doorbell socket {path}: cannot listen: {reason}") from error
        undo.pop_all()
        return listener


def _unix_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def _remove_stale(path: Path) -> None:
    """Remove the socket that a server which died left behind; `DoorbellError` if one answers."""
    if path.exists() and not path.is_socket():
        raise DoorbellError(f"doorbell socket {path}: a file that is no socket is in the way")
    with _unix_socket() as probe:
        try:
            probe.connect(os.fspath(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
        except OSError as error:
            raise DoorbellError(f"doorbell socket {path}: {error.strerror or error}") from error
    raise DoorbellError(
        f"doorbell socket {path}: another server answers on it", cure="stop that server first"
    )
