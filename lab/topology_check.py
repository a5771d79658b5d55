"""From the data of a file to a `Topology`: all its faults, or everything filled in.

Three steps: each part is held against its model (`lab.topology_schema`); what was faulty is taken out, so
that the rest can be compared part with part; and if nothing was found, what the file left open is decided,
always in the same way for the same file.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import islice
from typing import Any

from pydantic import ValidationError

from lab.topology import Topology
from lab.topology_defaults import DEFAULT_NETWORK, EVERYBODY, decide, free_subnets
from lab.topology_schema import (
    GuestSpec,
    NetworkSpec,
    TopologySpec,
    part_at,
    valid_keys,
)
from lab.topology_values import describe, did_you_mean, format_size, listing, shorten
from lab.topology_yaml import Finding, Location

PAGE = 4096

#: The smallest MTU that IPv6 allows (RFC 8200, section 5).
IPV6_MTU = 1280
RESERVED_GUESTS = {
    EVERYBODY: "means every guest",
    "host": "is the name of the machine that runs the lab",
    "localhost": "is each guest's name for itself",
}
RESERVED_GROUPS = {
    "all": "is Ansible's group of every guest",
    "ungrouped": "is Ansible's group of guests without a group",
    "lab": "is the inventory's group of every guest",
}
_GENERATED_GROUPS = ("network-", "heap-")
_LIMITS = {"guests": 1000, "networks": 64, "heaps": 64}
_KEY_ERROR = "[key]"


@dataclass
class _Names:
    """Every name that the file tries to declare, faulty entries included, so that no reference to one of
    them is called unknown."""

    networks: list[str] = field(default_factory=list)
    heaps: list[str] = field(default_factory=list)
    guests: list[str] = field(default_factory=list)


def check(data: object) -> tuple[Topology | None, list[Finding]]:
    """The topology that a file's data means, or None and everything that is wrong with it."""
    if data is None:
        return None, [Finding((), "the file is empty; begin with `name:` and `guests:` (docs/topology.md)")]
    if not isinstance(data, dict):
        return None, [Finding((), f"is {describe(data)}, not a mapping; begin with `name:` and `guests:`")]
    too_many = [
        Finding((key,), f"has {len(data[key])} entries; at most {limit}")
        for key, limit in _LIMITS.items()
        if isinstance(data.get(key), dict | list) and len(data[key]) > limit
    ]
    if too_many:
        return None, too_many
    names = _Names(*(_declared(data.get(key)) for key in ("networks", "heaps", "guests")))
    spec, findings = _read_parts(data)
    spec = _with_default_network(spec)
    faulty = {finding.location for finding in findings}
    findings += _Comparison(spec, names, faulty).findings()
    return (None, findings) if findings else (decide(spec), [])


def _declared(section: object) -> list[str]:
    if isinstance(section, dict):
        return list(section)
    return [entry for entry in section if isinstance(entry, str)] if isinstance(section, list) else []


# --- each part against its model ---------------------------------------------------------------------------


def _read_parts(data: dict[str, Any]) -> tuple[TopologySpec, list[Finding]]:
    """The file without its faulty parts, and a finding for each of these."""
    data = copy.deepcopy(data)
    findings: list[Finding] = []
    while True:
        try:
            return TopologySpec.model_validate(data), findings
        except ValidationError as error:
            faults = error.errors(include_url=False)
        findings += [_explain(dict(fault)) for fault in faults]
        locations = {_clean(fault["loc"]) for fault in faults}
        for location in sorted(locations, key=_last_first, reverse=True):
            _take_out(data, location)


def _last_first(location: Location) -> tuple[tuple[int, int, str], ...]:
    """Orders list entries by index, so that the last one is taken out first."""
    return tuple((0, key, "") if isinstance(key, int) else (1, 0, key) for key in location)


def _clean(location: tuple[str | int, ...]) -> Location:
    return location[:-1] if location and location[-1] == _KEY_ERROR else location


