"""A connection of a lab, as its registry sees it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

from lab import sockets

Path = Literal["shared", "network"]


@dataclass(frozen=True)
class End:
    """One end of a connection. `guest`, `program` and `pid` are empty where unknown (an end outside the
    lab).
    """

    guest: str
    address: str
    port: int
    program: str
    pid: int


@dataclass(frozen=True)
class Direction:
    """What one direction carries: the path it is on now, and its bytes on each path so far."""

    path: Path
    shared: int
    network: int


@dataclass(frozen=True)
class Connection:
    """One connection at one moment; `Lab.sockets` gives newer ones.

    `path` is what carried most of its bytes; `fast_path` what the registry decided: "SharedHypervisor",
    "SharedOS", "SharedVM" or "External". `age` and `ended` are seconds (`ended`: ago, or None).
    """

    number: int
    client: End
    server: End
    to_server: Direction
    to_client: Direction
    path: Path
    fast_path: str
    state: str
    heap: str | None
    channel: int | None
    age: float
    ended: float | None
    detail: str

    @property
    def shared(self) -> int:
        """Bytes through shared memory, both directions."""
        return self.to_server.shared + self.to_client.shared

    @property
    def network(self) -> int:
        """Bytes over the network, both directions."""
        return self.to_server.network + self.to_client.network

    @property
    def began(self) -> float:
        """Seconds ago."""
        return self.age + (self.ended or 0.0)

    def __str__(self) -> str:
        ends = " -> ".join(f"{end.guest or end.address}:{end.port}" for end in (self.client, self.server))
        carried = f"{self.shared} bytes shared, {self.network} on the network"
        return f"{ends} ({self.fast_path}): {carried}" + (f"; {self.detail}" if self.detail else "")


def find_newest(connections: Iterable[Connection]) -> Connection | None:
    """The newest; of those that were open when it began, the one that carried most.

    So programs with a second connection for control (iperf3, ftp) are judged by the one that matters.
    """
    known = list(connections)
    if not known:
        return None
    newest = min(known, key=lambda each: each.began)
    together = [each for each in known if each.ended is None or each.ended < newest.began]
    return max(together, key=lambda each: each.shared + each.network)


def read(answer: dict[str, Any]) -> Connection:
    """A connection as the lab's daemon reports it."""
    return Connection(
        number=answer["number"],
        client=_end(answer["client"]),
        server=_end(answer["server"]),
        to_server=_direction(answer["to_server"]),
        to_client=_direction(answer["to_client"]),
        path=cast(Path, sockets.path_of(answer)),
        fast_path=answer["fast_path"],
        state=answer["state"],
        heap=answer["heap"],
        channel=answer["channel"],
        age=answer["age"],
        ended=answer["ended"],
        detail=answer["detail"] or "",
    )


def _end(answer: dict[str, Any]) -> End:
    return End(**{key: answer[key] for key in ("guest", "address", "port", "program", "pid")})


def _direction(answer: dict[str, Any]) -> Direction:
    return Direction(**{key: answer[key] for key in ("path", "shared", "network")})
