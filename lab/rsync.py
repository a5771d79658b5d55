"""Directories kept alike between the host and a guest: rsync, over the lab's ssh."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence

from lab import guest, ssh_config
from lab.errors import LabError, MissingError, UserError
from lab.places import Place
from lab.topology import Topology

#: rsync's for an error in its protocol, and a shell's for "no such program": both mean perhaps that the guest
#: lacks rsync.
_SUSPICIOUS = (12, 127)

_PATIENCE = 5.0


def sync(topology: Topology, sources: Sequence[Place], target: Place, options: Sequence[str] = ()) -> int:
    """Run rsync from the sources to the target, one side of which is a guest; returns its exit code.

    It uses this process's standard streams. Raises `UserError` for sides that rsync cannot join,
    `MissingError` if the host or the guest has no rsync, `LabError` if the lab is not up.
    """
    involved = {place.guest for place in (*sources, target) if place.guest is not None}
    if len(involved) != 1 or (target.guest is None) == (sources[0].guest is None):
        raise UserError(
            "one side of a sync is on the host, the other in one guest, as in ./src client:/root/src"
        )
    if len({place.guest for place in sources}) > 1:
        raise UserError("the sources of a sync are all on the host, or all in one guest")
    (name,) = involved
    topology.guest(name)
    config = ssh_config.write(topology)
    argv = ["rsync", "--archive", "--rsh", f"ssh -F '{config}'", *options, "--"]
    argv += [str(place) if place.guest else _local(place.path) for place in (*sources, target)]
    code = _run(argv)
    if code in _SUSPICIOUS and guest.run(topology, name, ["sh", "-c", "command -v rsync"]).code:
        raise MissingError(
            f"guest {name} has no rsync",
            cure="add rsync to image.packages of the topology, or use `lab cp`, which needs none",
        )
    return code


def _local(path: str) -> str:
    """The path so that rsync does not take it for HOST:PATH."""
    return path if path.startswith(("/", "./")) else f"./{path}"


def _run(argv: Sequence[str]) -> int:
    try:
        process = subprocess.Popen(argv)
    except FileNotFoundError:
        raise MissingError(
            "there is no rsync on this host", cure="apt-get install rsync, or `lab cp`, which needs none"
        ) from None
    try:
        code = process.wait()
    except BaseException:
        # An interrupt from the terminal reached rsync as well; a signal to this process alone did not.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
        process.kill()
        process.wait()
        raise
    if code < 0:
        raise LabError(f"rsync was ended by signal {-code}")
    return code
