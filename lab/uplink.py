"""A lab's way out: networks with `uplink: nat` reach what the host reaches, and nothing else does.

    guest ── bridge ─┐ the lab's namespace                    the host
                     └─ uplink 198.19.x.2 ──veth── hhu<digest> 198.19.x.1 ── eth0 ── world
                        masquerade, FORWARD: drop              masquerade

Addresses are translated twice: inside, so that labs may use equal subnets; on the host, so that nobody out
there needs a route. Everything inside goes with the namespace. On the host there are, while any lab has an
uplink: the links (they go with their namespaces), one chain `hyperheap` in `filter` and one in `nat`, and the
forwarding switches of the host's interfaces, whose old values stand in a file until they are put back.
IPv6 stays inside the lab.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from lab import netns, network, paths, process
from lab.errors import LabError, MissingError, UserError
from lab.paths import LabPaths
from lab.topology import Topology

#: Where the links' addresses come from: reserved for benchmarks (RFC 2544), so no network of anybody's.
_TRANSIT = IPv4Network("198.19.0.0/16")

_PREFIX = "hhu"
_INSIDE = "uplink"
_CHAIN = "hyperheap"
_CONF = Path("/proc/sys/net/ipv4/conf")
_RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


def link_name(lab: str) -> str:
    """Name of the host's end of the lab's uplink: at most 15 characters."""
    return _PREFIX + hashlib.sha256(lab.encode()).hexdigest()[:8]


def resolvers() -> str:
    """The host's name servers as lines of resolv.conf, without those that only the host itself reaches."""
    for file in _RESOLVERS:
        lines = []
        with contextlib.suppress(OSError):
            lines = [line.split() for line in file.read_text(errors="replace").splitlines()]
        servers = [line[1] for line in lines if len(line) > 1 and line[0] == "nameserver"]
        reachable = [server for server in servers if _is_reachable(server)]
        if reachable:
            return "".join(f"nameserver {server}\n" for server in reachable)
    return ""


def _is_reachable(server: str) -> bool:
    try:
        address = ip_address(server)
    except ValueError:
        return False
    return address.version == 4 and not address.is_loopback


def ensure(topology: Topology, connect: str | None = None) -> None:
    """Give the networks that want it a way out, and no other. The lab's bridges exist.

    Raises `UserError` with `connect`: a libvirt of the host has no namespace of the lab's.
    """
    lab = LabPaths(topology.name)
    wanted = [each for each in topology.networks.values() if each.uplink == "nat"]
    if connect is not None:
        if wanted:
            raise UserError(
                f"network {wanted[0].name}: `uplink: nat` needs the lab's own network namespace, which a lab "
                "in an existing libvirt has not",
                cure="leave out --connect, or leave out the uplink",
            )
        return
    if not wanted:
        remove(lab)
        # libvirt switches forwarding on: guests of one network could pass through to another.
        netns.call(lab.netns_file, lambda: _set_forwarding(False))
        return
    with _locked():
        _make_link(topology)
        changed = _open_host()
        _load_host_rules(is_exclusive=bool(changed))
    _load_inner_rules(topology)
    netns.call(lab.netns_file, lambda: _set_forwarding(True))


def remove(lab: LabPaths) -> bool:
    """Remove the lab's uplink from the host, and with the last one all that uplinks need; whether there was
    anything. The lab's namespace may be gone already.
    """
    changed = False
    if link_name(lab.lab) in _links():
        changed = True
        with contextlib.suppress(LabError):  # It may be going with its namespace at this moment.
            process.run(["ip", "link", "delete", link_name(lab.lab)], what="uplink")
    if not paths.runtime_root().exists() or _links():
        return changed
    with _locked():
        if not _links():
            changed |= _remove_host_rules()
            _close_host()
    return changed


# --- the link --------------------------------------------------------------------------------------------