def _explain(fault: dict[str, Any]) -> Finding:
    location = _clean(fault["loc"])
    kind = fault["type"]
    value = fault["input"]
    if kind == "extra_forbidden":
        part = part_at(location[:-1])
        keys = valid_keys(part) if part else []
        return Finding(location, _unknown_key(str(location[-1]), keys, location[:-1]))
    if kind == "missing":
        return Finding(location, "is missing; give the lab a name, such as `name: hello`")
    if kind in ("model_type", "model_attributes_type"):
        part = part_at(location)
        described = f" with the keys {listing(valid_keys(part))}" if part else ""
        return Finding(location, f"is {describe(value)}, not a mapping; write a mapping{described}")
    if kind == "dict_type":
        return Finding(location, f"is {describe(value)}, not a mapping; write one entry `name: ...` for each")
    if kind == "list_type":
        return Finding(location, f"is {describe(value)}, not a list; write a list such as [one, two]")
    return Finding(location, str(fault["msg"]))


_ELSEWHERE = {
    "packages": "packages are listed under `image`",
    "members": "members are listed under a heap",
    "ram": "the key for main memory is `memory`",
    "mem": "the key for main memory is `memory`",
    "cpus": "the key for virtual CPUs is `vcpus`",
    "cpu": "the key for virtual CPUs is `vcpus`",
    "cores": "the key for virtual CPUs is `vcpus`",
    "ip": "the key for an IPv4 address is `address`",
    "ipv6": "the key for an IPv6 address is `address6`",
    "address": "addresses are given per network: `networks: {lan: {address: ...}}`",
    "vlan": "a network passes tagged frames on; guests make their own VLANs (docs/operations.md)",
    "nat": "the key for a way out is `uplink: nat`",
    "cidr": "the key for a network's addresses is `subnet`",
    "nodes": "the key for virtual machines is `guests`",
    "vms": "the key for virtual machines is `guests`",
    "services": "the key for virtual machines is `guests`",
    "version": "a topology has no version",
}


def _unknown_key(key: str, keys: list[str], part: Location) -> str:
    hint = did_you_mean(key, keys)
    if not hint and key in _ELSEWHERE and (key != "members" or part):
        hint = f" ({_ELSEWHERE[key]})"
    return f"unknown key {shorten(key)!r}{hint}; valid keys are {listing(keys, limit=20)}"


def _take_out(data: dict[str, Any], location: Location) -> None:
    """Remove what stands at a path, or the nearest thing around it that is written down."""
    if location == ("name",):
        data["name"] = "unnamed"  # the only key that is required
        return
    here: Any = data
    for depth, key in enumerate(location):
        if not _has(here, key):
            break
        if depth + 1 == len(location) or not _has(here[key], location[depth + 1]):
            del here[key]
            return
        here = here[key]
    data.clear()  # nothing to be blamed was found: nothing is left to be compared
    data["name"] = "unnamed"


def _has(container: object, key: str | int) -> bool:
    if isinstance(container, dict):
        return key in container
    return isinstance(container, list) and isinstance(key, int) and key < len(container)


def _with_default_network(spec: TopologySpec) -> TopologySpec:
    if spec.networks:
        return spec
    return spec.model_copy(update={"networks": {DEFAULT_NETWORK: NetworkSpec()}})


# --- parts against each other ------------------------------------------------------------------------------


