"""The links of a running lab, each a guest's place on a network: impaired, cut, mended, looked at.

A link is cut as a cable is: libvirt takes the carrier from the guest's NIC. Impairments are the kernel's
netem on the guest's tap, and for what the guest sends on an interface to which the tap's arrivals are
redirected. A kernel without netem gets `lab.link_relay` instead. Both live in the lab's namespace and end
with it, or with the guest, whose tap they need. Bytes in shared memory never pass here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt

from lab import carrier, libvirtd, lock, netns, network, process
from lab.errors import LabError, UserError
from lab.impairment import DIRECTIONS, LinkImpairment
from lab.paths import LabPaths
from lab.topology import Topology

NETEM = "netem"
RELAY = "relay"

_RELAY_MODULE = "lab.link_relay"

#: Seconds: Python starts in half of one.
_RELAY_TIMEOUT = 30.0

#: Whether a kernel has all that the netem way takes: tried out, in a namespace that ends with the trial.
_PROBE = """
ip link set lo up
ip link add probe type ifb
tc qdisc add dev lo root netem delay 1ms loss random 1% rate 1mbit
tc qdisc add dev lo ingress
tc filter add dev lo parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev probe
"""


@dataclass(frozen=True)
class Name:
    """A link by the names of its guest and its network."""

    guest: str
    network: str

    def __str__(self) -> str:
        return f"{self.guest}:{self.network}"


@dataclass(frozen=True)
class LinkStatus:
    """A link as it is now. `state` is "up", "down" or "absent" (its guest does not run); `by` says what
    impairs it: "netem", "relay" or "".
    """

    guest: str
    network: str
    state: str
    tap: str
    by: str
    impairment: LinkImpairment


@dataclass(frozen=True)
class _Place:
    """Where a link's frames pass: interfaces of the namespace `netns` ("" with --connect: of this one)."""

    lab: LabPaths
    tap: str
    bridge: str

    @property
    def file(self) -> Path:
        """What was asked for. Only counts while the very tap is there for which it was."""
        return self.lab.root / "links" / f"{self.tap}.json"

    @property
    def redirected(self) -> str:
        """The interface that what the guest sends is led to, for netem."""
        return f"{self.tap}i"

    @property
    def relay_ends(self) -> tuple[str, str]:
        """The relay's second interface, and its other end, which is in the bridge."""
        return f"{self.tap}r", f"{self.tap}b"

    @property
    def inside(self) -> list[str]:
        """What to put before a command."""
        return netns.prefix(self.lab.netns_file) if netns.is_usable(self.lab.netns_file) else []

    def ip(self, *lines: str) -> None:
        """Run commands of `ip`, at once."""
        data = "\n".join(lines).encode()
        process.run([*self.inside, "ip", "-batch", "-"], what=f"link {self.tap}", data=data)

    def tc(self, *lines: str) -> None:
        """Run commands of `tc`, at once."""
        data = "\n".join(lines).encode()
        process.run([*self.inside, "tc", "-batch", "-"], what=f"link {self.tap}", data=data)

    def index_of(self, interface: str) -> int | None:
        """The number of an interface; no later one of the same name has it."""
        done = subprocess.run(
            [*self.inside, "ip", "-j", "link", "show", "dev", interface], capture_output=True, check=False
        )
        return int(json.loads(done.stdout)[0]["ifindex"]) if done.returncode == 0 else None


def find(topology: Topology, text: str) -> Name:
    """The link that `client:lan` names; `client` alone if that guest has one. Raises `UserError`."""
    guest_name, colon, network_name = text.partition(":")
    networks = [interface.network for interface in topology.guest(guest_name).interfaces]
    if not colon and len(networks) == 1:
        return Name(guest_name, networks[0])
    if network_name in networks:
        return Name(guest_name, network_name)
    links = ", ".join(f"{guest_name}:{each}" for each in networks)
    problem = f"is not on network {network_name!r}" if colon else "is on several networks"
    raise UserError(f"guest {guest_name} {problem}; its links are {links}")


def find_tap(topology: Topology, name: Name, connect: str | None = None) -> str:
    """The interface behind a link, in the lab's namespace. Raises `LabError` if its guest does not run."""
    with _connected(topology, connect) as connection:
        return _tap_of(_interface(connection, topology, name))