def _links() -> list[str]:
    """The host's ends of all uplinks of this network namespace."""
    # /sys shows the namespace in which it was mounted; /proc/net that of who looks.
    names = [
        line.partition(":")[0].strip() for line in Path("/proc/thread-self/net/dev").read_text().splitlines()
    ]
    return [name for name in names if name.startswith(_PREFIX)]


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Be the only one who changes what labs share on the host."""
    paths.runtime_root().mkdir(parents=True, exist_ok=True)
    handle = os.open(paths.runtime_root(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _make_link(topology: Topology) -> None:
    lab = LabPaths(topology.name)
    outer, what = link_name(topology.name), f"uplink of lab {topology.name}"
    if outer in _links():
        # Half made, perhaps; to make it anew costs less than to find out. Connections live in the namespace.
        process.run(["ip", "link", "delete", outer], what=what)
    transit = _choose_transit(topology)
    batch = [
        f"link add {outer} type veth peer name {_INSIDE} netns {lab.netns}",
        f"address add {transit[1]}/{transit.prefixlen} dev {outer}",
        f"link set {outer} up",
    ]
    process.run(["ip", "-batch", "-"], what=what, data="\n".join(batch).encode())
    batch = [
        f"address add {transit[2]}/{transit.prefixlen} dev {_INSIDE}",
        f"link set {_INSIDE} up",
        f"route replace default via {transit[1]}",
    ]
    process.run(["ip", "-n", lab.netns, "-batch", "-"], what=what, data="\n".join(batch).encode())


def _choose_transit(topology: Topology) -> IPv4Network:
    """Two addresses that neither the host nor the lab uses, the same ones every time if they are free."""
    routes: list[dict[str, Any]] = json.loads(
        process.run(["ip", "-4", "-j", "route", "show", "table", "all"], what="routes of the host")
    )
    taken = [ip_network(route["dst"]) for route in routes if route["dst"] != "default"]
    used = [each for each in taken if isinstance(each, IPv4Network)]
    used += [each.subnet for each in topology.networks.values()]
    count = 1 << (30 - _TRANSIT.prefixlen)
    first = int(hashlib.sha256(topology.name.encode()).hexdigest()[:8], 16)
    for step in range(count):
        offset = (first + step) % count * 4
        candidate = IPv4Network((int(_TRANSIT[0]) + offset, 30))
        if not any(candidate.overlaps(each) for each in used):
            return candidate
    raise LabError(f"no two addresses of {_TRANSIT} are free for the uplink of lab {topology.name}")


# --- forwarding --------------------------------------------------------------------------------------------


def _set_forwarding(on: bool) -> None:
    """Whether this namespace, a lab's, passes packets on between its networks. IPv6 never does."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text(f"{int(on)}\n")
    for file, value in (("ipv6/conf/all/forwarding", 0), ("bridge/bridge-nf-call-iptables", 0)):
        with contextlib.suppress(FileNotFoundError):
            (Path("/proc/sys/net") / file).write_text(f"{value}\n")


def _record() -> Path:
    """What was changed on the host. The name has the host's network namespace: there may be several."""
    return paths.runtime_root() / f"forwarding-{Path('/proc/thread-self/ns/net').stat().st_ino}.json"


def _open_host() -> list[str]:
    """Let the host pass on what uplinks send and get; returns the interfaces that passed on nothing."""
    own = _links()
    for name in own:
        (_CONF / name / "forwarding").write_text("1\n")
    with contextlib.suppress(OSError, ValueError):
        return list(json.loads(_record().read_text()))
    switches = [
        entry.name
        for entry in _CONF.iterdir()
        if entry.name not in {"all", "default", "lo", *own}
        and (entry / "forwarding").read_text().strip() == "0"
    ]
    if switches:
        temporary = _record().with_suffix(".new")
        temporary.write_text(json.dumps(switches))
        temporary.rename(_record())
    for name in switches:
        (_CONF / name / "forwarding").write_text("1\n")
    return switches


