"""What a lab is doing at this moment, as libvirt, the kernel and the lab's daemon say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import libvirt

from lab import control, domain, libvirtd
from lab.errors import LabError
from lab.paths import LabPaths
from lab.topology import Guest, Topology


@dataclass(frozen=True)
class GuestStatus:
    """One guest. `state` is "running", "paused", "absent", ... ; `agent` is "connected" or why not; `heaps`
    are those mapped.
    """

    name: str
    state: str
    accelerator: str | None
    addresses: tuple[str, ...]
    agent: str
    heaps: tuple[str, ...]


@dataclass(frozen=True)
class LabStatus:
    """A lab. `state` is "up", "partial" or "down"; `daemon` is "running" or why not. `dataclasses.asdict`
    makes it JSON.

    "up": it runs this topology, every guest runs with its agent and its heaps. "other": it runs another
    topology.
    """

    lab: str
    state: str
    daemon: str
    guests: tuple[GuestStatus, ...]


def collect(topology: Topology, *, connect: str | None = None) -> LabStatus:
    """The lab's state now. Never raises for a lab that is down or damaged: that is what it reports."""
    lab = LabPaths(topology.name)
    running, is_other = _ask_libvirt(topology, connect)
    try:
        agents = control.ask(lab.daemon_socket, "status")["agents"]
        daemon = "running"
    except LabError:
        agents, daemon = {}, "not running"
    guests = tuple(
        _describe(guest, running.get(guest.name), agents.get(guest.name))
        for guest in topology.guests.values()
    )
    if is_other:
        state = "other"
    elif all(_is_ready(topology.guest(status.name), status) for status in guests):
        state = "up"
    elif running or agents:
        state = "partial"
    else:
        state = "down"
    return LabStatus(topology.name, state, daemon, guests)


def _ask_libvirt(topology: Topology, connect: str | None) -> tuple[dict[str, domain.Marked], bool]:
    """The guests that libvirt knows, and whether they belong to another topology of the same name."""
    lab = LabPaths(topology.name)
    if connect is None and not lab.libvirt_socket.exists():
        return {}, False
    try:
        with libvirtd.connect(lab, connect) as connection:
            found = {each.guest: each for each in domain.find_all(connection, lab.lab)}
    except (LabError, libvirt.libvirtError):
        return {}, False
    return found, any(each.digest != topology.digest() for each in found.values())


def _describe(guest: Guest, marked: domain.Marked | None, agent: dict[str, Any] | None) -> GuestStatus:
    if agent is None:
        word = "unknown"
    elif agent["connected"]:
        word = "connected"
    else:
        word = str(agent["presence"])
    return GuestStatus(
        name=guest.name,
        state=marked.state if marked else "absent",
        accelerator=marked.accelerator if marked else None,
        addresses=tuple(str(address) for address in guest.addresses),
        agent=word if marked else "absent",
        heaps=tuple(agent["heaps"]) if agent else (),
    )


def _is_ready(guest: Guest, status: GuestStatus) -> bool:
    return status.state == "running" and status.agent == "connected" and set(status.heaps) >= set(guest.heaps)
