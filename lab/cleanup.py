"""Removing a lab from the host, whatever state it is in and whoever was killed while making it.

Nothing here relies on a daemon that answers or on a record of what was started: processes are found by the
lab's network namespace and directories, the rest by name. The runtime directory goes last, since it tells
what else there is.
"""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import domain, libvirtd, netns, network, process, uplink
from lab.errors import LabError
from lab.paths import LabPaths

#: Seconds. What cannot be removed by then is in use, by something that is not the lab's.
_CGROUP_TIMEOUT = 2.0

_PROGRAMS = ("libvirtd", "qemu-system-", "python")


def remove_everything(lab: LabPaths, connect: str | None = None) -> bool:
    """Remove all processes, links, mounts and files of the lab; whether there was anything. Raises
    `LabError` for what stays.
    """
    changed = False
    if connect is not None:
        with libvirtd.connect(lab, connect) as connection:
            guests = list(domain.find_all(connection, lab.lab))
            # libvirt asks QEMU to end, and waits: for all at once.
            with ThreadPoolExecutor(len(guests) or 1) as pool:
                list(pool.map(domain.destroy, guests))
            changed = network.remove_all(connection, lab.lab) or bool(guests)
    changed |= _end_processes(lab)
    changed |= netns.remove(lab.netns)
    changed |= uplink.remove(lab)
    _remove_cgroups(lab)
    changed |= _remove_heaps(lab)
    for directory in (lab.disks, lab.root):
        if directory.exists():
            changed = True
            shutil.rmtree(directory)
    return changed


def _end_processes(lab: LabPaths) -> bool:
    inside = process.in_netns(lab.netns_file)
    # QEMU gets its sockets as open files: its disks are what names the lab in its arguments.
    has_root, has_disks = process.works_in(lab.root, _PROGRAMS), process.works_in(lab.disks, _PROGRAMS)
    ended = False
    # Once more after the first round: who was being started when the first was listed is found by the second.
    while found := process.find(lambda entry: inside(entry) or has_root(entry) or has_disks(entry)):
        ended = True
        if stuck := process.kill(found):
            pids = ", ".join(str(each.pid) for each in stuck)
            raise LabError(
                f"lab {lab.lab}: processes {pids} survive SIGKILL",
                cure="look for them in `ps -o pid,stat,wchan`",
            )
    return ended


def _remove_cgroups(lab: LabPaths) -> None:
    """libvirt removes a domain's control groups itself, unless it was killed."""
    root = Path("/sys/fs/cgroup")
    groups = [
        directory
        for parent in (*root.glob("machine*"), *root.glob("*/machine*"))
        for group in parent.glob(f"qemu-*-{lab.domain('')}*")
        for directory in (group, *group.rglob("*/"))
    ]
    # A group can be removed once its inner groups are, and its processes have been waited for by their
    # parent.
    deadline = time.monotonic() + _CGROUP_TIMEOUT
    for directory in sorted(groups, key=lambda each: -len(each.parts)):
        while directory.exists():
            try:
                directory.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.01)


def _remove_heaps(lab: LabPaths) -> bool:
    """Remove the heaps' files as daemon.json, which is there before them, names them."""
    try:
        heaps = json.loads(lab.daemon_config.read_text())["heaps"]
        files = [lab.heap_file(heap["name"]) for heap in heaps]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    existing = [file for file in files if file.exists()]
    for file in existing:
        file.unlink()
    return bool(existing)