def show(topology: Topology, connect: str | None = None) -> list[LinkStatus]:
    """All links of the lab."""
    found: list[LinkStatus] = []
    try:
        with _connected(topology, connect) as connection:
            for guest in topology.guests.values():
                for interface in guest.interfaces:
                    found.append(_look(connection, topology, Name(guest.name, interface.network)))
    except LabError:
        return [
            LinkStatus(guest.name, interface.network, "absent", "", "", LinkImpairment())
            for guest in topology.guests.values()
            for interface in guest.interfaces
        ]
    return found


def _look(connection: Any, topology: Topology, name: Name) -> LinkStatus:
    try:
        element = _interface(connection, topology, name)
    except LabError:
        return LinkStatus(name.guest, name.network, "absent", "", "", LinkImpairment())
    state = element.find("link")
    place = _place(topology, name, element)
    by, impairment = _current(place)
    return LinkStatus(
        name.guest,
        name.network,
        "down" if state is not None and state.get("state") == "down" else "up",
        place.tap,
        by,
        impairment,
    )


def set_carrier(topology: Topology, name: Name, up: bool, connect: str | None = None) -> None:
    """Plug the link's cable in or pull it out. The guest sees it, and no frame passes without it."""
    with _connected(topology, connect) as connection:
        _interface(connection, topology, name)  # Says what is wrong in this module's words.
    carrier.set_carrier(topology, name.guest, name.network, present=up, connect=connect)


def impair(
    topology: Topology,
    name: Name,
    values: dict[str, Any],
    *,
    directions: Iterable[str] = DIRECTIONS,
    connect: str | None = None,
) -> LinkStatus:
    """Give a link these values (`lab.impairment.parse`) in these directions, besides those that it has."""
    with _connected(topology, connect) as connection, lock.hold(LabPaths(topology.name), "link"):
        place = _place(topology, name, _interface(connection, topology, name))
        by, current = _current(place)
        wanted = current.changed(values, directions)
        if wanted.is_none():
            _reset(place)
        else:
            chosen = by or (NETEM if has_netem() else RELAY)
            _write(place, chosen, wanted)
            if chosen == NETEM:
                _apply_netem(place, wanted)
            else:
                _apply_relay(place)
        return _look(connection, topology, name)


def reset(topology: Topology, name: Name, connect: str | None = None) -> None:
    """Take every impairment from a link, and plug it in."""
    with _connected(topology, connect) as connection, lock.hold(LabPaths(topology.name), "link"):
        _reset(_place(topology, name, _interface(connection, topology, name)))
    set_carrier(topology, name, True, connect)


# --- where a link is ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _connected(topology: Topology, connect: str | None) -> Iterator[Any]:
    lab = LabPaths(topology.name)
    if connect is None and not lab.libvirt_socket.exists():
        raise LabError(f"lab {topology.name} is not up", cure="lab up")
    with libvirtd.connect(lab, connect) as connection:
        yield connection


def _interface(connection: Any, topology: Topology, name: Name) -> ElementTree.Element:
    """The link's <interface> in the XML of its guest, which runs."""
    macs = {each.network: each.mac for each in topology.guest(name.guest).interfaces}
    try:
        handle = connection.lookupByName(LabPaths(topology.name).domain(name.guest))
        root = ElementTree.fromstring(handle.XMLDesc())
    except libvirt.libvirtError:
        raise LabError(f"guest {name.guest} does not run", cure="lab up") from None
    for element in root.iterfind("devices/interface"):
        mac = element.find("mac")
        if mac is not None and mac.get("address") == macs[name.network]:
            return element
    raise LabError(f"guest {name.guest} runs without a NIC on network {name.network}", cure="lab up")


def _tap_of(element: ElementTree.Element) -> str:
    target = element.find("target")
    return str(target.get("dev")) if target is not None else ""


def _place(topology: Topology, name: Name, element: ElementTree.Element) -> _Place:
    bridge = network.bridge_name(topology.name, name.network)
    return _Place(LabPaths(topology.name), _tap_of(element), bridge)


