"""Whether this machine can run labs: findings, each with its reason and, if something is wrong, its cure.

Every check looks at the thing itself: a namespace is made, a kernel is booted under KVM, the shim's symbols
are read. A check never raises because of what it looks for.
"""

from __future__ import annotations

import enum
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ivshmem import artifacts
from lab import accelerator, image, libvirtd, link, paths
from lab.errors import LabError
from lab.progress import Progress
from lab.topology import Topology
from lab.topology_values import GIB, MIB, format_size

#: The programs that labs run, and the Debian packages that have them (all stand in .ci/packages.txt).
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "libvirtd": "libvirt-daemon",
    "virsh": "libvirt-clients",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "gcc": "gcc",
    "make": "make",
}
LIBVIRT_DIRECTORY = Path("/var/lib/libvirt/qemu")
GUEST_GLIBC = {"bookworm": (2, 36)}
DISK_NEEDED = 3 * GIB


class Level(enum.Enum):
    """How a finding bears on labs."""

    OK = "ok"
    ADVICE = "advice"
    """Labs run, but something could be better."""
    MISSING = "missing"
    """Labs do not run before it is mended."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `cure` is a command, or advice where no command would do."""

    level: Level
    subject: str
    text: str
    cure: str | None = None


def examine(progress: Progress, *, topology: Topology | None = None, quick: bool = False) -> list[Finding]:
    """Look at everything that labs need. With a topology, also whether that lab has room here.

    `quick` leaves out what takes more than a moment: the test boot under KVM.
    """
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("rights", _check_rights),
        ("programs", _check_programs),
        ("versions", _check_versions),
        ("C parts", _check_artifacts),
        ("cgroups", _check_cgroups),
        ("room", lambda: _check_room(topology)),
        ("networks", lambda: _check_networks(topology)),
        ("image", _check_images),
        ("accelerator", lambda: _check_accelerator(progress, quick=quick)),
        ("labs", _check_labs),
    ]
    return [finding for subject, check in checks for finding in _guarded(subject, check)]


