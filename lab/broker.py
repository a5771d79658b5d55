"""The host-side owner of the heaps: leases buffers to channels and takes them back.

A heap holds a header in its first page and buffers behind it. Which ranges are free is known here only, in
memory, and rebuilt from the lease journal after a restart: a heap that guests can write is never asked. A
buffer is free again when both sides have let go.
"""

from __future__ import annotations

import logging
import uuid as uuids
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ivshmem import core
from lab.allocator import PAGE, Allocator, AllocatorError
from lab.errors import LabError
from lab.heap_file import HeapFile
from lab.lease_journal import LeaseJournal
from lab.registry.broker_interface import Lease

_NAMESPACE = uuids.UUID("5b0ad5b8-3a3c-4f0e-9d5e-6d7e3a1f7c11")

log = logging.getLogger("broker")


class BrokerError(LabError):
    """A heap cannot be served."""


@dataclass
class _Heap:
    name: str
    file: HeapFile
    uuid: str
    allocator: Allocator
    have_met: Callable[[int, int], bool]
    channels: int = 0


@dataclass(frozen=True)
class HeapUse:
    """How full a heap is; sizes in bytes."""

    name: str
    uuid: str
    size: int
    leased: int
    largest_free: int
    channels: int


class HeapBroker:
    """Serves the heaps of one lab. `journal` is where its books are kept."""

    def __init__(self, journal: Path) -> None:
        self._journal = LeaseJournal(journal)
        self._heaps: dict[str, _Heap] = {}
        self._by_uuid: dict[str, str] = {}
        self._held: dict[str, set[tuple[int, int]]] = {}
        """(channel, side) of the sides that each guest holds."""
        for lease, held in self._journal.leases.values():
            for side in (0, 1):
                if held[side]:
                    self._held.setdefault(lease.guests[side], set()).add((lease.channel, side))

    # --- heaps ----------------------------------------------------------------------------------------------

    def open_heap(
        self, name: str, file: HeapFile, have_met: Callable[[int, int], bool] = lambda _one, _other: True
    ) -> str:
        """Serve a heap: format it if that was not done, and take its leases from the books. Returns its uuid.

        The file stays the caller's and must stay open until `close_heap`. `have_met` says of two peer ids
        whether they can ring each other.

        Raises:
            BrokerError: the heap cannot be formatted, or its name is served already.
        """
        if name in self._heaps:
            raise BrokerError(f"heap {name}: served already")
        uuid = _uuid_of(file)
        stale = [lease.channel for lease, _ in self._leases_of(name) if lease.uuid != uuid.hex]
        if stale:
            log.warning(
                "heap=%s leases=%d dropped reason=%r", name, len(stale), "the heap file is another one"
            )
            self._drop(stale)
        ranges = [(lease.offset, lease.length) for lease, _ in self._leases_of(name)]
        try:
            allocator = Allocator.rebuild(PAGE, file.size, ranges)
        except AllocatorError as error:
            log.error("heap=%s leases no more reason=%r", name, f"the books are wrong: {error}")
            allocator = Allocator(PAGE, PAGE)
        self._format(name, file, uuid)
        self._heaps[name] = _Heap(name, file, uuid.hex, allocator, have_met, len(ranges))
        self._by_uuid[uuid.hex] = name
        log.info("heap=%s uuid=%s size=%d leases=%d", name, uuid.hex, file.size, len(ranges))
        return uuid.hex

    def close_heap(self, name: str) -> None:
        """Do not lease from a heap any more. Its leases stay in the books."""
        heap = self._heaps.pop(name)
        del self._by_uuid[heap.uuid]

    def close(self) -> None:
        """Close all heaps and the books."""
        for name in list(self._heaps):
            self.close_heap(name)
        self._journal.close()

    def use(self) -> list[HeapUse]:
        """Return how full each heap is."""
        return [
            HeapUse(heap.name, heap.uuid, heap.file.size, used.used_bytes, used.largest_free, heap.channels)
            for heap in self._heaps.values()
            for used in (heap.allocator,)
        ]

    def find_heap(self, uuid: str) -> str | None:
        """Return the name of the heap with this uuid."""
        return self._by_uuid.get(uuid)

    def _format(self, name: str, file: HeapFile, uuid: uuids.UUID) -> None:
        """Write the header unless it stands there. A guest may have spoiled it: then it is written again."""
        try:
            if core.heap_check(file.memory) == (uuid.bytes, name):
                return
        except OSError:
            pass
        try:
            core.heap_format(file.memory, uuid.bytes, name)
        except OSError as error:
            raise BrokerError(f"heap {name}: cannot format {file.path}: {error.strerror}") from error

    # --- leases ---------------------------------------------------------------------------------------------

    def next_channel(self) -> int:
        """Return a channel number that was never used in this lab."""
        self._journal.channel += 1
        return self._journal.channel

    def lease(self, heap: str, channel: int, guests: tuple[str, str], ring: int) -> Lease | None:
        """Lease and format a buffer with two rings of `ring` bytes; None: there is no room."""
        served = self._heaps.get(heap)
        if served is None:
            return None
        length = core.channel_length(ring)
        offset = served.allocator.allocate(length)
        if offset is None:
            return None
        generation = self._journal.generation % 0xFFFFFFFF + 1
        lease = Lease(channel, heap, served.uuid, offset, length, ring, generation, guests)
        try:
            self._journal.put(lease)
        except OSError as error:
            # Without an entry in the books the next broker would lease the same range again.
            log.error("heap=%s lease refused reason=%r", heap, f"cannot write the books: {error.strerror}")
            served.allocator.free(offset)
            return None
        core.channel_format(served.file.memory, offset, ring, channel, generation)
        for side in (0, 1):
            self._held.setdefault(guests[side], set()).add((channel, side))
        served.channels += 1
        return lease

    def can_ring(self, heap: str, one: int, other: int) -> bool:
        """Whether two peers of a heap know each other's doorbells."""
        return heap in self._heaps and self._heaps[heap].have_met(one, other)

    def find(self, channel: int) -> Lease | None:
        """Return the lease of a channel, also one of before a restart."""
        found = self._journal.leases.get(channel)
        return None if found is None else found[0]

    def is_held(self, channel: int, side: int) -> bool:
        """Whether a side of a lease has not let go yet."""
        found = self._journal.leases.get(channel)
        return found is not None and found[1][side]

    def held_by(self, guest: str) -> Iterable[tuple[int, int]]:
        """Return (channel, side) of each lease of which a side is this guest's and was not let go."""
        return tuple(sorted(self._held.get(guest, ())))

    def let_go(self, channel: int, side: int) -> bool:
        """One end will not use the lease any more; True when it was the second, and the buffer is free."""
        if not self.is_held(channel, side):
            return False
        lease, _ = self._journal.leases[channel]
        self._held[lease.guests[side]].discard((channel, side))
        if not self._journal.let_go(channel, side):
            return False
        heap = self._heaps.get(lease.heap)
        if heap is not None and heap.uuid == lease.uuid:
            core.channel_clear(heap.file.memory, lease.offset)
            heap.allocator.free(lease.offset)
            heap.channels -= 1
        return True

    def _leases_of(self, name: str) -> list[tuple[Lease, list[bool]]]:
        return [entry for entry in self._journal.leases.values() if entry[0].heap == name]

    def _drop(self, channels: list[int]) -> None:
        for channel in channels:
            lease, held = self._journal.leases[channel]
            for side in (0, 1):
                if held[side]:
                    self._held[lease.guests[side]].discard((channel, side))
        self._journal.drop(channels)


def _uuid_of(file: HeapFile) -> uuids.UUID:
    """Return the heap's uuid, made of what only the host can change: the same for the same file, for ever."""
    status = file.path.stat()
    return uuids.uuid5(_NAMESPACE, f"{file.path}:{status.st_dev}:{status.st_ino}")
