"""What a lab consists of, with nothing left open: the models that every service works from.

A topology file may leave most things out and abbreviate the rest (`lab.topology_schema`); loading it
(`lab.topology_file.load_topology`) checks it, fills in every default and address, and gives a
`Topology`, which is never changed afterwards. Sizes are bytes, tuples are in the order of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lab.errors import UserError

ShimMode = Literal["all", "run"]
UpgradeMode = Literal["at-once", "after", "never"]
UplinkMode = Literal["none", "nat"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Image(_Model):
    """The recipe of the one image that all guests of the lab boot."""

    name: str
    suite: str
    packages: tuple[str, ...]
    """Debian packages beyond those that every image has; sorted, each once."""


class Network(_Model):
    """One layer-2 segment. The host is on it with the first address of each subnet."""

    name: str
    subnet: IPv4Network
    subnet6: IPv6Network | None
    uplink: UplinkMode = "none"
    """`nat`: its guests reach what the host reaches, by IPv4; `none`: this segment and the host."""
    mtu: int = 1500
    """The largest IP packet, in bytes."""

    @property
    def host_address(self) -> IPv4Address:
        """The host's IPv4 address on this network."""
        return self.subnet[1]

    @property
    def host_address6(self) -> IPv6Address | None:
        """The host's IPv6 address on this network, if it has IPv6."""
        return None if self.subnet6 is None else self.subnet6[1]


class Interface(_Model):
    """One guest's place on one network."""

    network: str
    mac: str
    """Six lower-case hex pairs with colons, unique in the lab and the same at every load."""
    address: IPv4Address
    prefix: int
    """Length of the network's IPv4 prefix in bits."""
    address6: IPv6Address | None
    prefix6: int | None

    @property
    def addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """All addresses of the interface, IPv4 first."""
        return (self.address,) if self.address6 is None else (self.address, self.address6)


class Guest(_Model):
    """One virtual machine."""

    name: str
    memory: int
    """Bytes; a multiple of 1 MiB."""
    vcpus: int
    interfaces: tuple[Interface, ...]
    """At least one, in the order of the file; the first is the one the host uses to reach the guest."""
    heaps: tuple[str, ...]
    """Names of the heaps of which the guest is a member."""
    shim: ShimMode
    """`all`: every program of the guest has the shim; `run`: those started by `lab-run`."""
    groups: tuple[str, ...] = ()
    """What Ansible's inventory also calls the guest. Nothing in the lab depends on them."""

    @property
    def address(self) -> IPv4Address:
        """The address at which the host reaches the guest."""
        return self.interfaces[0].address

    @property
    def addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """All addresses that the lab gave the guest."""
        return tuple(address for interface in self.interfaces for address in interface.addresses)


class Heap(_Model):
    """One shared-memory region, and a trust zone: only its members have the device."""

    name: str
    size: int
    """Bytes; a power of two."""
    members: tuple[str, ...]
    vectors: int
    """Doorbell vectors of each member. Vector 0 is the agent's."""
    buffer: int
    """Bytes of the ring of each direction of a channel; a power of two."""


class Policy(_Model):
    """When a connection that may have shared memory gets it."""

    upgrade: UpgradeMode
    after_bytes: int
    """With `upgrade` == "after": once this many bytes went either way. 0: no such condition."""
    after_calls: int
    """With `upgrade` == "after": once this many sends were made. 0: no such condition."""


class Topology(_Model):
    """A whole lab. Mappings are by name, in the order of the file."""

    name: str
    image: Image
    networks: Mapping[str, Network]
    heaps: Mapping[str, Heap]
    guests: Mapping[str, Guest]
    policy: Policy = Field(default=Policy(upgrade="at-once", after_bytes=0, after_calls=0))

    @field_validator("networks", "heaps", "guests")
    @classmethod
    def _named_by_key(cls, items: Mapping[str, Any]) -> Mapping[str, Any]:
        for key, item in items.items():
            if item.name != key:
                raise ValueError(f"{key!r} names an object that calls itself {item.name!r}")
        return items

    def guest(self, name: str) -> Guest:
        """The guest of that name. Raises `UserError` that lists the guests if there is none."""
        try:
            return self.guests[name]
        except KeyError:
            known = ", ".join(self.guests)
            raise UserError(f"lab {self.name} has no guest {name!r}; its guests are {known}") from None

    def addresses_for(self, guest: Guest, other: Guest) -> tuple[IPv4Address | IPv6Address, ...]:
        """The addresses of `other` that `guest` reaches: those on networks that both are on."""
        own = {interface.network for interface in guest.interfaces}
        return tuple(
            address
            for interface in other.interfaces
            if interface.network in own
            for address in interface.addresses
        )

    def gateway(self, guest: Guest) -> Network | None:
        """The network by which the guest reaches the world: the first of its own that has an uplink."""
        own = (self.networks[interface.network] for interface in guest.interfaces)
        return next((network for network in own if network.uplink != "none"), None)

    def members(self, heap: Heap) -> Iterator[Guest]:
        """The guests that are members of the heap."""
        return (self.guests[name] for name in heap.members)

    def digest(self) -> str:
        """64 hex digits that are equal for topologies that mean the same, however they are written."""
        labels = {"guests": {"__all__": {"groups"}}}  # they may change while the lab runs
        data = self.model_dump(mode="json", exclude=labels)
        meaning = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(meaning.encode()).hexdigest()
