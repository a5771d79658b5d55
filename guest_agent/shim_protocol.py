"""The packets between a shim and its agent, as `hyperheap/agent_protocol.h` defines them.

A test holds these offsets against the header.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from guest_agent.messages import Role
from guest_agent.records import Endpoint, address_from_bytes

VERSION: Final = 1

_MESSAGE: Final = struct.Struct("=HHIQ 24s24s QQQ IIIIIIII 32s24x")
_ADDRESS: Final = struct.Struct("=HHI16s")
SIZE: Final = _MESSAGE.size

ROLE_OF_SIDE: Final = {0: Role.CONNECT, 1: Role.ACCEPT, 2: Role.UNKNOWN}


class Type(IntEnum):
    """enum hh_message_type."""

    HELLO = 1
    ANNOUNCE = 2
    LISTEN = 3
    ATTACH = 4
    BELL = 5
    WELCOME = 16
    GRANT = 17
    VERDICT = 18


class ShimReason(IntEnum):
    """enum hh_reason."""

    NONE = 0
    EXTERNAL = 1
    POLICY = 2
    NO_MEMORY = 3
    UNKNOWN = 4
    NO_REGISTRY = 5


NO_ADDRESS: Final = Endpoint("0.0.0.0", 0)


@dataclass(frozen=True, slots=True)
class Packet:
    """struct hh_message. Fields that a message does not name are zero."""

    type: int
    pid: int = 0
    cookie: int = 0
    local: Endpoint = field(default=NO_ADDRESS)
    remote: Endpoint = field(default=NO_ADDRESS)
    offset: int = 0
    length: int = 0
    channel: int = 0
    end: int = 0
    heap: int = 0
    slot: int = 0
    peer_id: int = 0
    side: int = 0
    generation: int = 0
    agent_epoch: int = 0
    reason: int = 0
    program: str = ""

    def pack(self) -> bytes:
        """Return the packet's bytes."""
        return _MESSAGE.pack(
            VERSION,
            self.type,
            self.pid,
            self.cookie,
            _pack_endpoint(self.local),
            _pack_endpoint(self.remote),
            self.offset,
            self.length,
            self.channel,
            self.end,
            self.heap,
            self.slot,
            self.peer_id,
            self.side,
            self.generation,
            self.agent_epoch,
            self.reason,
            self.program.encode()[:31],
        )


def unpack(data: bytes) -> Packet | None:
    """Return the packet in `data`; None if it is of another size or version."""
    if len(data) != SIZE:
        return None
    values = iter(_MESSAGE.unpack(data))
    if next(values) != VERSION:
        return None
    return Packet(
        type=next(values),
        pid=next(values),
        cookie=next(values),
        local=_unpack_endpoint(next(values)),
        remote=_unpack_endpoint(next(values)),
        offset=next(values),
        length=next(values),
        channel=next(values),
        end=next(values),
        heap=next(values),
        slot=next(values),
        peer_id=next(values),
        side=next(values),
        generation=next(values),
        agent_epoch=next(values),
        reason=next(values),
        program=_unpack_name(next(values)),
    )


def _unpack_name(data: bytes) -> str:
    name = data.split(b"\0", 1)[0].decode(errors="replace")
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _pack_endpoint(endpoint: Endpoint) -> bytes:
    family = socket.AF_INET6 if ":" in endpoint.address else socket.AF_INET
    return _ADDRESS.pack(family, endpoint.port, 0, socket.inet_pton(family, endpoint.address))


def _unpack_endpoint(data: bytes) -> Endpoint:
    """Return the endpoint; an address of an unknown family is "no address"."""
    family, port, _, address = _ADDRESS.unpack(data)
    if family == socket.AF_INET:
        return Endpoint(address_from_bytes(address[:4]), port)
    if family == socket.AF_INET6:
        return Endpoint(address_from_bytes(address), port)
    return NO_ADDRESS
