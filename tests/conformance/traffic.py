# SPDX-License-Identifier: Apache-2.0
"""What the registry saw of a suite: the proof that its streams were in shared memory."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import TracebackType

from local_agent import LocalAgent

from lab.control import ControlError

LOOK_SECONDS = 1.0
"""The registry remembers the last 1000 connections that ended, so look often enough."""


@dataclass(frozen=True)
class Traffic:
    """Connections that were announced, how many of them had a channel, and bytes per path, both ways."""

    connections: int = 0
    channels: int = 0
    shared: int = 0
    network: int = 0


class Observer:
    """Asks the registry for its connections while a suite runs; a context manager."""

    def __init__(self, agent: LocalAgent) -> None:
        self._agent = agent
        self._seen: dict[int, Traffic] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="observer", daemon=True)

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def total(self) -> Traffic:
        """Return the sum of all that was seen; complete after the end of the `with`."""
        rows = list(self._seen.values())
        return Traffic(
            len(rows),
            sum(row.channels for row in rows),
            sum(row.shared for row in rows),
            sum(row.network for row in rows),
        )

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        try:
            connections = self._agent.ask("sockets")["connections"]
        except ControlError:
            return  # busy; the next look sees the same
        for connection in connections:
            directions = (connection["to_server"], connection["to_client"])
            self._seen[connection["number"]] = Traffic(
                1,
                1 if connection["channel"] else 0,
                sum(direction["shared"] for direction in directions),
                sum(direction["network"] for direction in directions),
            )