def _current(place: _Place) -> tuple[str, LinkImpairment]:
    """What impairs the link now and how; ("", none) if nothing does."""
    try:
        data = json.loads(place.file.read_text())
        impairment = LinkImpairment.from_json(data["impairment"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", LinkImpairment()
    if data["tap_index"] != place.index_of(place.tap):
        return "", LinkImpairment()  # The guest was started anew.
    lives = place.index_of(place.redirected) if data["by"] == NETEM else _find_relay(place)
    return (data["by"], impairment) if lives else ("", LinkImpairment())


def _write(place: _Place, by: str, impairment: LinkImpairment) -> None:
    place.file.parent.mkdir(parents=True, exist_ok=True)
    data = {"by": by, "tap_index": place.index_of(place.tap), "impairment": asdict(impairment)}
    temporary = place.file.with_suffix(".new")
    temporary.write_text(json.dumps(data))
    temporary.rename(place.file)


# --- netem -------------------------------------------------------------------------------------------------


def has_netem() -> bool:
    """Whether this host's kernel can impair a link itself."""
    argv = ["unshare", "--net", "sh", "-ec", _PROBE]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def _apply_netem(place: _Place, impairment: LinkImpairment) -> None:
    other = place.redirected
    lines = []
    if place.index_of(other) is None:
        place.ip(f"link add {other} type ifb", f"link set {other} up")
        # `mirred` comes last: until then, what the guest sends passes as before.
        redirect = f"action mirred egress redirect dev {other}"
        lines = [
            f"qdisc replace dev {place.tap} ingress",
            f"filter add dev {place.tap} parent ffff: protocol all prio 1 u32 match u32 0 0 {redirect}",
        ]
    place.tc(
        " ".join(["qdisc", "replace", "dev", place.tap, "root", *impairment.to_guest.qdisc()]),
        " ".join(["qdisc", "replace", "dev", other, "root", *impairment.from_guest.qdisc()]),
        *lines,
    )


# --- the relay ---------------------------------------------------------------------------------------------


def _find_relay(place: _Place) -> process.Found | None:
    words = f"{_RELAY_MODULE}\0{place.tap}\0".encode()
    found = process.find(
        lambda entry: (
            words in (entry / "cmdline").read_bytes()
            and str(place.file).encode() in (entry / "cmdline").read_bytes()
        )
    )
    return found[0] if found else None


def _apply_relay(place: _Place) -> None:
    """Have a relay do what the link's file says."""
    running = _find_relay(place)
    if running is not None:
        os.kill(running.pid, signal.SIGHUP)
        return
    own, other = place.relay_ends
    if place.index_of(own) is not None:
        place.ip(f"link delete {own}")
    place.ip(
        f"link add {own} type veth peer name {other}",
        *(f"link set {end} arp off up" for end in (own, other)),
    )
    _start_relay(place)
    # The tap is out of the bridge now: nobody but the relay may answer what the guest asks there.
    place.ip(
        f"link set {place.tap} arp off",
        f"link set {place.tap} nomaster",
        f"link set {other} master {place.bridge}",
    )


def _start_relay(place: _Place) -> None:
    log = place.file.with_suffix(".log")
    log.unlink(missing_ok=True)
    path = os.pathsep.join(entry for entry in sys.path if entry)
    own, _ = place.relay_ends
    argv = [*place.inside, sys.executable, "-P", "-m", _RELAY_MODULE, place.tap, own, str(place.file)]
    child = process.start(argv, log=log, env={**os.environ, "PYTHONPATH": path})
    deadline = time.monotonic() + _RELAY_TIMEOUT
    while "ready" not in (said := log.read_text() if log.exists() else ""):
        if not child.is_alive() or time.monotonic() > deadline:
            child.kill()
            raise LabError(
                f"the relay of link {place.tap} does not start: {said.strip() or 'it said nothing'}"
            )
        time.sleep(0.02)


def _reset(place: _Place) -> None:
    own, _ = place.relay_ends
    if place.index_of(own) is not None:
        place.ip(
            f"link delete {own}",
            f"link set {place.tap} master {place.bridge}",
            f"link set {place.tap} arp on",
        )
    if (relay := _find_relay(place)) is not None:
        process.kill([relay])
    if place.index_of(place.redirected) is not None:
        place.tc(f"qdisc delete dev {place.tap} ingress", f"qdisc delete dev {place.tap} root")
        place.ip(f"link delete {place.redirected}")
    place.file.unlink(missing_ok=True)
