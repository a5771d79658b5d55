"""Which fast path a connection can have, and which heap: by where its ends are, and by policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from guest_agent.messages import FastPath
from lab.registry.tables import Guest, Tables, is_loopback


@dataclass(frozen=True)
class HeapMembership:
    """A heap and who may use it. `ring` is the size in bytes of each direction of a channel in it."""

    name: str
    members: frozenset[str]
    ring: int


@dataclass(frozen=True)
class Policy:
    """When connections that may share memory get it.

    `never` refuses all. A shim announces a connection after `upgrade_calls` data calls or `upgrade_bytes`
    bytes; both 0: at once. `local_ring` is the ring size for memory of one guest.
    """

    never: bool = False
    upgrade_calls: int = 0
    upgrade_bytes: int = 0
    local_ring: int = 262144


@dataclass(frozen=True)
class Rules:
    """What decisions are made from besides the tables: heaps in the order of preference, and the policy."""

    heaps: Mapping[str, HeapMembership] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)

    def common_heaps(self, one: Guest, other: Guest) -> Sequence[HeapMembership]:
        """Return the heaps of which both guests are members."""
        both = {one.name, other.name}
        return [heap for heap in self.heaps.values() if both <= heap.members]

    def usable_heaps(self, one: Guest, other: Guest) -> Sequence[HeapMembership]:
        """Return the common heaps whose device both guests' agents have reported."""
        return [
            heap
            for heap in self.common_heaps(one, other)
            if heap.name in one.heaps and heap.name in other.heaps
        ]


def owns(guest: Guest, address: str) -> bool:
    """Whether a socket of this guest may have this local address: the lab gave it, or it is loopback."""
    return address in guest.addresses or is_loopback(address)


def find_guest(tables: Tables, asker: Guest, address: str) -> Guest | None:
    """Return the guest that `asker` means by an address; None: nobody in this lab."""
    return asker if is_loopback(address) else tables.owner_of(address)


def locate(tables: Tables, rules: Rules, asker: Guest, address: str) -> FastPath:
    """Return where `address` is for `asker`, which decides the memory that they could share.

    Tenants of a guest are not told apart yet: two ends in one guest are SharedVM.
    """
    peer = find_guest(tables, asker, address)
    if peer is None:
        return FastPath.EXTERNAL
    if peer is asker:
        return FastPath.SHARED_VM
    if rules.common_heaps(asker, peer):
        return FastPath.SHARED_HYPERVISOR
    return FastPath.EXTERNAL
