"""What an agent and the registry say to each other: one frozen dataclass per message.

`wire` turns them into frames and back and tells when each is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Final

from .records import U16, U32, U64, Address, Endpoint, Name, Record, Side, Text


class FastPath(Enum):
    """Where the two ends of a connection are, which decides the memory they may share."""

    EXTERNAL = "External"
    SHARED_HYPERVISOR = "SharedHypervisor"
    SHARED_OS = "SharedOS"
    SHARED_VM = "SharedVM"


class Path(Enum):
    """What carries the bytes of a direction."""

    SHARED = "shared"
    NETWORK = "network"


class Reason(Enum):
    """Why a connection stays on the network."""

    EXTERNAL = "external"
    POLICY = "policy"
    NO_MEMORY = "no-memory"
    LIMIT = "limit"


class Fate(Enum):
    """What became of the other end: TCP tells that it closed, nothing tells that its guest vanished."""

    CLOSED = "closed"
    VANISHED = "vanished"


class Role(Enum):
    """How a socket came to its connection."""

    CONNECT = "connect"
    ACCEPT = "accept"
    UNKNOWN = "unknown"


MESSAGES: Final[dict[int, type[Message]]] = {}


class Message(Record):
    """A record with a type number, so that it can be a frame of its own."""

    __slots__ = ()
    code: ClassVar[int]

    def __init_subclass__(cls, code: int | None = None) -> None:
        # dataclass(slots=True) makes the class a second time, without the keyword: `code` is there then.
        if code is not None:
            cls.code = code
        MESSAGES[cls.code] = cls


# --- records inside messages --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeapDevice(Record):
    """A heap as its member guest sees it. `peer_id` is the doorbell server's number for the device."""

    uuid: Name
    name: Name
    peer_id: U32
    vectors: U32
    device: Text


@dataclass(frozen=True, slots=True)
class Counters(Record):
    """What one end has moved: bytes per path and direction, and the RWP of both directions as stream
    positions.
    """

    shared_sent: U64 = 0
    shared_received: U64 = 0
    network_sent: U64 = 0
    network_received: U64 = 0
    sent_path: Path = Path.NETWORK
    received_path: Path = Path.NETWORK
    written: U64 = 0
    read: U64 = 0


@dataclass(frozen=True, slots=True)
class EndStats(Record):
    """The counters of the end with this socket cookie."""

    cookie: U64
    counters: Counters


@dataclass(frozen=True, slots=True)
class Buffer(Record):
    """A range of a heap that is leased to a channel. Memory of the guest itself has `heap` "" and `offset` 0.

    `ring` is the size in bytes of each direction's ring; `length` is all of the buffer, control page
    included.
    """

    heap: Name
    offset: U64
    length: U64
    ring: U32
    generation: U32


# --- opening a conversation ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reset(Message, code=0x01):
    """Agent: a new conversation starts here."""

    session: U64


@dataclass(frozen=True, slots=True)
class Ready(Message, code=0x02):
    """Registry: the conversation `session` is open."""

    session: U64


@dataclass(frozen=True, slots=True)
class Call(Message, code=0x03):
    """Registry: whoever hears this, open a conversation."""


# --- agent to registry --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello(Message, code=0x10):
    """The first message of a conversation. `boot_id` is the kernel's: another one means that nothing was
    kept.
    """

    version: Name
    boot_id: Name
    pid: U32
    heaps: tuple[HeapDevice, ...]


@dataclass(frozen=True, slots=True)
class Settled(Message, code=0x11):
    """All listeners, announcements and held channels of the time of Hello have been told."""


@dataclass(frozen=True, slots=True)
class Ping(Message, code=0x12):
    """Renews the lease of all that the agent registered."""

    sequence: U32


@dataclass(frozen=True, slots=True)
class Listen(Message, code=0x13):
    """A program listens at this endpoint."""

    cookie: U64
    endpoint: Endpoint
    program: Text
    pid: U32


@dataclass(frozen=True, slots=True)
class Unlisten(Message, code=0x14):
    """The listener with this cookie is no more."""

    cookie: U64


@dataclass(frozen=True, slots=True)
class Lookup(Message, code=0x15):
    """Where is this endpoint? Port 0 asks for the address."""

    id: U32
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Announce(Message, code=0x16):
    """A program has this connection and could share memory for it."""

    cookie: U64
    local: Endpoint
    remote: Endpoint
    role: Role
    program: Text
    pid: U32


@dataclass(frozen=True, slots=True)
class Hold(Message, code=0x17):
    """After Hello: this announced connection has a channel already, which goes on."""

    cookie: U64
    channel: U64
    side: Side
    fast_path: FastPath
    buffer: Buffer


@dataclass(frozen=True, slots=True)
class Attached(Message, code=0x18):
    """The program of this end has the channel's memory."""

    channel: U64
    cookie: U64


@dataclass(frozen=True, slots=True)
class Refused(Message, code=0x19):
    """The agent cannot give the channel to its program: the connection stays on TCP."""

    channel: U64
    cookie: U64
    reason: Text


@dataclass(frozen=True, slots=True)
class Gone(Message, code=0x1A):
    """The socket is destroyed, and nobody at this end uses the channel's memory any more."""

    cookie: U64
    reason: Text
    counters: Counters


@dataclass(frozen=True, slots=True)
class Stats(Message, code=0x1B):
    """Answers Query; the last part has `last`."""

    id: U32
    ends: tuple[EndStats, ...]
    last: bool


# --- registry to agent --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Welcome(Message, code=0x30):
    """Answers Hello. The agent must be heard every `lease_seconds`.

    A shim announces a connection after `upgrade_calls` data calls or `upgrade_bytes` bytes; 0 and 0: at once.
    """

    guest: Name
    lab: Name
    epoch: U64
    lease_seconds: U32
    upgrade_calls: U32
    upgrade_bytes: U64


@dataclass(frozen=True, slots=True)
class Pong(Message, code=0x31):
    """Answers Ping."""

    sequence: U32


@dataclass(frozen=True, slots=True)
class Answer(Message, code=0x32):
    """Answers Lookup; holds until a Withdraw with a higher epoch."""

    id: U32
    where: FastPath
    epoch: U64


@dataclass(frozen=True, slots=True)
class Withdraw(Message, code=0x33):
    """Forget the answers older than `epoch` for an address and port. Port 0: all ports; address null: all."""

    address: Address | None
    port: U16
    epoch: U64


@dataclass(frozen=True, slots=True)
class Offer(Message, code=0x34):
    """Memory for the announced connection `cookie`. `peer_id`: the other guest's at the doorbell server."""

    channel: U64
    cookie: U64
    side: Side
    fast_path: FastPath
    buffer: Buffer
    peer_id: U32


@dataclass(frozen=True, slots=True)
class Verdict(Message, code=0x35):
    """The announced connection will not get memory."""

    cookie: U64
    where: FastPath
    reason: Reason
    detail: Text


@dataclass(frozen=True, slots=True)
class Release(Message, code=0x36):
    """Both ends have let go of the channel; its memory will be used for others."""

    channel: U64


@dataclass(frozen=True, slots=True)
class PeerGone(Message, code=0x37):
    """The other end of the channel will never write or read again."""

    channel: U64
    fate: Fate


@dataclass(frozen=True, slots=True)
class Want(Message, code=0x38):
    """Move what this end sends to `path`."""

    cookie: U64
    path: Path


@dataclass(frozen=True, slots=True)
class Query(Message, code=0x39):
    """Send Stats with this id."""

    id: U32
