"""The lab's networks as libvirt networks."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from typing import Any

import libvirt

from lab import template
from lab.topology import Network, Topology

#: Root of the UUIDs that a lab's objects get from their names.
UUID_ROOT = uuid.UUID("c1f5b6a2-8f63-4d3c-9a52-1d0a7e1b5e01")


def libvirt_name(lab: str, network: str) -> str:
    """Name of the network's libvirt network."""
    return f"hh-{lab}.{network}"


def bridge_name(lab: str, network: str) -> str:
    """Name of the network's bridge: at most 15 characters, and unique on a host that several labs share."""
    return "hh-" + hashlib.sha256(f"{lab}/{network}".encode()).hexdigest()[:8]


def xml(lab: str, network: Network) -> str:
    """The libvirt XML of a network."""
    name = libvirt_name(lab, network.name)
    return template.render(
        "network",
        name=name,
        uuid=uuid.uuid5(UUID_ROOT, f"network/{name}"),
        bridge=bridge_name(lab, network.name),
        network=network,
    )


def ensure(connection: Any, topology: Topology) -> None:
    """Start the networks that do not run yet. They are transient: nothing of them is left once they stop."""
    running = {found.name() for found in connection.listAllNetworks()}
    for network in topology.networks.values():
        if libvirt_name(topology.name, network.name) not in running:
            connection.networkCreateXML(xml(topology.name, network))


def remove_all(connection: Any, lab: str) -> bool:
    """Stop all networks of the lab; whether there were any."""
    changed = False
    for found in connection.listAllNetworks():
        if found.UUIDString() == str(
            uuid.uuid5(UUID_ROOT, f"network/{found.name()}")
        ) and found.name().startswith(f"hh-{lab}."):
            with contextlib.suppress(libvirt.libvirtError):
                found.destroy()
            changed = True
    return changed
