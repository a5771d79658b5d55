"""What each guest of a lab has used since it was started, and what its connections have moved since the lab's
daemon knows them. Two samples give rates.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import libvirt

from lab import control, libvirtd
from lab.errors import LabError
from lab.paths import LabPaths
from lab.topology import Topology

_KINDS = (
    libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
    | libvirt.VIR_DOMAIN_STATS_VCPU
    | libvirt.VIR_DOMAIN_STATS_BALLOON
    | libvirt.VIR_DOMAIN_STATS_BLOCK
    | libvirt.VIR_DOMAIN_STATS_INTERFACE
)


@dataclass(frozen=True)
class Counters:
    """What only grows while a guest runs. Bytes, unless the name says otherwise."""

    cpu_seconds: float = 0.0
    """Of the host's processors, for the guest and QEMU's own work."""
    disk_read: int = 0
    disk_written: int = 0
    disk_reads: int = 0
    """Requests."""
    disk_writes: int = 0
    received: int = 0
    """By its NICs."""
    sent: int = 0
    received_packets: int = 0
    sent_packets: int = 0
    dropped_packets: int = 0
    shared_received: int = 0
    """By its connections through shared memory."""
    shared_sent: int = 0
    network_received: int = 0
    """By its connections that the registry knows, over the network."""
    network_sent: int = 0

    def since(self, earlier: Counters) -> Counters:
        """The difference. A counter that fell (the guest was started anew) counts from zero."""
        values = {}
        for field in fields(self):
            now, before = getattr(self, field.name), getattr(earlier, field.name)
            values[field.name] = now - before if now >= before else now
        return Counters(**values)

    def per(self, seconds: float) -> Counters:
        """Each a second."""
        return Counters(**{field.name: getattr(self, field.name) / seconds for field in fields(self)})


@dataclass(frozen=True)
class GuestStats:
    """One guest. `memory` is what it may have, `resident` what the host has given it, both in bytes."""

    name: str
    running: bool
    vcpus: int
    memory: int
    resident: int
    connections: int
    """Open ones that the registry knows."""
    counters: Counters


@dataclass(frozen=True)
class LabStats:
    """A lab at one moment: `time` is the host's clock, in seconds since 1970."""

    lab: str
    time: float
    daemon: bool
    """Whether the lab's daemon answered; without it nothing is known of connections."""
    guests: tuple[GuestStats, ...]

    def rates(self, earlier: LabStats) -> dict[str, Counters]:
        """What each guest used a second since an earlier sample, by name. `cpu_seconds` 1: one processor."""
        before = {guest.name: guest.counters for guest in earlier.guests}
        seconds = max(self.time - earlier.time, 1e-6)
        return {
            guest.name: guest.counters.since(before.get(guest.name, Counters())).per(seconds)
            for guest in self.guests
        }


def collect(topology: Topology, *, connect: str | None = None) -> LabStats:
    """The lab's counters now. A guest that does not run has none; raises `LabError` if the lab is down."""
    lab = LabPaths(topology.name)
    if connect is None and not lab.libvirt_socket.exists():
        raise LabError(f"lab {topology.name} is not up", cure="lab up")
    names = {lab.domain(guest): guest for guest in topology.guests}
    records: dict[str, dict[str, Any]] = {}
    with libvirtd.connect(lab, connect) as connection:
        try:
            for handle, record in connection.getAllDomainStats(_KINDS, 0):
                if handle.name() in names:
                    records[names[handle.name()]] = record
        except libvirt.libvirtError as error:
            raise LabError(f"lab {topology.name}: libvirt has no statistics: {error}") from error
    try:
        connections = control.ask(lab.daemon_socket, "sockets")["connections"]
        daemon = True
    except LabError:
        connections, daemon = [], False
    moved = sum_connections(connections)
    guests = tuple(
        read_record(guest.name, guest.vcpus, guest.memory, records.get(guest.name), moved.get(guest.name, {}))
        for guest in topology.guests.values()
    )
    return LabStats(topology.name, time.time(), daemon, guests)


def sum_connections(connections: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """What the connections of the daemon's answer to `sockets` moved, by guest: shared_sent, shared_received,
    network_sent, network_received, and how many of them are `open`.

    A connection within one guest counts as sent and as received there.
    """
    moved: dict[str, dict[str, int]] = {}
    for connection in connections:
        for sender, receiver, direction in (
            ("client", "server", "to_server"),
            ("server", "client", "to_client"),
        ):
            for end, word in ((sender, "sent"), (receiver, "received")):
                if guest := connection[end]["guest"]:
                    sums = moved.setdefault(guest, {})
                    for path in ("shared", "network"):
                        key = f"{path}_{word}"
                        sums[key] = sums.get(key, 0) + connection[direction][path]
        if connection["ended"] is None:
            for guest in {connection[end]["guest"] for end in ("client", "server")} - {""}:
                sums = moved.setdefault(guest, {})
                sums["open"] = sums.get("open", 0) + 1
    return moved


def read_record(
    name: str, vcpus: int, memory: int, record: dict[str, Any] | None, moved: dict[str, int]
) -> GuestStats:
    """A guest's stats from a record of libvirt's virConnectGetAllDomainStats and the sums of its connections.

    `vcpus` and `memory` are what the topology says, where the record does not.
    """
    if record is None:
        return GuestStats(name, False, vcpus, memory, 0, 0, Counters())

    def total(prefix: str, suffix: str) -> int:
        count = record.get(f"{prefix}.count", 0)
        return sum(record.get(f"{prefix}.{index}.{suffix}", 0) for index in range(count))

    counters = Counters(
        cpu_seconds=record.get("cpu.time", 0) / 1e9,
        disk_read=total("block", "rd.bytes"),
        disk_written=total("block", "wr.bytes"),
        disk_reads=total("block", "rd.reqs"),
        disk_writes=total("block", "wr.reqs"),
        # libvirt looks from the tap's side and exchanges the two: rx is what the guest received.
        received=total("net", "rx.bytes"),
        sent=total("net", "tx.bytes"),
        received_packets=total("net", "rx.pkts"),
        sent_packets=total("net", "tx.pkts"),
        dropped_packets=total("net", "rx.drop") + total("net", "tx.drop"),
        **{key: value for key, value in moved.items() if key != "open"},
    )
    return GuestStats(
        name,
        True,
        record.get("vcpu.current", vcpus),
        record.get("balloon.current", memory // 1024) * 1024,
        record.get("balloon.rss", 0) * 1024,
        moved.get("open", 0),
        counters,
    )
