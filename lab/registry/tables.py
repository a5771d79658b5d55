"""The registry's tables: guests, listeners, connections and their ends, and the indexes over them.

Plain records and lookups. What they mean and when they change is `core`'s business.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from guest_agent.messages import Counters, FastPath, HeapDevice, Reason, Role
from guest_agent.records import Endpoint

HISTORY = 1000
"""Ended connections that are remembered."""

WILDCARDS = frozenset({"0.0.0.0", "::"})


class Presence(Enum):
    """What the registry knows about a guest and its agent."""

    ABSENT = "absent"
    """Nothing was heard since this registry began."""
    TALKING = "connected"
    """An agent said Hello in the open conversation and keeps its lease."""
    SILENT = "silent"
    """The guest lives, its agent does not speak: channels go on, its endpoints are withdrawn."""
    DEAD = "dead"
    """The guest is gone, and with it all that it had."""


class State(Enum):
    """Where a connection stands."""

    ANNOUNCED = "announced"
    """One end is known; the other may follow."""
    NETWORK = "network"
    """It stays on the network for ever, for the reason in `detail`."""
    OFFERED = "offered"
    """Both ends were offered a channel."""
    SHARED = "shared"
    """Programs of both ends have the channel's memory."""
    CLOSING = "closing"
    """One end of several is gone."""
    ENDED = "ended"


@dataclass(slots=True)
class Guest:
    """A guest of the lab, as configured and as heard."""

    name: str
    addresses: frozenset[str]
    presence: Presence = Presence.ABSENT
    session: int | None = None
    greeted: bool = False
    """Hello was said in this conversation."""
    boot_id: str = ""
    agent_version: str = ""
    agent_pid: int = 0
    heaps: dict[str, HeapDevice] = field(default_factory=dict)
    """What it has mapped, by heap name."""
    last_heard: float = 0.0
    askers: set[str] = field(default_factory=set)
    """Guests that were given an answer about this one and must be told when that changes."""
    listeners: dict[int, Listener] = field(default_factory=dict)
    ends: dict[int, Connection] = field(default_factory=dict)
    """Connections by the socket cookie of the end that is here."""
    refused: int = 0
    """Messages that were not this guest's to say, or over its limits."""


@dataclass(slots=True)
class Listener:
    """A listening socket."""

    guest: str
    cookie: int
    endpoint: Endpoint
    program: str
    pid: int
    confirmed: bool = True


@dataclass(slots=True)
class End:
    """One end of a connection: a socket in a guest."""

    guest: str
    cookie: int
    local: Endpoint
    remote: Endpoint
    role: Role
    program: str
    pid: int
    side: int = -1
    attached: bool = False
    held: bool = False
    """The agent has been given the channel of the connection."""
    confirmed: bool = True
    """Told in the guest's present conversation."""
    gone: bool = False
    counters: Counters = field(default_factory=Counters)


Key = tuple[str, Endpoint, Endpoint]


def key_of(guest: str, local: Endpoint, remote: Endpoint) -> Key:
    """Return what both ends of a connection have in common: the pair of endpoints in a fixed order.

    Loopback addresses mean something else in each guest, so the guest is part of the key there.
    """
    scope = guest if is_loopback(local.address) or is_loopback(remote.address) else ""
    return (scope, local, remote) if local <= remote else (scope, remote, local)


def is_loopback(address: str) -> bool:
    """Whether an address in canonical form is the guest's own, whoever the guest is."""
    return address.startswith("127.") or address == "::1"


@dataclass(slots=True)
class Connection:
    """A TCP connection of the lab, known by one of its ends or both."""

    number: int
    key: Key
    where: FastPath
    since: float
    state: State = State.ANNOUNCED
    reason: Reason | None = None
    """Why it stays on the network."""
    detail: str = ""
    ends: list[End] = field(default_factory=list)
    channel: int = 0
    """0: none."""
    heap: str = ""
    """The name of the channel's heap; "" for memory of the guest itself."""
    ring: int = 0
    generation: int = 0
    ended: float = 0.0

    def end_at(self, guest: str, cookie: int) -> End | None:
        """Return the end that is this socket."""
        for end in self.ends:
            if end.cookie == cookie and end.guest == guest:
                return end
        return None

    def end_with_local(self, local: Endpoint) -> End | None:
        """Return the end whose own address this is."""
        for end in self.ends:
            if end.local == local:
                return end
        return None

    def other(self, end: End) -> End | None:
        """Return the end that is not this one."""
        for candidate in self.ends:
            if candidate is not end:
                return candidate
        return None


class Tables:
    """All that the registry knows, with the indexes that its questions need."""

    def __init__(self) -> None:
        self.guests: dict[str, Guest] = {}
        self.connections: dict[int, Connection] = {}
        """Those that have not ended, by number."""
        self.channels: dict[int, Connection] = {}
        self.history: OrderedDict[int, Connection] = OrderedDict()
        self._by_key: dict[Key, Connection] = {}
        self._owner: dict[str, str] = {}

    def put_guest(self, name: str, addresses: frozenset[str]) -> Guest:
        """Add a guest or change its addresses."""
        guest = self.guests.get(name)
        if guest is None:
            guest = self.guests[name] = Guest(name, addresses)
        guest.addresses = addresses
        self._index_owners()
        return guest

    def drop_guest(self, name: str) -> None:
        """Forget a guest that has no ends any more."""
        del self.guests[name]
        self._index_owners()

    def owner_of(self, address: str) -> Guest | None:
        """Return the guest to which the lab gave an address; loopback addresses belong to none."""
        name = self._owner.get(address)
        return None if name is None else self.guests[name]

    def open_connection(self, key: Key) -> Connection | None:
        """Return the newest connection with these endpoints."""
        return self._by_key.get(key)

    def put_connection(self, connection: Connection) -> None:
        """Add a connection. It hides an older one with the same endpoints, whose ends stay findable by
        cookie.
        """
        self.connections[connection.number] = connection
        self._by_key[connection.key] = connection

    def retire(self, connection: Connection) -> None:
        """Move a connection to the history."""
        self.connections.pop(connection.number, None)
        if self._by_key.get(connection.key) is connection:
            del self._by_key[connection.key]
        if connection.channel:
            self.channels.pop(connection.channel, None)
        self.history[connection.number] = connection
        while len(self.history) > HISTORY:
            self.history.popitem(last=False)

    def listener_at(self, guest: Guest, endpoint: Endpoint) -> Listener | None:
        """Return the listener of a guest that accepts connections to an endpoint."""
        for listener in guest.listeners.values():
            at = listener.endpoint
            if at.port == endpoint.port and (at.address == endpoint.address or at.address in WILDCARDS):
                return listener
        return None

    def all_connections(self) -> Iterator[Connection]:
        """Those in the history, oldest first, then the others."""
        yield from self.history.values()
        yield from self.connections.values()

    def _index_owners(self) -> None:
        self._owner = {address: guest.name for guest in self.guests.values() for address in guest.addresses}
