"""The rows of `lab sockets`: every connection of a lab as its registry sees it."""

from __future__ import annotations

from typing import Any

from lab import control
from lab.paths import LabPaths

Row = dict[str, str | int | float | None]

TABLE_COLUMNS = ("client", "server", "programs", "fast_path", "path", "shared", "network", "state", "age")
"""Headings of `format_table`."""


def collect(lab: str) -> list[Row]:
    """Return one flat row per connection, those that ended first.

    Keys: number, fast_path, state, path, then for `client` and `server` each (the connecting and the
    accepting end) guest, address, port, program, pid, then for each direction `to_server`, `to_client`: path,
    shared and network bytes, then heap, channel, ring, age, ended (seconds ago, or None) and detail. Guest
    and program are "" where unknown.

    Raises:
        ControlError: the lab's daemon does not answer.
    """
    answer = control.ask(LabPaths(lab).daemon_socket, "sockets")
    return [make_row(connection) for connection in answer["connections"]]


def make_row(connection: dict[str, Any]) -> Row:
    """Return the row of a connection as the daemon reports it."""
    row: Row = {key: connection[key] for key in ("number", "fast_path", "state")}
    row["path"] = path_of(connection)
    for end in ("client", "server"):
        for key in ("guest", "address", "port", "program", "pid"):
            row[f"{end}_{key}"] = connection[end][key]
    for direction in ("to_server", "to_client"):
        for key in ("path", "shared", "network"):
            row[f"{direction}_{key}"] = connection[direction][key]
    row |= {key: connection[key] for key in ("heap", "channel", "ring", "age", "ended", "detail")}
    return row


def path_of(connection: dict[str, Any]) -> str:
    """Return what carried the bytes of a connection: `shared` if that carried most of them, else `network`.

    A connection begins on the network, so its first bytes do not tell.
    """
    shared = sum(connection[direction]["shared"] for direction in ("to_server", "to_client"))
    network = sum(connection[direction]["network"] for direction in ("to_server", "to_client"))
    return "shared" if shared > network else "network"


def format_table(rows: list[Row]) -> list[tuple[str, ...]]:
    """Return the rows as texts under `TABLE_COLUMNS`; bytes of both directions as `to server / to client`."""
    return [
        (
            _format_end(row, "client"),
            _format_end(row, "server"),
            f"{row['client_program'] or '-'} / {row['server_program'] or '-'}",
            str(row["fast_path"]),
            str(row["path"]),
            f"{row['to_server_shared']} / {row['to_client_shared']}",
            f"{row['to_server_network']} / {row['to_client_network']}",
            str(row["state"]),
            f"{row['age']:.1f}s",
        )
        for row in rows
    ]


def _format_end(row: Row, end: str) -> str:
    address = f"[{row[f'{end}_address']}]" if ":" in str(row[f"{end}_address"]) else row[f"{end}_address"]
    return f"{row[f'{end}_guest'] or 'outside'} {address}:{row[f'{end}_port']}"
