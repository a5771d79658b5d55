"""What the registry answered about where endpoints are, remembered until it is withdrawn."""

from __future__ import annotations

from typing import Final

from guest_agent.messages import FastPath
from guest_agent.records import Endpoint

MAX_ANSWERS: Final = 16384
"""More than that is a port scan; then all is forgotten and asked again."""


class Lookups:
    """Answers by endpoint, and the questions that are open."""

    def __init__(self) -> None:
        self._answers: dict[Endpoint, tuple[FastPath, int]] = {}
        self._asked: dict[int, Endpoint] = {}
        self._open: set[Endpoint] = set()
        self._epoch = 0
        self._last_id = 0

    def find(self, endpoint: Endpoint) -> FastPath | None:
        """Return where an endpoint is, None if that is not known."""
        found = self._answers.get(endpoint)
        return None if found is None else found[0]

    def ask(self, endpoint: Endpoint) -> int | None:
        """Return the id for a question to the registry, None if it is open already."""
        if endpoint in self._open:
            return None
        self._last_id = self._last_id % 0xFFFFFFFF + 1
        self._asked[self._last_id] = endpoint
        self._open.add(endpoint)
        return self._last_id

    def answer(self, number: int, where: FastPath, epoch: int) -> None:
        """Remember an answer, unless it was withdrawn on the way."""
        endpoint = self._asked.pop(number, None)
        if endpoint is None:
            return
        self._open.discard(endpoint)
        if epoch < self._epoch:
            return
        if len(self._answers) >= MAX_ANSWERS:
            self._answers.clear()
        self._answers[endpoint] = (where, epoch)

    def withdraw(self, address: str | None, port: int, epoch: int) -> None:
        """Forget answers older than `epoch`: of an address (None: all) and a port (0: all)."""
        self._epoch = max(self._epoch, epoch)
        for endpoint, (_, answered) in list(self._answers.items()):
            same = address in (None, endpoint.address) and port in (0, endpoint.port)
            if same and answered < epoch:
                del self._answers[endpoint]

    def clear(self) -> None:
        """Forget all: another registry may know better."""
        self._answers.clear()
        self._asked.clear()
        self._open.clear()
        self._epoch = 0
