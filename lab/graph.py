"""A lab as a graph: its guests, what connects them, and what moves between them at this moment.

`lab.graph_mermaid` and `lab.graph_svg` write it down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lab import sockets
from lab.errors import LabError
from lab.topology import Topology

OUTSIDE = "outside"
"""Stands for all ends of connections that are no guest's."""


@dataclass(frozen=True)
class Node:
    """A guest, a network or a heap. `notes` are short texts to be shown below the name."""

    name: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Link:
    """A guest's place on a network, or its membership of a heap."""

    guest: str
    to: str
    note: str = ""


@dataclass(frozen=True)
class Path:
    """The connections from one guest to another that took the same path: `shared` or `network`. Bytes are
    those of both directions on that path.
    """

    client: str
    server: str
    kind: str
    connections: int
    bytes: int


@dataclass(frozen=True)
class Graph:
    """What is drawn. `paths` is None if the lab is not up."""

    lab: str
    guests: tuple[Node, ...]
    networks: tuple[Node, ...]
    heaps: tuple[Node, ...]
    attachments: tuple[Link, ...]
    memberships: tuple[Link, ...]
    paths: tuple[Path, ...] | None


def draw(topology: Topology, *, ended: bool = False) -> Graph:
    """The topology's graph, with the paths of the connections that are open if the lab is up; with `ended`,
    also of those that the registry remembers.
    """
    try:
        rows: list[sockets.Row] | None = sockets.collect(topology.name)
    except LabError:
        rows = None
    return Graph(
        lab=topology.name,
        guests=tuple(
            Node(guest.name, (f"{format_bytes(guest.memory)}, {guest.vcpus} vCPU",))
            for guest in topology.guests.values()
        ),
        networks=tuple(
            Node(each.name, tuple(str(subnet) for subnet in (each.subnet, each.subnet6) if subnet))
            for each in topology.networks.values()
        ),
        heaps=tuple(Node(each.name, (format_bytes(each.size),)) for each in topology.heaps.values()),
        attachments=tuple(
            Link(guest.name, interface.network, str(interface.address))
            for guest in topology.guests.values()
            for interface in guest.interfaces
        ),
        memberships=tuple(
            Link(guest, heap.name) for heap in topology.heaps.values() for guest in heap.members
        ),
        paths=None if rows is None else find_paths(row for row in rows if ended or row["ended"] is None),
    )


def find_paths(rows: Iterable[Mapping[str, str | int | float | None]]) -> tuple[Path, ...]:
    """The rows of `lab sockets`, summed up: one path for each pair of ends and each way that carries
    connections.

    What a connection moved over the network before memory carried it is not counted.
    """
    sums: dict[tuple[str, str, str], list[int]] = {}
    for row in rows:
        kind = str(row["path"])
        ends = str(row["client_guest"] or OUTSIDE), str(row["server_guest"] or OUTSIDE)
        total = sums.setdefault((*ends, kind), [0, 0])
        total[0] += 1
        total[1] += sum(int(row[f"{way}_{kind}"] or 0) for way in ("to_server", "to_client"))
    return tuple(Path(*key, *total) for key, total in sorted(sums.items()))


def format_bytes(count: float) -> str:
    """A number of bytes for people: 64 MiB, 1.5 GiB, 512 B."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"
        count /= 1024
    raise AssertionError


def describe_path(path: Path) -> str:
    """The label of a path: its bytes, and how many connections if there are several."""
    text = format_bytes(path.bytes)
    return text if path.connections == 1 else f"{text}, {path.connections} conn."
