"""What a topology file left open, decided: addresses, MAC addresses, subnets, members, policy.

The same file gives the same decisions always, and a guest that is appended moves no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import cast

from lab.topology import Guest, Heap, Image, Interface, Network, Policy, Topology, UpgradeMode
from lab.topology_schema import (
    AttachmentSpec,
    GuestSpec,
    HeapSpec,
    NetworkSpec,
    PolicySpec,
    TopologySpec,
)

EVERYBODY = "all"
DEFAULT_NETWORK = "lan"
_DEFAULT_SUBNETS = IPv4Network("10.77.0.0/16")
_FIRST_GUEST = 11


def decide(spec: TopologySpec) -> Topology:
    """A checked file with everything filled in."""
    networks = _decide_networks(spec.networks)
    interfaces = _decide_interfaces(spec, networks)
    heaps = {name: _decide_heap(name, heap, spec.guests) for name, heap in spec.heaps.items()}
    guests = {
        name: Guest(
            name=name,
            memory=guest.memory,
            vcpus=guest.vcpus,
            interfaces=tuple(interfaces[name]),
            heaps=tuple(heap.name for heap in heaps.values() if name in heap.members),
            shim="all" if guest.shim == "all" else "run",
            groups=tuple(guest.groups),
        )
        for name, guest in spec.guests.items()
    }
    packages = tuple(sorted(set(spec.image.packages)))
    return Topology(
        name=spec.name,
        image=Image(name=spec.image.name, suite=spec.image.suite, packages=packages),
        networks=networks,
        heaps=heaps,
        guests=guests,
        policy=_decide_policy(spec.policy),
    )


def _decide_policy(policy: PolicySpec) -> Policy:
    conditional = policy.after_bytes or policy.after_calls
    upgrade = policy.upgrade or ("after" if conditional else "at-once")
    return Policy(
        upgrade=cast(UpgradeMode, upgrade), after_bytes=policy.after_bytes, after_calls=policy.after_calls
    )


def _decide_networks(specs: Mapping[str, NetworkSpec]) -> dict[str, Network]:
    free = free_subnets(specs.values())
    networks = {}
    for name, spec in specs.items():
        subnet = spec.subnet if spec.subnet is not None else next(free)
        networks[name] = Network(
            name=name,
            subnet=subnet,
            subnet6=spec.subnet6,
            uplink="nat" if spec.uplink == "nat" else "none",
            mtu=spec.mtu,
        )
    return networks


def free_subnets(specs: Iterable[NetworkSpec]) -> Iterator[IPv4Network]:
    """The subnets for networks that have none of their own, in order."""
    taken = [spec.subnet for spec in specs if spec.subnet is not None]
    for subnet in _DEFAULT_SUBNETS.subnets(new_prefix=24):
        if not any(map(subnet.overlaps, taken)):
            yield subnet


def _decide_heap(name: str, spec: HeapSpec, guests: Mapping[str, GuestSpec]) -> Heap:
    everybody = spec.members == [EVERYBODY]
    members = tuple(
        guest for guest, of in guests.items() if everybody or guest in spec.members or name in of.heaps
    )
    return Heap(name=name, size=spec.size, members=members, vectors=spec.vectors, buffer=spec.buffer)


def _decide_interfaces(spec: TopologySpec, networks: Mapping[str, Network]) -> dict[str, list[Interface]]:
    taken: set[IPv4Address | IPv6Address] = set()
    places: dict[tuple[str, str], AttachmentSpec] = {}
    for guest_name, guest in spec.guests.items():
        named = guest.networks if guest.networks is not None else dict.fromkeys(networks, AttachmentSpec())
        for network_name, attachment in named.items():
            places[guest_name, network_name] = attachment
            taken |= {each for each in (attachment.address, attachment.address6) if each is not None}
    free = {name: _free_addresses(network.subnet, taken) for name, network in networks.items()}
    macs: set[str] = set()
    interfaces: dict[str, list[Interface]] = {name: [] for name in spec.guests}
    for (guest_name, network_name), attachment in places.items():
        network = networks[network_name]
        address = attachment.address or next(free[network_name])
        interfaces[guest_name].append(
            Interface(
                network=network_name,
                mac=_choose_mac(f"{spec.name}/{guest_name}/{network_name}", macs),
                address=address,
                prefix=network.subnet.prefixlen,
                address6=attachment.address6 or _choose_address6(address, network, taken),
                prefix6=network.subnet6.prefixlen if network.subnet6 is not None else None,
            )
        )
    return interfaces


def _free_addresses(subnet: IPv4Network, taken: set[IPv4Address | IPv6Address]) -> Iterator[IPv4Address]:
    """The addresses that guests without a wish get, in order: upwards from .11, then those below."""
    first = _FIRST_GUEST if subnet.num_addresses >= 64 else 2
    for low, high in ((first, subnet.num_addresses - 1), (2, first)):
        for offset in range(low, high):
            if subnet[offset] not in taken:
                yield subnet[offset]


def _choose_address6(
    address: IPv4Address, network: Network, taken: set[IPv4Address | IPv6Address]
) -> IPv6Address | None:
    """The IPv6 address that reads like the IPv4 one: ::11 beside .11."""
    subnet6 = network.subnet6
    if subnet6 is None:
        return None
    offset = int(str(int(address) - int(network.subnet[0])), 16)
    if not 2 <= offset < subnet6.num_addresses - 1:
        offset = 2
    while subnet6[offset] in taken:
        offset = offset + 1 if offset + 2 < subnet6.num_addresses else 2
    taken.add(subnet6[offset])
    return subnet6[offset]


def _choose_mac(place: str, taken: set[str]) -> str:
    """A MAC address with QEMU's prefix that depends on the place alone, unless that one is taken."""
    for attempt in range(1 << 16):
        tail = hashlib.sha256(f"{place}#{attempt}".encode()).hexdigest()[:6]
        mac = f"52:54:00:{tail[0:2]}:{tail[2:4]}:{tail[4:6]}"
        if mac not in taken:
            taken.add(mac)
            return mac
    raise AssertionError("no MAC address is left")
