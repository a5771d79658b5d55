"""The initial RAM disk of a guest image: one static program and the modules that the virtual hardware needs.

Its archive format is cpio "newc" (https://docs.kernel.org/driver-api/early-userspace/buffer-format.html),
written here because it is twenty lines, and uncompressed because inflating it under TCG costs more than
reading it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

#: Kernel modules of a guest's virtual hardware, each after those that it depends on. Loading them in the
#: initrd spares udev one modprobe process each.
MODULES = (
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "drivers/char/virtio_console",
    "drivers/char/hw_random/virtio-rng",
    "net/ipv4/inet_diag",
    "net/ipv4/tcp_diag",
)

DIRECTORIES = ("dev", "proc", "sys", "root", "modules")


@dataclass(frozen=True)
class Entry:
    """One member of the archive. `device` is (major, minor) of a device node."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def pack(entries: Iterable[Entry]) -> bytes:
    """The cpio archive (newc) of these entries, in their order, all owned by root and without time stamps."""
    out = bytearray()
    last = Entry("TRAILER!!!", 0)
    for number, entry in enumerate([*entries, last], start=1):
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += bytes(-len(out) % 4)
        out += entry.data
        out += bytes(-len(out) % 4)
    return bytes(out)


def assemble(init: bytes, modules: Iterable[tuple[str, bytes]]) -> bytes:
    """The RAM disk with this init program that loads these (name, contents) modules in this order."""
    entries = [Entry(name, stat.S_IFDIR | 0o755) for name in DIRECTORIES]
    # The kernel opens /dev/console for init before anybody has mounted /dev.
    entries.append(Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)))
    entries.append(Entry("init", stat.S_IFREG | 0o755, init))
    for number, (name, contents) in enumerate(modules, start=10):
        entries.append(Entry(f"modules/{number}-{name}.ko", stat.S_IFREG | 0o644, contents))
    return pack(entries)
