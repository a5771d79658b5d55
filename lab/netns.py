"""The lab's network namespace: its life, and sockets opened inside it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from lab import process
from lab.errors import LabError, MissingError

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def create(name: str) -> None:
    """Make the namespace, with its loopback up, unless it exists."""
    if os.geteuid() != 0:
        raise MissingError("a lab needs the rights of root for its network namespace", cure="sudo lab ...")
    file = Path("/run/netns") / name
    if not is_usable(file):
        remove(name)
        process.run(["ip", "netns", "add", name], what=f"network namespace {name}")
    process.run(["ip", "-n", name, "link", "set", "lo", "up"], what=f"network namespace {name}")


def is_usable(file: Path) -> bool:
    """Whether the file pins a namespace. An interrupted `ip netns add` leaves an empty file."""
    try:
        return file.stat().st_dev != file.parent.stat().st_dev
    except OSError:
        return False


def remove(name: str) -> bool:
    """Delete the links in the namespace and the namespace itself; false if there was none.

    Links first: the kernel destroys a namespace and what is in it at leisure, and somebody may still hold it.
    """
    file = Path("/run/netns") / name
    if not file.exists():
        return False
    if is_usable(file):
        what = f"network namespace {name}"
        for link in json.loads(process.run(["ip", "-n", name, "-j", "link"], what=what)):
            if link["ifname"] != "lo":
                # A tap goes when its bridge or its QEMU goes, perhaps just now.
                with contextlib.suppress(LabError):
                    process.run(["ip", "-n", name, "link", "delete", link["ifname"]], what=what)
        process.run(["ip", "netns", "delete", name], what=what)
    else:
        file.unlink(missing_ok=True)
    return True


def prefix(file: Path) -> list[str]:
    """What to put before an argv to start it inside the namespace. The file system stays as it is, /sys
    included.
    """
    return ["nsenter", f"--net={file}", "--"]


def call(file: Path, function: Callable[[], T]) -> T:
    """Call function in a thread that is inside the namespace; what it opens there stays there."""

    def enter() -> T:
        with file.open("rb") as handle:
            if _libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
                raise LabError(
                    f"cannot enter the network namespace {file.name}: {os.strerror(ctypes.get_errno())}"
                )
        return function()

    # The thread ends with the pool: a thread that changed its namespace must not be used for anything else.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(enter).result()


def open_connection(file: Path, address: str, port: int, timeout: float) -> socket.socket:
    """A TCP connection to (address, port) made inside the namespace. Raises OSError as connect does.

    A lab in a libvirt of the host (--connect) has no namespace: the connection is then made in this process's
    own.
    """

    def connect() -> socket.socket:
        return socket.create_connection((address, port), timeout)

    return call(file, connect) if is_usable(file) else connect()
