"""A lab as Ansible's dynamic inventory: its guests, how ssh reaches them, and their groups.

It says what the topology says, whether the lab is up or not. Groups are `lab` (every guest), `network_NAME`,
`heap_NAME`, and those under a guest's `groups`; hyphens become underscores, as Ansible wants names of groups.
"""

from __future__ import annotations

import hashlib
import shlex
from typing import Any

from lab import guest as guests
from lab.paths import LabPaths
from lab.topology import Guest, Topology

EVERYBODY = "lab"

#: Every guest's; asking each for it costs a second under TCG.
_PYTHON = "/usr/bin/python3"

#: As Ansible has it, but without compression, which costs a TCG guest more than it saves.
_SHARED_CONNECTION = "-o ControlMaster=auto -o ControlPersist=60s"

#: A shared connection to a guest that was switched off ends by itself within a minute.
_SIGNS_OF_LIFE = {"ServerAliveInterval": "10", "ServerAliveCountMax": "6"}


def make_list(topology: Topology) -> dict[str, Any]:
    """What Ansible expects of `--list`: groups with their hosts, and the variables of all hosts."""
    members = groups_of(topology)
    inventory: dict[str, Any] = {
        "_meta": {
            "hostvars": {guest.name: host_variables(topology, guest) for guest in topology.guests.values()}
        },
        "all": {"children": ["ungrouped", *members]},
    }
    return inventory | {group: {"hosts": hosts} for group, hosts in members.items()}


def groups_of(topology: Topology) -> dict[str, list[str]]:
    """The names of the guests in each group, in the order of the file."""
    members = {EVERYBODY: list(topology.guests)}
    for guest in topology.guests.values():
        names = [f"network_{interface.network}" for interface in guest.interfaces]
        names += [f"heap_{heap}" for heap in guest.heaps]
        for name in [*names, *guest.groups]:
            members.setdefault(name.replace("-", "_"), []).append(guest.name)
    return members


def host_variables(topology: Topology, guest: Guest) -> dict[str, Any]:
    """The variables of one guest: what Ansible needs to connect, and `hyperheap_...` for playbooks."""
    lab = LabPaths(topology.name)
    options = guests.ssh_options(lab) | _SIGNS_OF_LIFE
    key = options.pop("IdentityFile")
    words = ["-F", "none"]
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    return {
        "ansible_connection": "ssh",
        "ansible_host": str(guest.address),
        "ansible_port": guests.SSH_PORT,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": key,
        "ansible_ssh_args": _SHARED_CONNECTION,
        "ansible_ssh_common_args": shlex.join(words),
        "ansible_control_path": f"%(directory)s/hh-{_connection_name(lab, guest)}",
        "ansible_pipelining": True,
        "ansible_python_interpreter": _PYTHON,
        "hyperheap_lab": topology.name,
        "hyperheap_addresses": [str(address) for address in guest.addresses],
        "hyperheap_networks": [interface.network for interface in guest.interfaces],
        "hyperheap_heaps": list(guest.heaps),
        "hyperheap_vcpus": guest.vcpus,
        "hyperheap_memory": guest.memory,
    }


def _connection_name(lab: LabPaths, guest: Guest) -> str:
    """Names the shared connection. Ansible's own name is made of the address, and guests of two labs, or of
    a lab that was down meanwhile, may have the same one.
    """
    try:
        begun = lab.known_hosts.stat().st_mtime_ns
    except OSError:
        begun = 0
    return hashlib.sha256(f"{lab.lab}/{guest.name}/{begun}".encode()).hexdigest()[:16]