class _Comparison:
    """The faults that only show when parts of the file are held against each other."""

    def __init__(self, spec: TopologySpec, names: _Names, faulty: set[Location]) -> None:
        self._spec = spec
        self._names = names
        self._faulty = faulty

    def findings(self) -> list[Finding]:
        """All of them."""
        return [
            *self._guests(),
            *self._groups(),
            *self._references(),
            *self._heaps(),
            *self._subnets(),
            *self._addresses(4),
            *self._addresses(6),
            *self._policy(),
        ]

    def _is_faulty(self, *location: str | int) -> bool:
        return any(where[: len(location)] == location for where in self._faulty)

    def _guests(self) -> Iterator[Finding]:
        if not self._names.guests and not self._is_faulty("guests"):
            yield Finding(("guests",), "there are no guests; give at least one, such as `guests: [client]`")
        for name, why in RESERVED_GUESTS.items():
            if name in self._spec.guests:
                yield Finding(("guests", name), f"the name {name!r} {why}; choose another name")

    def _groups(self) -> Iterator[Finding]:
        for guest_name, guest in self._spec.guests.items():
            for index, name in enumerate(guest.groups):
                where: Location = ("guests", guest_name, "groups", index)
                if name in guest.groups[:index]:
                    yield Finding(where, f"group {name!r} is listed twice; each name once")
                elif name in RESERVED_GROUPS:
                    yield Finding(where, f"the name {name!r} {RESERVED_GROUPS[name]}; choose another name")
                elif name in self._names.guests:
                    yield Finding(where, f"{name!r} is the name of a guest; choose another name")
                elif name.startswith(_GENERATED_GROUPS):
                    kind = name.partition("-")[0]
                    yield Finding(
                        where, f"groups that begin with '{kind}-' are made from {kind}s; choose another name"
                    )

    def _references(self) -> Iterator[Finding]:
        # Without a section of their own, networks are the default one.
        networks = self._names.networks or ([] if self._is_faulty("networks") else [DEFAULT_NETWORK])
        for name, guest in self._spec.guests.items():
            yield from _unknown(("guests", name, "heaps"), "heap", guest.heaps, self._names.heaps)
            if guest.networks is None:
                continue
            where: Location = ("guests", name, "networks")
            if not guest.networks and not self._is_faulty(*where):
                yield Finding(where, "the guest is on no network; the host needs one to reach it")
            if networks:
                yield from _unknown(where, "network", list(guest.networks), networks, keyed=True)
        for name, heap in self._spec.heaps.items():
            known = self._names.guests
            if heap.members != [EVERYBODY]:
                yield from _unknown(("heaps", name, "members"), "guest", heap.members, known)

    def _heaps(self) -> Iterator[Finding]:
        for name, heap in self._spec.heaps.items():
            where: Location = ("heaps", name)
            asked = any(name in guest.heaps for guest in self._spec.guests.values())
            if not heap.members and not asked and not self._is_faulty("heaps", name):
                yield Finding(
                    where, "the heap has no members; list guests under `members`, or `members: all`"
                )
            if self._is_faulty(*where, "size") or self._is_faulty(*where, "buffer"):
                continue
            needed = 2 * heap.buffer + 2 * PAGE
            if needed > heap.size:
                largest = 1 << ((heap.size - 2 * PAGE) // 2).bit_length() - 1
                yield Finding(
                    (*where, "buffer"),
                    f"two buffers of {format_size(heap.buffer)} and two pages do not fit into the heap's "
                    f"{format_size(heap.size)}; at most {format_size(largest)}",
                )

    def _subnets(self) -> Iterator[Finding]:
        seen: list[tuple[str, str, IPv4Network | IPv6Network]] = []
        for name, network in self._spec.networks.items():
            for key, subnet in (("subnet", network.subnet), ("subnet6", network.subnet6)):
                if subnet is None:
                    continue
                for other, other_key, other_subnet in seen:
                    if other_key == key and _overlap(subnet, other_subnet):
                        yield Finding(
                            ("networks", name, key),
                            f"{subnet} overlaps {other_subnet} of network {other!r}; "
                            "each network has addresses of its own",
                        )
                        break
                seen.append((name, key, subnet))
            yield from self._room(name, network)
            if network.subnet6 is not None and network.mtu < IPV6_MTU:
                yield Finding(
                    ("networks", name, "mtu"),
                    f"{network.mtu} is too small for IPv6, which network {name!r} has; {IPV6_MTU} or more, "
                    "or no subnet6",
                )
        unnumbered = [name for name, network in self._spec.networks.items() if network.subnet is None]
        free = list(islice(free_subnets(self._spec.networks.values()), len(unnumbered)))
        for name in unnumbered[len(free) :]:
            yield Finding(("networks", name), "no default subnet is left; give it a `subnet`")

    def _room(self, name: str, network: NetworkSpec) -> Iterator[Finding]:
        guests = sum(1 for guest in self._spec.guests.values() if _is_on(guest, name))
        room = network.subnet.num_addresses - 3 if network.subnet is not None else 253
        if guests > room:
            prefix = 32 - (guests + 2).bit_length()
            where = ("networks", name, "subnet") if network.subnet else ("networks", name)
            yield Finding(
                where,
                f"{network.subnet or 'the default /24'} has room for {room} guests beside the host and "
                f"{guests} are on it; /{prefix} or larger",
            )

    def _addresses(self, version: int) -> Iterator[Finding]:
        key = "address" if version == 4 else "address6"
        owners: dict[IPv4Address | IPv6Address, str] = {}
        for guest_name, guest in self._spec.guests.items():
            for network_name, attachment in (guest.networks or {}).items():
                address = getattr(attachment, key)
                network = self._spec.networks.get(network_name)
                if address is None or network is None:
                    continue
                where: Location = ("guests", guest_name, "networks", network_name, key)
                subnet = network.subnet if version == 4 else network.subnet6
                if address in owners:
                    yield Finding(
                        where, f"{address} is taken by guest {owners[address]!r}; each address once"
                    )
                owners.setdefault(address, guest_name)
                if not self._is_faulty("networks", network_name):
                    yield from _misplaced(where, address, network_name, subnet)

    def _policy(self) -> Iterator[Finding]:
        policy = self._spec.policy
        conditions = [
            key
            for key, value in (("after-bytes", policy.after_bytes), ("after-calls", policy.after_calls))
            if value
        ]
        if self._is_faulty("policy"):
            return
        if policy.upgrade == "after" and not conditions:
            yield Finding(
                ("policy", "upgrade"),
                "`after` has no condition; give after-bytes or after-calls, or `at-once`",
            )
        elif policy.upgrade in ("at-once", "never") and conditions:
            yield Finding(
                ("policy", "upgrade"),
                f"is {policy.upgrade!r}, which contradicts {conditions[0]}; write `after`, or remove one",
            )


def _unknown(
    where: Location, kind: str, names: Sequence[str], known: Collection[str], *, keyed: bool = False
) -> Iterator[Finding]:
    """References to things that do not exist, and those that are made twice."""
    known_names = frozenset(known)
    seen: set[str] = set()
    for index, name in enumerate(names):
        location = (*where, name if keyed else index)
        if name not in known_names:
            exist = (
                f"{kind}s are {listing(known)}"
                if known
                else f"the file has no {kind}s (declare it under `{kind}s`)"
            )
            yield Finding(location, f"unknown {kind} {name!r}{did_you_mean(name, known)}; {exist}")
        elif name in seen:
            yield Finding(location, f"{kind} {name!r} is listed twice; each name once")
        seen.add(name)


def _misplaced(
    where: Location,
    address: IPv4Address | IPv6Address,
    network: str,
    subnet: IPv4Network | IPv6Network | None,
) -> Iterator[Finding]:
    """What is wrong with an address in its network, if anything."""
    if subnet is None:
        if address.version == 6:
            yield Finding(
                where,
                f"network {network!r} has no IPv6; give it a subnet6, such as fd77::/64, or leave this out",
            )
        else:
            yield Finding(
                where,
                f"network {network!r} has no subnet to hold {address}; give it one, such as 10.77.0.0/24",
            )
        return
    low, high = subnet[2], subnet[-2]
    valid = f"guests have {low} to {high}"
    if address not in subnet:
        yield Finding(where, f"{address} is outside {subnet} of network {network!r}; {valid}")
    elif address == subnet[1]:
        yield Finding(where, f"{address} is the host's address on network {network!r}; {valid}")
    elif address == subnet[0]:
        yield Finding(where, f"{address} is the address of network {network!r} itself; {valid}")
    elif address == subnet[-1]:
        kind = "the broadcast address" if address.version == 4 else "the last address"
        yield Finding(where, f"{address} is {kind} of network {network!r}; {valid}")


def _overlap(one: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    return one[0] <= other[-1] and other[0] <= one[-1]  # type: ignore[operator]


def _is_on(guest: GuestSpec, network: str) -> bool:
    return guest.networks is None or network in guest.networks
