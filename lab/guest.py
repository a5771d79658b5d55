"""Reaching a guest of a running lab: commands and shells by ssh, over sockets opened inside the lab's
network namespace.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from lab import keys, netns
from lab.errors import LabError, MissingError
from lab.paths import LabPaths
from lab.ssh_session import Session
from lab.topology import Topology

#: Of every guest.
SSH_PORT = 22

#: Seconds. A guest that is up accepts at once, but a busy TCG guest does nothing at once.
_CONNECT_TIMEOUT = 20.0


@dataclass(frozen=True)
class Completed:
    """A command that ended in a guest: exit code (128+n if signal n ended it) and what it wrote."""

    code: int
    stdout: bytes
    stderr: bytes


def open_session(topology: Topology, guest: str) -> Session:
    """An ssh session to the guest, for many commands. Logging in costs a TCG guest a second; a command less.

    Raises `UserError` for an unknown guest, `LabError` if the lab is not up or the guest cannot be reached.
    """
    lab = LabPaths(topology.name)
    address = str(topology.guest(guest).address)
    host_key = lab.host_key(guest)
    if not (lab.private_key.exists() and host_key.exists()):
        raise LabError(f"lab {topology.name} is not up", cure="lab up")
    try:
        connection = netns.open_connection(lab.netns_file, address, SSH_PORT, _CONNECT_TIMEOUT)
    except OSError as error:
        raise LabError(
            f"guest {guest} does not answer at {address}: {error.strerror or error}", cure="lab status"
        ) from error
    return Session(guest, connection, lab.private_key, keys.public_key(host_key))


def execute(
    topology: Topology,
    guest: str,
    argv: Sequence[str],
    *,
    stdin: BinaryIO | None = None,
    stdout: BinaryIO,
    stderr: BinaryIO,
    timeout: float | None = None,
) -> int:
    """Run argv in the guest as root and stream its output; returns its exit code (128+n if signal n ended
    it).

    `stdin` None gives the command an empty input. Raises `UserError` for an unknown guest, `LabError` if the
    lab is not up, the guest cannot be reached, or `timeout` (seconds) passes.
    """
    with open_session(topology, guest) as session:
        return session.execute(argv, stdin=stdin, stdout=stdout, stderr=stderr, timeout=timeout)


def run(
    topology: Topology, guest: str, argv: Sequence[str], *, stdin: bytes = b"", timeout: float | None = None
) -> Completed:
    """Run argv in the guest as root and collect its output. Raises as `execute` does; a bad exit code is no
    error.
    """
    with open_session(topology, guest) as session:
        return run_in(session, argv, stdin=stdin, timeout=timeout)


def run_in(
    session: Session, argv: Sequence[str], *, stdin: bytes = b"", timeout: float | None = None
) -> Completed:
    """As `run`, in a session that exists."""
    out, errors = io.BytesIO(), io.BytesIO()
    code = session.execute(argv, stdin=io.BytesIO(stdin), stdout=out, stderr=errors, timeout=timeout)
    return Completed(code, out.getvalue(), errors.getvalue())


def ssh_argv(topology: Topology, guest: str, argv: Sequence[str] = ()) -> list[str]:
    """The command line of an ssh to the guest, which reaches it through `lab.proxy`."""
    lab = LabPaths(topology.name)
    address = str(topology.guest(guest).address)
    if not lab.private_key.exists():
        raise LabError(f"lab {topology.name} is not up", cure="lab up")
    words = ["ssh", "-F", "none"]
    for name, value in ssh_options(lab).items():
        words += ["-o", f"{name}={value}"]
    if argv and sys.stdin.isatty():
        words.append("-t")
    words += ["-l", "root", "--", address]
    return [*words, shlex.join(argv)] if argv else words


def ssh_options(lab: LabPaths) -> dict[str, str]:
    """The options with which any OpenSSH program reaches the lab's guests by their addresses."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    proxy = ["env", f"PYTHONPATH={path}", sys.executable, "-P", "-m", "lab.proxy", str(lab.netns_file)]
    return {
        "ProxyCommand": f"{shlex.join(proxy)} %h %p",
        "IdentityFile": str(lab.private_key),
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": str(lab.known_hosts),
        "StrictHostKeyChecking": "yes",
        "LogLevel": "ERROR",
    }


def ssh(topology: Topology, guest: str, argv: Sequence[str] = ()) -> NoReturn:
    """Replace this process by an interactive ssh to the guest (with a command, if argv is given)."""
    words = ssh_argv(topology, guest, argv)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvp(words[0], words)
    except FileNotFoundError:
        raise MissingError("there is no ssh on this host", cure="apt-get install openssh-client") from None
