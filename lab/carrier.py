"""The virtual cable between a guest's NIC and its network: plugged in, or pulled out."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import libvirt

from lab import libvirtd
from lab.errors import LabError, UserError
from lab.paths import LabPaths
from lab.topology import Interface, Topology


def interface_on(topology: Topology, guest: str, network: str | None) -> Interface:
    """The guest's interface on the network; None for its first. Raises `UserError` if it is not on it."""
    interfaces = topology.guest(guest).interfaces
    if network is None:
        return interfaces[0]
    for interface in interfaces:
        if interface.network == network:
            return interface
    known = ", ".join(each.network for each in interfaces)
    raise UserError(f"guest {guest} is not on a network {network!r}; it is on {known}")


def set_carrier(
    topology: Topology, guest: str, network: str | None, *, present: bool, connect: str | None = None
) -> None:
    """Plug the guest's cable to the network in or pull it out; its kernel sees a link without carrier.

    Raises `UserError` for an unknown guest or network, `LabError` if the guest does not run.
    """
    mac = interface_on(topology, guest, network).mac
    lab = LabPaths(topology.name)
    try:
        with libvirtd.connect(lab, connect) as connection:
            handle = connection.lookupByName(lab.domain(guest))
            device = _find_device(handle, mac)
            for link in device.findall("link"):
                device.remove(link)
            ElementTree.SubElement(device, "link", {"state": "up" if present else "down"})
            text = ElementTree.tostring(device, encoding="unicode")
            handle.updateDeviceFlags(text, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        raise LabError(f"guest {guest}: its link cannot be set: {error}", cure="lab status") from error


def _find_device(handle: Any, mac: str) -> ElementTree.Element:
    for device in ElementTree.fromstring(handle.XMLDesc()).iterfind("devices/interface"):
        address = device.find("mac")
        if address is not None and address.get("address", "").lower() == mac:
            return device
    raise LabError(f"{handle.name()} has no NIC {mac}", cure="lab down; lab up")
