"""A lab's guests as hosts of an OpenSSH configuration, for ssh, scp, rsync, git and editors."""

from __future__ import annotations

from pathlib import Path

from lab import guest
from lab.errors import LabError
from lab.paths import LabPaths
from lab.topology import Topology


def text(topology: Topology) -> str:
    """One `Host` block per guest: `NAME` and `NAME.LAB`. Raises `LabError` if the lab is not up."""
    lab = LabPaths(topology.name)
    if not lab.private_key.exists():
        raise LabError(f"lab {topology.name} is not up", cure="lab up")
    options = guest.ssh_options(lab)
    lines = []
    for each in topology.guests.values():
        lines += [
            f"Host {each.name} {each.name}.{topology.name}",
            f"  HostName {each.address}",
            "  User root",
            *(f"  {name} {_quote(name, value)}" for name, value in options.items()),
            "",
        ]
    return "\n".join(lines)


def write(topology: Topology) -> Path:
    """A file with that text, which lives as long as the lab."""
    path = LabPaths(topology.name).private_key.with_name("config")
    content = text(topology)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(content)
    temporary.rename(path)
    return path


def _quote(name: str, value: str) -> str:
    # The rest of a ProxyCommand's line is the command, quotes and all.
    return f'"{value}"' if " " in value and name != "ProxyCommand" else value
