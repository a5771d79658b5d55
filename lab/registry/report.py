"""The registry's tables as plain values for JSON: what the control socket answers."""

from __future__ import annotations

from typing import Any

from guest_agent.messages import Role
from lab.registry.core import Registry
from lab.registry.tables import Connection, End, Guest, Presence, Tables


def report_agents(registry: Registry, now: float) -> dict[str, dict[str, Any]]:
    """Return what is known of each guest's agent, by guest; `last_seen` in seconds ago."""
    return {guest.name: _report_agent(guest, now) for guest in registry.tables.guests.values()}


def _report_agent(guest: Guest, now: float) -> dict[str, Any]:
    heard = guest.presence is not Presence.ABSENT
    return {
        "connected": guest.greeted,
        "presence": guest.presence.value,
        "version": guest.agent_version,
        "pid": guest.agent_pid,
        "heaps": sorted(guest.heaps),
        "peer_ids": {name: device.peer_id for name, device in sorted(guest.heaps.items())},
        "last_seen": round(now - guest.last_heard, 3) if heard else None,
        "listeners": [
            {
                "address": each.endpoint.address,
                "port": each.endpoint.port,
                "program": each.program,
                "pid": each.pid,
            }
            for each in guest.listeners.values()
        ],
        "connections": len(guest.ends),
        "refused": guest.refused,
    }


def report_connections(registry: Registry, now: float) -> list[dict[str, Any]]:
    """Return all connections, ended ones first; `age` and `ended` in seconds (ago)."""
    return [_report_connection(registry.tables, each, now) for each in registry.tables.all_connections()]


def _report_connection(tables: Tables, connection: Connection, now: float) -> dict[str, Any]:
    client, server = _client_and_server(tables, connection)
    one = connection.ends[0]
    return {
        "number": connection.number,
        "fast_path": connection.where.value,
        "state": connection.state.value,
        "detail": connection.detail,
        "heap": connection.heap,
        "channel": connection.channel,
        "ring": connection.ring,
        "generation": connection.generation,
        "age": round((connection.ended or now) - connection.since, 3),
        "ended": round(now - connection.ended, 3) if connection.ended else None,
        "client": _report_end(tables, client, one),
        "server": _report_end(tables, server, one),
        "to_server": _report_direction(client, server),
        "to_client": _report_direction(server, client),
    }


def _client_and_server(tables: Tables, connection: Connection) -> tuple[End | None, End | None]:
    """Return the connecting and the accepting end, None for one that was never announced."""
    if len(connection.ends) == 2:
        first, second = connection.ends
        swap = first.side == 1 or (
            first.side < 0 and (first.role is Role.ACCEPT or second.role is Role.CONNECT)
        )
        return (second, first) if swap else (first, second)
    only = connection.ends[0]
    accepted = only.role is Role.ACCEPT or (
        only.role is Role.UNKNOWN and tables.listener_at(tables.guests[only.guest], only.local) is not None
    )
    return (None, only) if accepted else (only, None)


def _report_end(tables: Tables, end: End | None, known: End) -> dict[str, Any]:
    """Return an end; of one that was never announced only what the other knows: its address."""
    if end is None:
        owner = tables.owner_of(known.remote.address)
        return {
            "guest": owner.name if owner is not None else "",
            "address": known.remote.address,
            "port": known.remote.port,
            "program": "",
            "pid": 0,
            "gone": False,
        }
    return {
        "guest": end.guest,
        "address": end.local.address,
        "port": end.local.port,
        "program": end.program,
        "pid": end.pid,
        "gone": end.gone,
    }


def _report_direction(sender: End | None, receiver: End | None) -> dict[str, Any]:
    """Return a direction's path and bytes per path: as the sender counts, or where it is unknown, the
    receiver.
    """
    if sender is not None:
        counters = sender.counters
        return {
            "path": counters.sent_path.value,
            "shared": counters.shared_sent,
            "network": counters.network_sent,
            "written": counters.written,
            "read": receiver.counters.read if receiver is not None else None,
        }
    assert receiver is not None, "a connection has an end"
    counters = receiver.counters
    return {
        "path": counters.received_path.value,
        "shared": counters.shared_received,
        "network": counters.network_received,
        "written": None,
        "read": counters.read,
    }
