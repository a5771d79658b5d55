"""What the kernel says about TCP sockets: by name, all of them, and when one is destroyed (sock_diag(7),
linux/inet_diag.h).

The kernel multicasts every destroyed socket with its cookie and its tcp_info. The multicast may be lost when
too many come at once; then `on_lost` says so, and `dump` tells who is left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from guest_agent.records import Endpoint, address_from_bytes

NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
SOL_NETLINK: Final = 270
NETLINK_ADD_MEMBERSHIP: Final = 1
NETLINK_DROP_MEMBERSHIP: Final = 2
TCP_DESTROY_GROUPS: Final = (1, 3)
"""SKNLGRP_INET_TCP_DESTROY and SKNLGRP_INET6_TCP_DESTROY."""
INET_DIAG_INFO: Final = 2
NLM_F_REQUEST: Final = 1
NLM_F_DUMP: Final = 0x300
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
SO_RCVBUFFORCE: Final = 33
TCP_LISTEN: Final = 10
RECEIVE_BUFFER: Final = 8 << 20
LIVE_STATES: Final = 0xFFF & ~(1 << 6)
"""All but TIME_WAIT and NEW_SYN_RECV, which are no sockets that a program has."""

_HEADER = struct.Struct("=IHHII")
_MESSAGE = struct.Struct("=BBBB")
_PORTS = struct.Struct(">HH")
_COOKIE = struct.Struct("=Q")
_TAIL = struct.Struct("=IIIII")
_ATTRIBUTE = struct.Struct("=HH")
_U64 = struct.Struct("=Q")

# Offsets in struct inet_diag_msg, behind the netlink header: family state timer retrans, then struct
# inet_diag_sockid.
_SPORT_AT = 4
_SOURCE_AT = 8
_DESTINATION_AT = 24
_COOKIE_AT = 44
_TAIL_AT = 52
_LENGTH = 72

# Offsets in struct tcp_info.
_BYTES_RECEIVED_AT = 128
_BYTES_SENT_AT = 200
_BYTES_RETRANSMITTED_AT = 208


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """A TCP socket as the kernel sees it. `sent` and `received` are payload bytes; a FIN counts as one
    received.
    """

    cookie: int
    state: int
    local: Endpoint
    remote: Endpoint
    uid: int
    inode: int
    sent: int
    received: int


def parse(body: bytes | memoryview) -> TcpSocket | None:
    """Return the socket that a struct inet_diag_msg with its attributes describes; None if it is too
    short.
    """
    if len(body) < _LENGTH:
        return None
    family, state, _, _ = _MESSAGE.unpack_from(body)
    size = 16 if family == socket.AF_INET6 else 4
    sport, dport = _PORTS.unpack_from(body, _SPORT_AT)
    source = address_from_bytes(bytes(body[_SOURCE_AT : _SOURCE_AT + size]))
    destination = address_from_bytes(bytes(body[_DESTINATION_AT : _DESTINATION_AT + size]))
    _, _, _, uid, inode = _TAIL.unpack_from(body, _TAIL_AT)
    (cookie,) = _COOKIE.unpack_from(body, _COOKIE_AT)
    sent, received = _parse_counters(body)
    return TcpSocket(
        cookie, state, Endpoint(source, sport), Endpoint(destination, dport), uid, inode, sent, received
    )


def parse_cookie(body: bytes | memoryview) -> int:
    """Return the cookie alone, which is much quicker; 0 if the message is too short."""
    return int(_COOKIE.unpack_from(body, _COOKIE_AT)[0]) if len(body) >= _LENGTH else 0


def _parse_counters(body: bytes | memoryview) -> tuple[int, int]:
    """Return payload bytes sent and received, of the tcp_info attribute; zeros where there is none."""
    at = _LENGTH
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        info = at + _ATTRIBUTE.size
        if kind == INET_DIAG_INFO and length - _ATTRIBUTE.size >= _BYTES_RETRANSMITTED_AT + 8:
            (received,) = _U64.unpack_from(body, info + _BYTES_RECEIVED_AT)
            (sent,) = _U64.unpack_from(body, info + _BYTES_SENT_AT)
            (again,) = _U64.unpack_from(body, info + _BYTES_RETRANSMITTED_AT)
            return max(0, sent - again), received
        at += (length + 3) & ~3
    return 0, 0


def _messages(data: bytes) -> Iterator[tuple[int, memoryview]]:
    """Yield (type, body) of each netlink message in a datagram."""
    view, at = memoryview(data), 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            return
        yield kind, view[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _request(family: int, states: int, sockid: bytes, flags: int) -> bytes:
    body = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0, states) + sockid
    return _HEADER.pack(_HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, flags, 1, 0) + body


def _open() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)


def dump() -> Iterator[TcpSocket]:
    """Yield all TCP sockets of this network namespace that a program has."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with _open() as netlink:
            netlink.send(_request(family, LIVE_STATES, bytes(48), NLM_F_REQUEST | NLM_F_DUMP))
            yield from _read_dump(netlink)


