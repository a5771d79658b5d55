"""What a topology file may say: every key, its abbreviations, its default and its description.

These models hold what was written. `lab.topology_check` compares the parts with each other and fills
in what was left out; the result is a `lab.topology.Topology`. docs/topology.md is generated from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lab.topology_values import (
    GIB,
    KIB,
    MIB,
    address6_value,
    address_value,
    choice_value,
    complaint,
    count_value,
    describe,
    name_value,
    package_value,
    size_value,
    subnet6_value,
    subnet_value,
)

# A lab's name and a guest's name stand together in paths of UNIX sockets, which end at 107 characters; a
# network's name stands in the name of its bridge, which ends at 15.
LabName = Annotated[str, name_value(24)]
NetworkName = Annotated[str, name_value(12)]
HeapName = Annotated[str, name_value(24)]
GuestName = Annotated[str, name_value(32)]
GroupName = Annotated[str, name_value(32)]

DEFAULT_MEMORY = 384 * MIB
DEFAULT_HEAP_SIZE = 64 * MIB
DEFAULT_BUFFER = 256 * KIB
DEFAULT_VECTORS = 32


def _names(value: object) -> object:
    """A list of names, or one name alone."""
    return [value] if isinstance(value, str) else [] if value is None else value


def _named(value: object) -> object:
    """A mapping of names, or a list of names that have nothing to say about themselves."""
    if value is None:
        return {}
    if not isinstance(value, list):
        return value
    items: dict[str, None] = {}
    for entry in value:
        if isinstance(entry, dict):
            raise complaint(
                "is a list of mappings; write a mapping instead, with each name as a key: `client: {...}`"
            )
        if not isinstance(entry, str):
            raise complaint(f"an entry is {describe(entry)}; each entry is a name")
        if entry in items:
            raise complaint(f"{entry!r} is listed twice; each name can be given once")
        items[entry] = None
    return items


class Spec(BaseModel):
    """Base of all parts. Keys are written with hyphens; a part that is left empty has its defaults."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=lambda name: name.replace("_", "-")
    )

    @classmethod
    def abbreviation(cls, value: object) -> object:
        """The mapping that `value` is short for, or the value itself."""
        return value

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: object) -> object:
        return {} if value is None else cls.abbreviation(value)


class ImageSpec(Spec):
    """The image that all guests boot, built once per recipe and cached by its digest.

    It always has a kernel, systemd, sshd and python3.
    """

    name: Annotated[str, name_value(32)] = Field(
        default="default", description="What `lab image list` calls it. Not part of the cache's digest."
    )
    suite: Annotated[str, choice_value("bookworm")] = Field(
        default="bookworm", description="The Debian release."
    )
    packages: Annotated[list[Annotated[str, package_value()]], BeforeValidator(_names)] = Field(
        default=[], description="Debian packages beyond those that every image has."
    )


class NetworkSpec(Spec):
    """A layer-2 segment. The host is on it with the first address of each subnet.

    `lan: 10.77.0.0/24` is short for `lan: {subnet: 10.77.0.0/24}`, and `networks: [lan]` for a network
    without further wishes.
    """

    subnet: Annotated[IPv4Network, subnet_value()] | None = Field(
        default=None, description="Default: the first free one of 10.77.0.0/24, 10.77.1.0/24, ..."
    )
    subnet6: Annotated[IPv6Network, subnet6_value()] | None = Field(
        default=None, description="Default: no IPv6 on this network."
    )
    uplink: Annotated[str, choice_value("none", "nat")] = Field(
        default="none",
        description="`nat`: the guests reach what the host reaches, by IPv4, under the host's address. "
        "`none`: they reach each other and the host, and no other network.",
    )
    mtu: Annotated[int, count_value(576, 65535)] = Field(
        default=1500, description="The largest IP packet; at least 1280 on a network with IPv6."
    )

    @classmethod
    def abbreviation(cls, value: object) -> object:
        """A text alone is the subnet."""
        return {"subnet": value} if isinstance(value, str) else value


class HeapSpec(Spec):
    """A shared-memory region, and a trust zone: only its members have the device.

    `shared: 64MiB` is short for `shared: {size: 64MiB}`.
    """

    size: Annotated[int, size_value(MIB, 64 * GIB, "64MiB", power_of_two=True)] = Field(
        default=DEFAULT_HEAP_SIZE, description="Size of the whole region."
    )
    members: Annotated[list[GuestName], BeforeValidator(_names)] = Field(
        default=[],
        description="The guests that have it; `all` for every guest. A guest can also name the heap under "
        "its own `heaps`. A heap needs a member.",
    )
    vectors: Annotated[int, count_value(2, 128)] = Field(
        default=DEFAULT_VECTORS,
        description="Doorbell vectors of each member: one for the agent, the rest for processes that sleep.",
    )
    buffer: Annotated[int, size_value(4 * KIB, GIB, "256KiB", power_of_two=True)] = Field(
        default=DEFAULT_BUFFER,
        description="Bytes in flight in each direction of a connection. Two of them, and one page each for "
        "the connection and the heap, have to fit into `size`.",
    )

    @classmethod
    def abbreviation(cls, value: object) -> object:
        """A size alone is the size."""
        return {"size": value} if isinstance(value, str | int) and not isinstance(value, bool) else value


