"""What the registry asks of the broker, and what it gets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Lease:
    """A range of a heap that is leased to a channel; see `guest_agent.messages.Buffer`. `guests`: by side."""

    channel: int
    heap: str
    uuid: str
    offset: int
    length: int
    ring: int
    generation: int
    guests: tuple[str, str]


class Broker(Protocol):
    """The host-side owner of the heaps, as the registry sees it."""

    def next_channel(self) -> int:
        """Return a channel number that was never used in this lab."""

    def lease(self, heap: str, channel: int, guests: tuple[str, str], ring: int) -> Lease | None:
        """Lease and format a buffer; None: there is no room."""

    def can_ring(self, heap: str, one: int, other: int) -> bool:
        """Whether two peers of a heap know each other's doorbells."""

    def find(self, channel: int) -> Lease | None:
        """Return the lease of a channel, also one of before a restart."""

    def is_held(self, channel: int, side: int) -> bool:
        """Whether a side of a lease has not let go yet."""

    def let_go(self, channel: int, side: int) -> bool:
        """One end will not use the lease any more; True when it was the second, and the buffer is free."""

    def held_by(self, guest: str) -> Iterable[tuple[int, int]]:
        """Return (channel, side) of each lease of which a side is this guest's and was not let go."""

    def find_heap(self, uuid: str) -> str | None:
        """Return the name of the heap with this uuid."""
