"""A guest as a libvirt domain: its XML, its start, what libvirt says of it."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt

from lab import network, template
from lab.errors import LabError
from lab.paths import LabPaths
from lab.topology import Guest, Topology

#: XML namespace of the metadata that mark a domain as a lab's guest.
NAMESPACE = "https://hyperheap.org/lab/1"

#: Root ports for devices that are plugged in later.
FREE_PORTS = 4

#: Slots of the root bus that the template has for NICs and for heaps.
MAX_INTERFACES = 8
MAX_HEAPS = 12

EMULATOR = "/usr/bin/qemu-system-x86_64"

#: What the guests' kernels are told. Most of it saves time under TCG; the console stays silent but for
#: errors.
CMDLINE = (
    "console=ttyS0 quiet loglevel=4 root=none rw net.ifnames=0 "
    "mitigations=off nokaslr audit=0 apparmor=0 selinux=0 cryptomgr.notests random.trust_cpu=on "
    "no_timer_check 8250.nr_uarts=1 panic=-1 pci=hpmmioprefsize=256M "
    "systemd.show_status=no systemd.log_target=journal"
)

_STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: "unknown",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "stopping",
    libvirt.VIR_DOMAIN_SHUTOFF: "off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "suspended",
}


@dataclass(frozen=True)
class Boot:
    """What a guest boots: files of an image, and by which accelerator ("kvm" or "tcg")."""

    kernel: Path
    initrd: Path
    accelerator: str
    tsc_khz: int | None = None
    """Frequency of the host's time stamp counter, for a guest under TCG; None if it is unknown."""

    @property
    def cmdline(self) -> str:
        """What the kernel is told."""
        if self.accelerator == "kvm":
            return CMDLINE
        clock = f"tsc=reliable tsc_early_khz={self.tsc_khz}" if self.tsc_khz else "clocksource=hpet"
        return f"{CMDLINE} {clock}"


@dataclass(frozen=True)
class Marked:
    """A domain that is a lab's guest, as libvirt has it now."""

    guest: str
    digest: str
    state: str
    accelerator: str
    handle: Any


def tap_name(lab: str, guest: str, index: int) -> str:
    """Name of the tap behind a guest's NIC: at most 15 characters, unique on a host that several labs
    share.
    """
    return f"hh{hashlib.sha256(f'{lab}/{guest}'.encode()).hexdigest()[:8]}.{index}"


def xml(topology: Topology, guest: Guest, boot: Boot) -> str:
    """The libvirt XML of a guest."""
    if len(guest.interfaces) > MAX_INTERFACES or len(guest.heaps) > MAX_HEAPS:
        raise LabError(
            f"guest {guest.name}: at most {MAX_INTERFACES} interfaces and {MAX_HEAPS} heaps have room"
        )
    paths = LabPaths(topology.name)
    files = paths.guest(guest.name)
    name = paths.domain(guest.name)
    interfaces = [
        {
            "mac": interface.mac,
            "mtu": topology.networks[interface.network].mtu,
            "libvirt_network": network.libvirt_name(topology.name, interface.network),
            "tap": tap_name(topology.name, guest.name, index),
        }
        for index, interface in enumerate(guest.interfaces)
    ]
    heaps = [
        {"name": heap, "socket": paths.heap_socket(heap), "vectors": topology.heaps[heap].vectors}
        for heap in guest.heaps
    ]
    return template.render(
        "domain",
        accelerator=boot.accelerator,
        cmdline=boot.cmdline,
        console_log=files.console_log,
        console_socket=files.console_socket,
        digest=topology.digest(),
        emulator=EMULATOR,
        free_ports=FREE_PORTS,
        guest=guest,
        heaps=heaps,
        initrd=boot.initrd,
        interfaces=interfaces,
        kernel=boot.kernel,
        lab=topology.name,
        name=name,
        namespace=NAMESPACE,
        overlay=files.overlay,
        registry_socket=files.registry_socket,
        tools_disk=files.tools_disk,
        uuid=uuid.uuid5(network.UUID_ROOT, f"domain/{name}"),
    )


def find_all(connection: Any, lab: str) -> Iterator[Marked]:
    """The lab's guests that libvirt knows, by their metadata. Those that end meanwhile are left out."""
    for handle in connection.listAllDomains():
        with contextlib.suppress(libvirt.libvirtError):
            root = ElementTree.fromstring(handle.XMLDesc())
            mark = root.find(f"metadata/{{{NAMESPACE}}}guest")
            if mark is None or mark.get("lab") != lab:
                continue
            state = _STATES.get(handle.state()[0], "unknown")
            accelerator = "kvm" if root.get("type") == "kvm" else "tcg"
            yield Marked(mark.get("name", ""), mark.get("topology", ""), state, accelerator, handle)


def is_running(connection: Any, lab: LabPaths, guest: str) -> bool:
    """Whether the guest runs at this moment."""
    try:
        return bool(connection.lookupByName(lab.domain(guest)).isActive())
    except libvirt.libvirtError:
        return False


def start(connection: Any, topology: Topology, guest: Guest, boot: Boot) -> None:
    """Start a guest. Its domain is transient: when the guest ends, libvirt forgets it."""
    try:
        connection.createXML(xml(topology, guest, boot))
    except libvirt.libvirtError as error:
        raise LabError(f"guest {guest.name}: libvirt cannot start it: {error}") from error


def destroy(marked: Marked) -> None:
    """Switch a guest off at once."""
    with contextlib.suppress(libvirt.libvirtError):
        marked.handle.destroyFlags(0)