def _guarded(subject: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except (OSError, LabError, subprocess.SubprocessError) as error:
        yield Finding(Level.ADVICE, subject, f"could not be examined: {error}")


def _check_rights() -> Iterator[Finding]:
    if os.geteuid() != 0:
        yield Finding(
            Level.MISSING,
            "rights",
            "not root; labs need network namespaces, mounts and libvirt",
            "sudo lab doctor",
        )
        return
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", "mount --make-rslave / && mount -t tmpfs none /mnt"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if tried.returncode == 0:
        yield Finding(Level.OK, "rights", "root, with the right to make namespaces and mounts")
    else:
        yield Finding(
            Level.MISSING,
            "rights",
            f"root, but without the right to make namespaces and mounts: {tried.stderr.strip()}",
            "in a container: run it with --privileged",
        )
    if not Path("/dev/net/tun").exists():
        yield Finding(
            Level.MISSING,
            "rights",
            "/dev/net/tun is not there; guests need it for their network interfaces",
            "modprobe tun; in a container: run it with --device /dev/net/tun",
        )


def find_program(name: str) -> str | None:
    """Where a program is; directories for system programs are searched too."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _check_programs() -> Iterator[Finding]:
    missing = {name: package for name, package in PROGRAMS.items() if find_program(name) is None}
    packages = sorted(set(missing.values()))
    if "libvirt-daemon" not in packages and not LIBVIRT_DIRECTORY.is_dir():
        packages.append("libvirt-daemon-system")
        missing[str(LIBVIRT_DIRECTORY)] = "libvirt-daemon-system"
    if packages:
        yield Finding(
            Level.MISSING,
            "programs",
            f"missing: {', '.join(missing)}",
            f"apt-get update && apt-get install --yes {' '.join(packages)}",
        )
    else:
        yield Finding(Level.OK, "programs", f"all {len(PROGRAMS)} are there")


def _check_versions() -> Iterator[Finding]:
    import libvirt

    python = platform.python_version()
    library = ".".join(str(part) for part in _unpack(libvirt.getVersion()))
    emulator = "?"
    program = find_program("qemu-system-x86_64")
    if program is not None:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
        match = re.search(r"version (\S+)", said.stdout)
        emulator = match.group(1) if match else "?"
    machine = platform.machine()
    text = f"{machine}, Python {python}, libvirt {library}, QEMU {emulator}, kernel {platform.release()}"
    if machine != "x86_64":
        yield Finding(Level.MISSING, "versions", f"{text}; guests are x86_64 only", "use an x86_64 machine")
    elif libvirt.getVersion() < 8_000_000:
        yield Finding(Level.MISSING, "versions", f"{text}; libvirt is too old", "use Debian 12 or newer")
    else:
        yield Finding(Level.OK, "versions", text)


def _unpack(version: int) -> tuple[int, int, int]:
    return version // 1_000_000, version // 1_000 % 1_000, version % 1_000


def _check_artifacts() -> Iterator[Finding]:
    try:
        artifacts.core_library()
        shim = artifacts.shim_library()
    except artifacts.ArtifactMissing as error:
        yield Finding(Level.MISSING, "C parts", str(error), "make setup (or, in the tree, make build)")
        return
    needed = needed_glibc(shim.read_bytes())
    for suite, has in GUEST_GLIBC.items():
        if needed > has:
            yield Finding(
                Level.MISSING,
                "C parts",
                f"the shim needs glibc {_dotted(needed)}; guests of {suite} have only {_dotted(has)}",
                f"build hyperheap on Debian {suite} (or in a container of it)",
            )
            return
    yield Finding(Level.OK, "C parts", f"the shim needs glibc {_dotted(needed)}, which every guest has")


def needed_glibc(library: bytes) -> tuple[int, ...]:
    """The newest glibc that an ELF file names among the versions of its symbols; (0,) if it names none."""
    versions = re.findall(rb"\0GLIBC_([0-9]+(?:\.[0-9]+)+)(?=\0)", library)
    return max((tuple(int(part) for part in version.split(b".")) for version in versions), default=(0,))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _check_cgroups() -> Iterator[Finding]:
    root = Path("/sys/fs/cgroup")
    unified = root / "cgroup.controllers"
    if unified.exists():
        controllers = unified.read_text().split()
        kind = "v2"
    else:
        controllers = [path.name for path in root.glob("*") if path.is_dir()]
        kind = "v1"
    lacking = [name for name in ("cpu", "memory") if name not in controllers]
    if lacking:
        yield Finding(
            Level.ADVICE,
            "cgroups",
            f"no {' and no '.join(lacking)} controller ({kind}): weights and limits of guests have no effect",
            "mount the cgroup controllers; in a container: run it with --cgroupns=host --privileged",
        )
    else:
        yield Finding(Level.OK, "cgroups", f"{kind}, with cpu and memory")


def _check_room(topology: Topology | None) -> Iterator[Finding]:
    for what, directory in (("images", paths.cache_root()), ("disks", paths.state_root())):
        existing = next(each for each in (directory, *directory.parents) if each.exists())
        free = shutil.disk_usage(existing).free
        if free < DISK_NEEDED:
            yield Finding(
                Level.ADVICE,
                "room",
                f"{_rough(free)} free for {what} in {directory}; an image needs about {_rough(DISK_NEEDED)}",
                "remove images that are not needed: lab image list; lab image rm DIGEST",
            )
        else:
            yield Finding(Level.OK, "room", f"{_rough(free)} free for {what} in {directory}")
    heaps = sum(heap.size for heap in topology.heaps.values()) if topology else 64 * MIB
    memory = sum(guest.memory for guest in topology.guests.values()) if topology else 1 * GIB
    whose = f"lab {topology.name}" if topology else "a small lab"
    shared = shutil.disk_usage("/dev/shm").free
    if shared < heaps:
        yield Finding(
            Level.MISSING,
            "room",
            f"/dev/shm has {_rough(shared)} free; the heaps of {whose} need {format_size(heaps)}",
            f"mount -o remount,size={-(-heaps // MIB) * 2}M /dev/shm",
        )
    available = _available_memory()
    if available < memory + heaps:
        yield Finding(
            Level.ADVICE,
            "room",
            f"{_rough(available)} of memory are available; {whose} may use {_rough(memory + heaps)}",
            "give guests less `memory` in the topology, or stop other programs",
        )
    else:
        yield Finding(Level.OK, "room", f"{_rough(available)} of memory available")


def _available_memory() -> int:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0


def _rough(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size // MIB} MiB"


def _check_networks(topology: Topology | None) -> Iterator[Finding]:
    routed = [each.name for each in topology.networks.values() if each.uplink == "nat"] if topology else []
    if routed and find_program("iptables") is None:
        yield Finding(
            Level.MISSING,
            "networks",
            f"the uplink of network {routed[0]} needs iptables",
            "apt-get update && apt-get install --yes iptables",
        )
    if os.geteuid() != 0:
        return
    if link.has_netem():
        yield Finding(Level.OK, "networks", "the kernel impairs links (netem)")
    else:
        yield Finding(
            Level.OK, "networks", "the kernel has no netem; `lab link set` does it by a process, less exactly"
        )


def _check_images() -> Iterator[Finding]:
    images = image.find_all()
    if images:
        sizes = sum(each.size for each in images)
        yield Finding(Level.OK, "image", f"{len(images)} built, {_rough(sizes)} on disk")
    else:
        yield Finding(
            Level.ADVICE,
            "image",
            "none is built yet; the first `lab up` builds one, which takes a minute and a Debian mirror",
            "lab -t examples/hello.yaml image build",
        )


def _check_accelerator(progress: Progress, *, quick: bool) -> Iterator[Finding]:
    device = Path("/dev/kvm")
    slow = "guests are emulated (TCG), which is slower but complete"
    if not device.exists():
        yield Finding(
            Level.ADVICE, "accelerator", f"no /dev/kvm: {slow}", "use a machine with virtualisation"
        )
        return
    if not os.access(device, os.R_OK | os.W_OK):
        yield Finding(Level.ADVICE, "accelerator", f"/dev/kvm may not be opened: {slow}", "run as root")
        return
    images = image.find_all()
    if quick or not images or os.geteuid() != 0:
        cure = None if quick else "lab up (as root), which probes it"
        why = "not probed now" if quick else "it takes an image and root to probe it"
        yield Finding(Level.ADVICE, "accelerator", f"/dev/kvm exists, which proves nothing; {why}", cure)
        return
    if accelerator.choose(images[0], progress) == "kvm":
        yield Finding(Level.OK, "accelerator", "KVM: a guest kernel ran under it")
    else:
        yield Finding(
            Level.ADVICE,
            "accelerator",
            f"/dev/kvm exists, but a guest kernel does not run under it: {slow}",
            "use a machine whose (nested) virtualisation works; it is probed again after the next boot",
        )


def _check_labs() -> Iterator[Finding]:
    for name in sorted(_known_labs()):
        lab = paths.LabPaths(name)
        if libvirtd.answers(lab):
            yield Finding(Level.OK, "labs", f"lab {name} is up")
        elif os.geteuid() != 0:
            yield Finding(Level.OK, "labs", f"lab {name} is there; only root can see whether it is up")
        else:
            yield Finding(
                Level.ADVICE,
                "labs",
                f"lab {name} left something behind but is not up",
                f"lab down --lab {name}",
            )


def _known_labs() -> set[str]:
    """Names of labs of which anything is on this host."""
    names = {path.name for path in _entries(paths.runtime_root()) if path.is_dir()}
    names |= {path.name for path in _entries(paths.state_root()) if path.is_dir()}
    names |= {
        path.name.removeprefix("hh-") for path in _entries(Path("/run/netns")) if path.name.startswith("hh-")
    }
    return names


def _entries(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []
