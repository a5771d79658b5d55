"""A registry with a real broker and guests that are lists of messages."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TypeVar

from guest_agent.messages import (
    Announce,
    HeapDevice,
    Hello,
    Message,
    Offer,
    Ready,
    Reset,
    Role,
    Settled,
    Welcome,
)
from guest_agent.records import Endpoint
from lab.broker import HeapBroker
from lab.heap_file import HeapFile
from lab.registry.core import Registry
from lab.registry.decision import HeapMembership, Policy, Rules
from lab.registry.tables import Connection

M = TypeVar("M", bound=Message)

RING = 4096
ADDRESSES = {
    "client": frozenset({"10.77.0.11", "fd77::11"}),
    "server": frozenset({"10.77.0.12", "fd77::12"}),
    "outsider": frozenset({"10.77.0.13"}),
}
PEER_IDS = {"client": 1, "server": 2}


class Bench:
    """One lab: `client` and `server` share the heap `shared`, `outsider` does not. Time is `now`."""

    def __init__(self, directory: Path, *, size: int = 1 << 20, policy: Policy | None = None) -> None:
        self.directory = directory
        self.size = size
        self.now = 100.0
        self.sent: dict[str, list[Message]] = defaultdict(list)
        self.policy = policy or Policy(local_ring=RING)
        self.boot_ids = {name: f"boot of {name}" for name in ADDRESSES}
        self.cookies = 1000
        self.start()

    def start(self) -> None:
        """Begin as a daemon does that finds what an earlier one left."""
        self.file = HeapFile.ensure(self.directory / "heap", self.size)
        self.broker = HeapBroker(self.directory / "leases")
        self.uuid = self.broker.open_heap("shared", self.file)
        self.registry = Registry(
            "lab",
            self.broker,
            clock=lambda: self.now,
            send=lambda guest, message: self.sent[guest].append(message),
        )
        membership = HeapMembership("shared", frozenset({"client", "server"}), RING)
        self.registry.configure(ADDRESSES, Rules({"shared": membership}, self.policy))

    def restart(self) -> None:
        """Die and begin again, with nothing but the files."""
        self.sent.clear()
        self.start()

    def connect(self, name: str, *, settle: bool = True) -> None:
        """Let a guest's agent open a conversation."""
        self.registry.port_opened(name)
        self.say(name, Reset(hash((name, self.now)) & 0xFFFF))
        assert isinstance(self.sent[name].pop(), Ready)
        devices = ()
        if name in PEER_IDS:
            devices = (HeapDevice(self.uuid, "shared", PEER_IDS[name], 32, "/dev/hyperheap0"),)
        self.say(name, Hello("0.1.0", self.boot_ids[name], 1, devices))
        assert self.take(name, Welcome)
        if settle:
            self.say(name, Settled())

    def say(self, name: str, message: Message) -> None:
        """Let a guest's agent say something."""
        self.registry.receive(name, message)

    def take(self, name: str, kind: type[M]) -> M | None:
        """Return what was last sent to a guest of this kind, and forget all that was sent to it."""
        found = [message for message in self.sent.pop(name, []) if isinstance(message, kind)]
        return found[-1] if found else None

    def announce(self, name: str, local: Endpoint, remote: Endpoint, role: Role = Role.UNKNOWN) -> int:
        """Announce an end; returns its cookie."""
        self.cookies += 1
        self.say(name, Announce(self.cookies, local, remote, role, f"program of {name}", 7))
        return self.cookies

    def establish(self, port: int = 5000) -> tuple[Offer, Offer]:
        """Connect client and server; returns the offers that they got."""
        near, far = Endpoint("10.77.0.11", port), Endpoint("10.77.0.12", 80)
        self.announce("client", near, far, Role.CONNECT)
        self.announce("server", far, near, Role.ACCEPT)
        offers = self.take("client", Offer), self.take("server", Offer)
        assert offers[0] is not None
        assert offers[1] is not None
        return offers[0], offers[1]

    def connections(self) -> list[Connection]:
        """All that the tables have, ended ones first."""
        return list(self.registry.tables.all_connections())

    def leased(self) -> int:
        """Bytes of the heap that are leased."""
        (use,) = self.broker.use()
        return use.leased