class AttachmentSpec(Spec):
    """A guest's place on a network. `lan: 10.77.0.50` is short for `lan: {address: 10.77.0.50}`."""

    address: Annotated[IPv4Address, address_value()] | None = Field(
        default=None,
        description="Default: counted up from .11 (from .2 in a subnet of less than 64 addresses) in the "
        "order of the guests.",
    )
    address6: Annotated[IPv6Address, address6_value()] | None = Field(
        default=None, description="Default: ends in the digits of the IPv4 address, as in fd77::11."
    )

    @classmethod
    def abbreviation(cls, value: object) -> object:
        """A text alone is the IPv4 address, or the IPv6 address if it has a colon."""
        return {"address6" if ":" in value else "address": value} if isinstance(value, str) else value


def _attachments(value: object) -> object:
    return _named([value] if isinstance(value, str) else value)


class GuestSpec(Spec):
    """A virtual machine. `guests: [client, server]` is short for guests that have all the defaults."""

    memory: Annotated[int, size_value(128 * MIB, 1024 * GIB, "384MiB", multiple=MIB)] = Field(
        default=DEFAULT_MEMORY, description="Main memory, in whole MiB."
    )
    vcpus: Annotated[int, count_value(1, 64)] = Field(default=1, description="Number of virtual CPUs.")
    networks: Annotated[dict[NetworkName, AttachmentSpec], BeforeValidator(_attachments)] | None = Field(
        default=None,
        description="The networks that the guest is on: one name, a list of names, or a mapping that gives "
        "addresses. Default: all networks.",
    )
    heaps: Annotated[list[HeapName], BeforeValidator(_names)] = Field(
        default=[],
        description="Heaps of which the guest is a member, besides those that list it under `members`.",
    )
    shim: Annotated[str, choice_value("run", "all")] = Field(
        default="run",
        description="Which programs move their TCP streams through memory: those that `lab-run` starts "
        "(`run`), or every program of the guest (`all`).",
    )
    groups: Annotated[list[GroupName], BeforeValidator(_names)] = Field(
        default=[],
        description="Groups of Ansible's inventory that the guest is in, besides those of its networks and "
        "heaps (docs/ansible.md). They may change while the lab runs.",
    )


class PolicySpec(Spec):
    """When a connection between members of a common heap gets shared memory.

    With `after-bytes` or `after-calls` a connection stays on the network until it has shown that it
    lives long enough; of two conditions, the one that comes true first counts.
    """

    upgrade: Annotated[str, choice_value("at-once", "after", "never")] | None = Field(
        default=None,
        description="`at-once`, `never`, or `after` the conditions below. Default: `after` if a condition is "
        "given, else `at-once`.",
    )
    after_bytes: Annotated[int, size_value(1, 1024 * GIB, "64KiB", zero=True)] = Field(
        default=0, description="Once so many bytes went either way. 0: no such condition."
    )
    after_calls: Annotated[int, count_value(0, 1_000_000_000)] = Field(
        default=0, description="Once so many sends were made. 0: no such condition."
    )


class TopologySpec(Spec):
    """The file."""

    name: LabName = Field(description="The lab's name; labs of different names do not meet. Required.")
    image: ImageSpec = Field(default=ImageSpec(), description="What the guests boot.")
    networks: Annotated[dict[NetworkName, NetworkSpec], BeforeValidator(_named)] = Field(
        default={}, description="Networks by name. Default: one network `lan`."
    )
    heaps: Annotated[dict[HeapName, HeapSpec], BeforeValidator(_named)] = Field(
        default={}, description="Heaps by name. Default: none; every connection stays on the network."
    )
    guests: Annotated[dict[GuestName, GuestSpec], BeforeValidator(_named)] = Field(
        default={}, description="Guests by name. At least one."
    )
    policy: PolicySpec = Field(default=PolicySpec(), description="When connections are upgraded.")


def valid_keys(part: type[Spec]) -> list[str]:
    """The keys of a part, as they are written in the file."""
    return [field.alias or name for name, field in part.model_fields.items()]


def part_at(location: Sequence[str | int]) -> type[Spec] | None:
    """The part that stands at a path of keys, or None where something else stands."""
    here: Any = TopologySpec
    for key in location:
        if isinstance(here, type) and issubclass(here, Spec):
            fields = {field.alias or name: field.annotation for name, field in here.model_fields.items()}
            here = inner_annotation(fields.get(str(key)))
        else:
            here = inner_annotation(get_args(here)[-1]) if get_origin(here) is dict else None
    return here if isinstance(here, type) and issubclass(here, Spec) else None


def inner_annotation(annotation: Any) -> Any:
    """The annotation without `Annotated` and `| None`."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, UnionType):
            annotation = next(each for each in get_args(annotation) if each is not NoneType)
        else:
            return annotation
