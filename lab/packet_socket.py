"""Whole Ethernet frames of one interface, by an AF_PACKET socket (packet(7)).

The kernel hands large frames over before it has cut them, with checksums that are not filled in yet. With
`offloads`, each frame comes with the header that says so (virtio_net_hdr of linux/virtio_net.h), and sending
it with that header passes the work on. VLAN tags, which the kernel takes out, are put back.
"""

from __future__ import annotations

import errno
import socket
import struct
from types import TracebackType
from typing import Final

_SOL_PACKET = 263
_PACKET_AUXDATA = 8
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23
_ETH_P_ALL = 3
_TP_STATUS_VLAN_VALID = 1 << 4
_TP_STATUS_VLAN_TPID_VALID = 1 << 6
_ETH_P_8021Q = 0x8100
_TAG_OFFSET = 12

#: struct tpacket_auxdata: status, len, snaplen, mac, net, vlan_tci, vlan_tpid.
_AUXDATA = struct.Struct("=IIIHHHH")

#: struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
_OFFLOADS = struct.Struct("=BBHHHH")
_NEEDS_CHECKSUM = 1

_LARGEST = 65536 + 64
_BUFFER = 4 << 20

#: What sending raises when the interface is gone or down, rather than busy.
GONE: Final = frozenset({errno.ENETDOWN, errno.ENXIO, errno.ENODEV})


class PacketSocket:
    """All frames of an interface. A context manager; non-blocking."""

    def __init__(self, interface: str, *, offloads: bool = False, incoming_only: bool = False) -> None:
        """Raises OSError: no such interface, or not root."""
        self._offloads = offloads
        # Bound to no protocol at first: frames of other interfaces must not come in meanwhile.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            if offloads:
                self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            if incoming_only:
                self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
            self._socket.bind((interface, _ETH_P_ALL))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> PacketSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor, for selectors."""
        return self._socket.fileno()

    def receive(self) -> tuple[bytes, bytes] | None:
        """The next frame's offload header (empty without `offloads`) and the frame; None if there is none
        yet. Raises OSError if the interface is gone.
        """
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_LARGEST, 256)
        except BlockingIOError:
            return None
        size = _OFFLOADS.size if self._offloads else 0
        header, frame = data[:size], data[size:]
        for level, kind, value in ancillary:
            if level == _SOL_PACKET and kind == _PACKET_AUXDATA and len(value) >= _AUXDATA.size:
                return put_tag_back(header, frame, value)
        return header, frame

    def send(self, header: bytes, frame: bytes) -> bool:
        """Send a frame; false if the interface has no room for it. Raises OSError if it is gone."""
        try:
            self._socket.send(header + frame)
        except OSError as error:
            if error.errno in GONE:
                raise
            return False
        return True


def put_tag_back(header: bytes, frame: bytes, auxdata: bytes) -> tuple[bytes, bytes]:
    """The header and frame with the VLAN tag that a tpacket_auxdata tells of, if it does."""
    status, *_, tci, tpid = _AUXDATA.unpack_from(auxdata)
    if not status & _TP_STATUS_VLAN_VALID or len(frame) < _TAG_OFFSET:
        return header, frame
    protocol = tpid if status & _TP_STATUS_VLAN_TPID_VALID else _ETH_P_8021Q
    frame = frame[:_TAG_OFFSET] + struct.pack("!HH", protocol, tci) + frame[_TAG_OFFSET:]
    if header:
        flags, gso, header_length, gso_size, start, offset = _OFFLOADS.unpack(header)
        if flags & _NEEDS_CHECKSUM:
            start += 4
        header = _OFFLOADS.pack(
            flags, gso, header_length + 4 if header_length else 0, gso_size, start, offset
        )
    return header, frame


def index_of(interface: str) -> int | None:
    """The number of an interface of this namespace, which no later one of the same name has; or None."""
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return None
