"""The lab's daemon as a process: what it is told to serve, and its start. `lab.control` talks to it."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from lab import control, netns, process
from lab.errors import LabError
from lab.paths import LabPaths
from lab.topology import Topology

#: Seconds: it imports and formats the heaps in one, more on a busy host.
START_TIMEOUT = 30.0


def describe(topology: Topology) -> dict[str, Any]:
    """The contents of daemon.json for this topology."""
    lab = LabPaths(topology.name)
    return {
        "version": 1,
        "lab": topology.name,
        "heaps": [
            {
                "name": heap.name,
                "size": heap.size,
                "file": str(lab.heap_file(heap.name)),
                "socket": str(lab.heap_socket(heap.name)),
                "vectors": heap.vectors,
                "buffer": heap.buffer,
                "members": list(heap.members),
            }
            for heap in topology.heaps.values()
        ],
        "guests": [
            {
                "name": guest.name,
                "port": str(lab.guest(guest.name).registry_socket),
                "addresses": [str(address) for address in guest.addresses],
            }
            for guest in topology.guests.values()
        ],
        "policy": topology.policy.model_dump(mode="json"),
    }


def answers(lab: LabPaths) -> bool:
    """Whether the daemon answers."""
    try:
        return bool(control.ask(lab.daemon_socket, "ping"))
    except LabError:
        return False


def start(topology: Topology) -> None:
    """Write daemon.json and start the daemon, in the lab's network namespace; returns when it answers.

    A daemon that was killed may have a successor: it keeps its leases on disk, and the agents come to it by
    themselves.
    """
    lab = LabPaths(topology.name)
    (lab.root / "heaps").mkdir(parents=True, exist_ok=True)
    text = json.dumps(describe(topology), indent=2) + "\n"
    temporary = lab.daemon_config.with_suffix(".new")
    temporary.write_text(text)
    temporary.rename(lab.daemon_config)
    # In a libvirt of the host (--connect) the lab has no namespace of its own.
    inside = netns.prefix(lab.netns_file) if netns.is_usable(lab.netns_file) else []
    argv = [
        *inside,
        sys.executable,
        "-P",
        "-m",
        "lab.daemon",
        "--lab-dir",
        str(lab.root),
    ]
    # The packages are found where this process found them, wherever it was started.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    child = process.start(argv, log=lab.daemon_log, env={**os.environ, "PYTHONPATH": path})
    deadline = time.monotonic() + START_TIMEOUT
    while not answers(lab):
        if not child.is_alive() or time.monotonic() > deadline:
            last = "\n".join(lab.daemon_log.read_text(errors="replace").splitlines()[-8:])
            child.kill()
            raise LabError(f"the daemon of lab {topology.name} does not answer: {last or 'it said nothing'}")
        time.sleep(0.05)
