"""The lab's private libvirt daemon, in the lab's network namespace and with state directories of its own.

libvirtd has its directories compiled in. It gets a mount namespace in which the lab's directories are bound
over those five, so that daemons of several labs, and the host's own, do not know of each other. Everything
else, the cgroups in /sys among it, stays visible, which `ip netns exec` would hide.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt

from lab import netns, paths, process
from lab.errors import LabError
from lab.paths import LabPaths

#: The directories that are compiled into libvirt, and what stands for them below the lab's.
_DIRECTORIES = (
    ("etc", "/etc/libvirt"),
    ("lib", "/var/lib/libvirt"),
    ("log", "/var/log/libvirt"),
    ("run", "/run/libvirt"),
)
#: Directories in them that libvirt expects its packages to have made.
_MADE_BY_PACKAGES = ("lib/dnsmasq", "lib/qemu", "log/qemu")
_CAPABILITIES = "/var/cache/libvirt"

#: Run with the libvirtd command line after pairs of directories (from, to), ended by "--".
_ENTER = 'while [ "$1" != -- ]; do mkdir -p "$2"; mount --bind "$1" "$2"; shift 2; done; shift; exec "$@"'

_LIBVIRTD_CONF = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_ro_perms = "0700"
unix_sock_rw_perms = "0700"
host_uuid_source = "machine-id"
max_clients = 200
log_level = 3
"""

# QEMU runs as root: its rights then always agree with /dev/kvm's, without which libvirt probes QEMU anew at
# every call (8 s), and it needs no change of owner on images that labs share. QEMU's own seccomp sandbox
# stays on.
_QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
stdio_handler = "file"
namespaces = []
"""

#: Seconds: the daemon answers in less than one, but in ten where QEMU's capabilities are not cached and the
#: host is busy.
START_TIMEOUT = 60.0


def _ignore(_context: object, _error: object) -> None:
    """libvirt prints every error on stderr unless told otherwise; they are raised as well."""


libvirt.registerErrorHandler(_ignore, None)


def uri(lab: LabPaths) -> str:
    """The URI of the private daemon."""
    return f"qemu+unix:///system?socket={lab.libvirt_socket}"


@contextlib.contextmanager
def connect(lab: LabPaths, connect_uri: str | None = None) -> Iterator[Any]:
    """A connection to the lab's daemon, or to the libvirt at `connect_uri`. Raises `LabError` if nobody
    answers.
    """
    where = connect_uri or uri(lab)
    try:
        connection = libvirt.open(where)
    except libvirt.libvirtError as error:
        raise LabError(
            f"no libvirt answers at {where}: {error}", cure=f"see {lab.libvirt_log}; lab down; lab up"
        ) from error
    try:
        yield connection
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()


def answers(lab: LabPaths) -> bool:
    """Whether the lab's daemon answers."""
    if not lab.libvirt_socket.exists():
        return False
    try:
        with connect(lab) as connection:
            return bool(connection.getLibVersion())
    except (LabError, libvirt.libvirtError):
        return False


def start(lab: LabPaths) -> bool:
    """Start the lab's daemon unless it answers; whether it was started. The network namespace must exist."""
    if answers(lab):
        return False
    for leftover in process.find(process.works_in(lab.libvirt, ("libvirtd",))):
        leftover.kill()
    mounts: list[str | Path] = []
    for directory in _MADE_BY_PACKAGES:
        (lab.libvirt / directory).mkdir(parents=True, exist_ok=True)
    for name, target in _DIRECTORIES:
        (lab.libvirt / name).mkdir(parents=True, exist_ok=True)
        mounts += [lab.libvirt / name, target]
    paths.capabilities_dir().mkdir(parents=True, exist_ok=True)
    mounts += [paths.capabilities_dir(), _CAPABILITIES]
    (lab.libvirt / "etc" / "libvirtd.conf").write_text(_LIBVIRTD_CONF)
    (lab.libvirt / "etc" / "qemu.conf").write_text(_QEMU_CONF)
    # Propagation "slave": when another lab removes its network namespace, the copy of its mount here must go,
    # too.
    argv = [
        *netns.prefix(lab.netns_file),
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-euc",
        _ENTER,
        "sh",
    ]
    daemon = [
        "libvirtd",
        "--config",
        lab.libvirt / "etc" / "libvirtd.conf",
        "--pid-file",
        lab.libvirt / "libvirtd.pid",
    ]
    child = process.start([*argv, *mounts, "--", *daemon], log=lab.libvirt_log)
    deadline = time.monotonic() + START_TIMEOUT
    while not answers(lab):
        if not child.is_alive() or time.monotonic() > deadline:
            last = "\n".join(lab.libvirt_log.read_text(errors="replace").splitlines()[-5:])
            raise LabError(
                f"libvirtd of lab {lab.lab} does not answer: {last or 'it said nothing'}", cure="lab doctor"
            )
        time.sleep(0.05)
    return True