def _close_host() -> None:
    """Put the switches back, unless somebody else has turned forwarding on meanwhile and so counts on it."""
    with contextlib.suppress(OSError, ValueError):
        for name in json.loads(_record().read_text()):
            if (_CONF / "all" / "forwarding").read_text().strip() == "0":
                with contextlib.suppress(OSError):
                    (_CONF / name / "forwarding").write_text("0\n")
    _record().unlink(missing_ok=True)


# --- rules -------------------------------------------------------------------------------------------------


def _load_host_rules(*, is_exclusive: bool) -> None:
    """`is_exclusive`: nothing was passed on here before; nothing but uplinks' packets is now."""
    any_link = f"{_PREFIX}+"
    rules = [
        "*filter",
        f":{_CHAIN} -",
        f"-A {_CHAIN} -i {any_link} -o {any_link} -j DROP",
        f"-A {_CHAIN} -i {any_link} -j ACCEPT",
        f"-A {_CHAIN} -o {any_link} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        f"-A {_CHAIN} -o {any_link} -j DROP",
        *([f"-A {_CHAIN} -j DROP"] if is_exclusive else []),
        "COMMIT",
        "*nat",
        f":{_CHAIN} -",
        f"-A {_CHAIN} -s {_TRANSIT} ! -o {any_link} -j MASQUERADE",
        "COMMIT",
    ]
    _restore(["iptables-restore", "-w", "--noflush"], rules)
    for table, chain in (("filter", "FORWARD"), ("nat", "POSTROUTING")):
        if f"-A {chain} -j {_CHAIN}" not in _list_rules(table):
            process.run(["iptables", "-w", "-t", table, "-I", chain, "-j", _CHAIN], what="rules of the host")


def _list_rules(table: str) -> list[str]:
    text = process.run(["iptables", "-w", "-t", table, "-S"], what="rules of the host")
    return text.decode(errors="replace").splitlines()


def _remove_host_rules() -> bool:
    """Whether there were any."""
    changed = False
    for table, chain in (("filter", "FORWARD"), ("nat", "POSTROUTING")):
        try:
            rules = _list_rules(table)
        except LabError:
            continue  # Without iptables, or on a kernel without the table, nothing of ours can be there.
        steps = [["-D", chain, "-j", _CHAIN]] * rules.count(f"-A {chain} -j {_CHAIN}")
        if f"-N {_CHAIN}" in rules:
            steps += [["-F", _CHAIN], ["-X", _CHAIN]]
        for step in steps:
            changed = True
            process.run(["iptables", "-w", "-t", table, *step], what="rules of the host")
    return changed


def _load_inner_rules(topology: Topology) -> None:
    """Replace the rules of the lab's namespace: from networks with an uplink out, and answers back."""
    lab = LabPaths(topology.name)
    rules = ["*filter", ":INPUT ACCEPT", ":FORWARD DROP", ":OUTPUT ACCEPT"]
    rules.append(f"-A FORWARD -i {_INSIDE} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
    for each in topology.networks.values():
        bridge = network.bridge_name(topology.name, each.name)
        # Where the kernel shows a bridge's own frames to these rules, they pass.
        rules.append(f"-A FORWARD -i {bridge} -o {bridge} -j ACCEPT")
        if each.uplink == "nat":
            rules.append(f"-A FORWARD -i {bridge} -o {_INSIDE} -j ACCEPT")
    rules += ["COMMIT", "*nat", f"-A POSTROUTING -o {_INSIDE} -j MASQUERADE", "COMMIT"]
    _restore([*netns.prefix(lab.netns_file), "iptables-restore", "-w"], rules)


def _restore(argv: list[str], rules: list[str]) -> None:
    try:
        process.run(argv, what="firewall rules of the uplink", data=("\n".join(rules) + "\n").encode())
    except MissingError as error:
        raise MissingError(error.message, cure="apt-get install iptables") from None
