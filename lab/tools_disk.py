"""The tools disk: what makes an image a certain guest of a certain lab. Read-only, one per guest, made at
`lab up`.

bin/setup bin/lab-run                      guest_files/tools
lib/libivshmem.so lib/libhyperheap.so      the C core and the shim
lib/hyperheap.ko                           the driver, for the image's kernel
python/guest_agent/ python/ivshmem/        the agent and what it uses, compiled
units/                                     systemd units; the initrd puts them on systemd's path
etc/                                       what is this guest's own: guest.json, hostname, hosts, interfaces,
keys
"""

from __future__ import annotations

import compileall
import contextlib
import importlib.util
import json
import os
import py_compile
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ivshmem import artifacts
from lab import driver, uplink
from lab.image import Image, make_disk
from lab.recipe import GUEST_FILES
from lab.topology import Guest, Topology

LABEL = "HYPERHEAP"

#: Python of the images' suites: code compiled here is of use there only if it is this one's.
_GUEST_PYTHON = {"bookworm": (3, 11), "trixie": (3, 13)}

_AGENT_UNIT = "hyperheap-agent.service"
_EXECUTABLE = 0o755


@contextlib.contextmanager
def common_tree(image: Image, parent: Path) -> Iterator[Path]:
    """A temporary directory below `parent` with what all tools disks of a lab have in common."""
    with tempfile.TemporaryDirectory(prefix="tools-", dir=parent) as scratch:
        tree = Path(scratch) / "tree"
        shutil.copytree(GUEST_FILES / "tools", tree)
        for program in (tree / "bin").iterdir():
            program.chmod(_EXECUTABLE)
        library = tree / "lib"
        library.mkdir()
        for find in (artifacts.core_library, artifacts.shim_library):
            shutil.copy(find(), library)
        if module := driver.build(image):
            shutil.copy(module, library / driver.NAME)
        _copy_packages(tree / "python", compiled=_GUEST_PYTHON.get(image.suite) == sys.version_info[:2])
        wanted = tree / "units" / "multi-user.target.wants"
        wanted.mkdir()
        (wanted / _AGENT_UNIT).symlink_to(f"../{_AGENT_UNIT}")
        yield tree


def _copy_packages(target: Path, *, compiled: bool) -> None:
    for name in ("guest_agent", "ivshmem"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).parent
        for file in source.rglob("*.py"):
            copy = target / name / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    if compiled:
        # The disk is read-only in the guest, which would compile everything anew at each start of the agent.
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(
            str(target),
            quiet=2,
            stripdir=str(target),
            prependdir="/opt/hyperheap/python",
            invalidation_mode=mode,
        )


def make(
    tree: Path, disk: Path, topology: Topology, guest: Guest, *, host_key: Path, authorized_key: str
) -> None:
    """Make the guest's tools disk of the common tree and what is the guest's own. `host_key` is its private
    SSH host key.
    """
    disk.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="tools-", dir=tree.parent) as scratch:
        own = Path(scratch) / "tree"
        shutil.copytree(tree, own, symlinks=True, copy_function=os.link)
        etc = own / "etc"
        etc.mkdir()
        shutil.copy(host_key, etc / "ssh_host_ed25519_key")
        (etc / "ssh_host_ed25519_key").chmod(0o600)
        for name, text in own_files(topology, guest).items():
            (etc / name).write_text(text)
        (etc / "authorized_keys").write_text(authorized_key)
        own.chmod(_EXECUTABLE)
        used = sum(path.lstat().st_blocks * 512 for path in own.rglob("*"))
        make_disk(own, disk, label=LABEL, size=_round_up(used * 5 // 4 + (4 << 20), 1 << 20))


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def own_files(topology: Topology, guest: Guest) -> dict[str, str]:
    """The text files of the disk's etc/ that depend on the guest, by name."""
    interfaces = []
    for interface in guest.interfaces:
        addresses = [f"{interface.address}/{interface.prefix}"]
        if interface.address6 is not None:
            addresses.append(f"{interface.address6}/{interface.prefix6}")
        interfaces.append({"mac": interface.mac, "addresses": addresses})
    gateway = topology.gateway(guest)
    description = {
        "version": 1,
        "lab": topology.name,
        "name": guest.name,
        "shim": guest.shim,
        "heaps": guest.heaps,
        "interfaces": interfaces,
        "hosts": {
            name: [str(address) for address in topology.addresses_for(guest, other)]
            for name, other in topology.guests.items()
        },
    }
    lines = []
    for entry, interface in zip(interfaces, guest.interfaces, strict=True):
        way_out = [f"via={gateway.host_address}"] if gateway and gateway.name == interface.network else []
        lines.append(" ".join([str(entry["mac"]), *entry["addresses"], *way_out]))
    return {
        "guest.json": json.dumps(description, indent=2) + "\n",
        "hostname": f"{guest.name}\n",
        "hosts": hosts_table(topology, guest),
        "interfaces": "".join(f"{line}\n" for line in lines),
        "resolvers": uplink.resolvers() if gateway else "",
        "shim": f"{guest.shim}\n",
    }


def hosts_table(topology: Topology, guest: Guest) -> str:
    """The /etc/hosts of a guest: all guests by name, and the host as `host`, at addresses that it reaches.

    `server` has the addresses of all networks that the two have in common, `server.lan` those on one of them.
    """
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    own = [interface.network for interface in guest.interfaces]
    for other in topology.guests.values():
        for interface in other.interfaces:
            if interface.network in own:
                names = f"{other.name} {other.name}.{interface.network}"
                lines += [f"{address} {names}" for address in interface.addresses]
    for name in own:
        network = topology.networks[name]
        lines.append(f"{network.host_address} host host.{name}")
        if network.host_address6 is not None:
            lines.append(f"{network.host_address6} host host.{name}")
    return "\n".join(lines) + "\n"
