"""Where a lab keeps what: one place that knows every path and name outside the source tree."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

#: Linux' limit for the path of a UNIX socket, its final zero byte included.
SOCKET_PATH_LIMIT = 108


def runtime_root() -> Path:
    """Parent of all labs' runtime directories."""
    return Path(os.environ.get("HYPERHEAP_RUNTIME", "/run/hyperheap"))


def cache_root() -> Path:
    """Where images and other things that are costly to make are kept."""
    return Path(os.environ.get("HYPERHEAP_CACHE", "/var/cache/hyperheap"))


def state_root() -> Path:
    """Parent of the labs' disks: too big for /run, which is memory on most hosts."""
    return Path(os.environ.get("HYPERHEAP_STATE", "/var/lib/hyperheap"))


def images_dir() -> Path:
    """Guest images, one directory per digest."""
    return cache_root() / "images"


def capabilities_dir() -> Path:
    """libvirt's cache of what QEMU can do. Shared by all labs: probing QEMU takes four seconds."""
    return cache_root() / "libvirt"


@dataclass(frozen=True)
class GuestPaths:
    """The files of one guest."""

    directory: Path
    disks: Path

    @property
    def registry_socket(self) -> Path:
        """The guest's virtio-serial port. QEMU listens, the registry connects."""
        return self.directory / "registry.sock"

    @property
    def console_socket(self) -> Path:
        """The guest's serial console. QEMU listens, `lab console` connects."""
        return self.directory / "console.sock"

    @property
    def console_log(self) -> Path:
        """Everything that the guest wrote to its serial console."""
        return self.directory / "console.log"

    @property
    def overlay(self) -> Path:
        """The guest's root disk: what differs from the image."""
        return self.disks / "root.qcow2"

    @property
    def tools_disk(self) -> Path:
        """The guest's read-only tools disk."""
        return self.disks / "tools.img"


@dataclass(frozen=True)
class LabPaths:
    """The files and names of one lab."""

    lab: str

    @property
    def root(self) -> Path:
        """The runtime directory of the lab."""
        return runtime_root() / self.lab

    @property
    def lock(self) -> Path:
        """Held by the verb that works on the lab. Outside of `root`, which comes and goes meanwhile."""
        return runtime_root() / f"{self.lab}.lock"

    @property
    def disks(self) -> Path:
        """The guests' disks."""
        return state_root() / self.lab

    @property
    def netns(self) -> str:
        """Name of the lab's network namespace."""
        return f"hh-{self.lab}"

    @property
    def netns_file(self) -> Path:
        """What pins the network namespace; `ip netns` looks here."""
        return Path("/run/netns") / self.netns

    @property
    def libvirt(self) -> Path:
        """State of the private libvirt daemon."""
        return self.root / "libvirt"

    @property
    def libvirt_socket(self) -> Path:
        """Socket of the private libvirt daemon."""
        return self.libvirt / "run" / "libvirt-sock"

    @property
    def libvirt_log(self) -> Path:
        """Log of the private libvirt daemon."""
        return self.libvirt / "libvirtd.log"

    @property
    def private_key(self) -> Path:
        """The key with which the host logs in to this lab's guests."""
        return self.root / "ssh" / "id_ed25519"

    def host_key(self, guest: str) -> Path:
        """The private host key of a guest."""
        return self.root / "ssh" / f"host-{guest}"

    @property
    def known_hosts(self) -> Path:
        """The guests' host keys."""
        return self.root / "ssh" / "known_hosts"

    @property
    def daemon_config(self) -> Path:
        """What the lab's daemon serves."""
        return self.root / "daemon.json"

    @property
    def daemon_socket(self) -> Path:
        """Control socket of the lab's daemon."""
        return self.root / "daemon.sock"

    @property
    def daemon_log(self) -> Path:
        """Log of the lab's daemon."""
        return self.root / "daemon.log"

    def guest(self, name: str) -> GuestPaths:
        """The files of one guest."""
        return GuestPaths(self.root / "guests" / name, self.disks / name)

    def heap_socket(self, heap: str) -> Path:
        """Socket of the heap's doorbell server."""
        return self.root / "heaps" / f"{heap}.sock"

    def heap_file(self, heap: str) -> Path:
        """The heap's memory."""
        return Path("/dev/shm") / f"hyperheap-{self.lab}-{heap}"

    def domain(self, guest: str) -> str:
        """Name of the guest's libvirt domain. It carries the lab's name: cgroups and `--connect` are shared
        by labs.
        """
        return f"hh-{self.lab}.{guest}"
