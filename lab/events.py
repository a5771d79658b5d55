"""What happens in a lab, as a stream of events: the differences between looks at it, some time apart.

Nothing is lost between two looks but what came and went in between and left no trace: a guest that was
started anew, a path that changed twice. The daemon remembers the last thousand connections that ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lab import control, status
from lab.errors import LabError
from lab.paths import LabPaths
from lab.sockets import Row, make_row
from lab.topology import Topology

Event = dict[str, Any]

_DIRECTIONS = ("to_server", "to_client")


@dataclass(frozen=True)
class Look:
    """A lab at one moment. `daemon_began` tells one daemon from the next: connections' numbers begin anew."""

    states: dict[str, str] = field(default_factory=dict)
    """Of guests, by name, as in `lab status`."""
    agents: dict[str, str] = field(default_factory=dict)
    daemon: str = "not running"
    daemon_pid: int = 0
    connections: dict[int, Row] = field(default_factory=dict)


def look(topology: Topology, connect: str | None = None) -> Look:
    """The lab now. Never raises for a lab that is down or damaged."""
    found = status.collect(topology, connect=connect)
    pid, connections = 0, []
    try:
        socket = LabPaths(topology.name).daemon_socket
        pid = control.ask(socket, "ping")["pid"]
        connections = control.ask(socket, "sockets")["connections"]
    except LabError:
        pass  # `found.daemon` says so.
    return Look(
        {guest.name: guest.state for guest in found.guests},
        {guest.name: guest.agent for guest in found.guests},
        found.daemon,
        pid,
        {row["number"]: make_row(row) for row in connections},
    )


def differences(before: Look, now: Look) -> Iterator[Event]:
    """What happened between two looks, without its time."""
    if (before.daemon, before.daemon_pid) != (now.daemon, now.daemon_pid):
        yield {"event": "daemon", "state": now.daemon, "was": before.daemon, "pid": now.daemon_pid or None}
    for kind, was, is_ in (("guest", before.states, now.states), ("agent", before.agents, now.agents)):
        for name, state in is_.items():
            if state != was.get(name, "absent"):
                yield {"event": kind, "guest": name, "state": state, "was": was.get(name, "absent")}
    known = before.connections if before.daemon_pid == now.daemon_pid else {}
    for number, row in now.connections.items():
        yield from _connection_events(known.get(number), row)


def _connection_events(before: Row | None, now: Row) -> Iterator[Event]:
    ends = {end: _name(now, end) for end in ("client", "server")}
    about = {"connection": now["number"], **ends}
    was = before["state"] if before else None
    if now["state"] != was:
        yield {
            "event": "connection",
            **about,
            "state": now["state"],
            "was": was,
            "fast_path": now["fast_path"],
            "detail": now["detail"],
        }
    if now["channel"] and (before is None or before["channel"] != now["channel"]):
        yield {
            "event": "channel",
            **about,
            "channel": now["channel"],
            "heap": now["heap"],
            "ring": now["ring"],
        }
    for direction in _DIRECTIONS:
        path, earlier = now[f"{direction}_path"], before[f"{direction}_path"] if before else "network"
        if path != earlier:
            yield {"event": "path", **about, "direction": direction, "path": path, "was": earlier}
    if now["state"] == "ended" and was != "ended":
        sums = {
            path: sum(int(now[f"{each}_{path}"] or 0) for each in _DIRECTIONS)
            for path in ("shared", "network")
        }
        yield {"event": "ended", **about, **sums}


def _name(row: Row, end: str) -> str:
    address = row[f"{end}_address"]
    host = f"[{address}]" if ":" in str(address) else address
    return f"{row[f'{end}_guest'] or 'outside'} {host}:{row[f'{end}_port']}"


def follow(topology: Topology, *, interval: float, connect: str | None = None) -> Iterator[list[Event]]:
    """The events of each look, for ever: first what the lab is now, as if it had all just happened."""
    before = Look()
    while True:
        begun = time.monotonic()
        now = look(topology, connect)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        yield [{"time": stamp, "lab": topology.name, **event} for event in differences(before, now)]
        before = now
        time.sleep(max(0.0, interval - (time.monotonic() - begun)))