def _read_dump(netlink: socket.socket) -> Iterator[TcpSocket]:
    while True:
        for kind, body in _messages(netlink.recv(1 << 18)):
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                number = -struct.unpack_from("=i", body)[0]
                raise OSError(number, f"sock_diag: {os.strerror(number)}")
            found = parse(body)
            if found is not None:
                yield found


def find(local: Endpoint, remote: Endpoint, cookie: int) -> TcpSocket | None:
    """Return the socket with these endpoints, if it exists and is the one with this cookie."""
    family = socket.AF_INET6 if ":" in local.address else socket.AF_INET
    source = socket.inet_pton(family, local.address).ljust(16, b"\0")
    destination = socket.inet_pton(family, remote.address).ljust(16, b"\0")
    sockid = (
        _PORTS.pack(local.port, remote.port)
        + source
        + destination
        + struct.pack("=I", 0)
        + _COOKIE.pack(cookie)
    )
    with _open() as netlink:
        netlink.send(_request(family, 0xFFFFFFFF, sockid, NLM_F_REQUEST))
        for kind, body in _messages(netlink.recv(1 << 16)):
            if kind == SOCK_DIAG_BY_FAMILY:
                return parse(body)
    return None  # an error message: no such socket


def open_socket_inodes() -> set[int]:
    """Return the inodes of all sockets that processes have open, as far as this user may look.

    A socket whose connection was reset is in no table of the kernel that could be asked, and still has an
    owner, who may not have read everything yet. Looks at every descriptor of every process.
    """
    inodes = set()
    for process in os.scandir("/proc"):
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{process.name}/fd"):
                with contextlib.suppress(OSError, ValueError):
                    target = os.readlink(entry.path)  # noqa: PTH115
                    if target.startswith("socket:["):
                        inodes.add(int(target[8:-1]))
    return inodes


class DestroyWatch:
    """Tells of each TCP socket that is destroyed, as long as it is switched on.

    Args:
        is_wanted: whether a cookie is of interest; asked for each destroyed socket of the guest.
        on_destroyed: called with those that are.
        on_lost: some were lost: look with `dump`.
    """

    def __init__(
        self,
        *,
        is_wanted: Callable[[int], bool],
        on_destroyed: Callable[[TcpSocket], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._is_wanted = is_wanted
        self._on_destroyed = on_destroyed
        self._on_lost = on_lost
        self._netlink = _open()
        self._netlink.setblocking(False)
        with contextlib.suppress(PermissionError):
            self._netlink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        self._netlink.bind((0, 0))
        self._is_on = False

    def fileno(self) -> int:
        """What becomes readable when `take` has something to do."""
        return self._netlink.fileno()

    def switch(self, on: bool) -> None:
        """Listen to the kernel, or not: while nobody is of interest, other sockets cost nothing."""
        if on != self._is_on:
            self._is_on = on
            option = NETLINK_ADD_MEMBERSHIP if on else NETLINK_DROP_MEMBERSHIP
            for group in TCP_DESTROY_GROUPS:
                self._netlink.setsockopt(SOL_NETLINK, option, group)

    def take(self, events: int = 0) -> None:
        """Read what the kernel has said, in portions, so that nobody else waits long."""
        for _ in range(256):
            try:
                data = self._netlink.recv(8192)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._on_lost()
                return
            for kind, body in _messages(data):
                if kind == SOCK_DIAG_BY_FAMILY and self._is_wanted(parse_cookie(body)):
                    found = parse(body)
                    if found is not None:
                        self._on_destroyed(found)

    def close(self) -> None:
        """Listen no more."""
        self._netlink.close()
