"""The broker: leases in a heap, and its books across restarts."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from ivshmem import core
from lab.broker import BrokerError, HeapBroker
from lab.heap_file import HeapFile

RING = 4096
LENGTH = 4096 + 2 * RING
SIZE = 1 << 18
GUESTS = ("one", "other")


@pytest.fixture
def heap(tmp_path: Path) -> HeapFile:
    return HeapFile.create(tmp_path / "heap", SIZE)


def open_broker(tmp_path: Path, heap: HeapFile) -> HeapBroker:
    broker = HeapBroker(tmp_path / "leases")
    broker.open_heap("shared", heap)
    return broker


def lease_one(broker: HeapBroker) -> int:
    channel = broker.next_channel()
    assert broker.lease("shared", channel, GUESTS, RING)
    return channel


def leased(broker: HeapBroker) -> int:
    (use,) = broker.use()
    return use.leased


def test_a_heap_is_formatted_once_and_keeps_its_uuid(tmp_path: Path, heap: HeapFile) -> None:
    uuid = open_broker(tmp_path, heap).use()[0].uuid
    found, name = core.heap_check(heap.memory)
    assert (found.hex(), name) == (uuid, "shared")
    heap.memory[:4096] = bytes(4096)  # a guest did that
    assert open_broker(tmp_path, heap).use()[0].uuid == uuid
    assert core.heap_check(heap.memory)[0].hex() == uuid


def test_leases_fill_the_heap_and_no_more(tmp_path: Path, heap: HeapFile) -> None:
    broker = open_broker(tmp_path, heap)
    room = (SIZE - 4096) // LENGTH
    channels = [lease_one(broker) for _ in range(room)]
    assert broker.lease("shared", broker.next_channel(), GUESTS, RING) is None
    ranges = sorted((lease.offset, lease.length) for c in channels if (lease := broker.find(c)))
    assert ranges[0][0] >= 4096
    assert all(a + length <= b for (a, length), (b, _) in itertools.pairwise(ranges))
    assert broker.use()[0].channels == room


def test_a_lease_is_formatted_and_wiped_when_both_let_go(tmp_path: Path, heap: HeapFile) -> None:
    broker = open_broker(tmp_path, heap)
    channel = lease_one(broker)
    lease = broker.find(channel)
    assert lease is not None
    page = slice(lease.offset, lease.offset + 4096)
    assert any(heap.memory[page])
    assert broker.let_go(channel, 0) is False
    assert broker.let_go(channel, 0) is False
    assert broker.is_held(channel, 1)
    assert any(heap.memory[page])
    assert broker.let_go(channel, 1) is True
    assert not any(heap.memory[page])
    assert broker.find(channel) is None
    assert broker.let_go(channel, 1) is False
    assert leased(broker) == 0


def test_what_a_guest_holds(tmp_path: Path, heap: HeapFile) -> None:
    broker = open_broker(tmp_path, heap)
    first, second = lease_one(broker), lease_one(broker)
    broker.let_go(first, 0)
    assert broker.held_by("one") == ((second, 0),)
    assert broker.held_by("other") == ((first, 1), (second, 1))
    assert broker.held_by("stranger") == ()


def test_a_restarted_broker_has_the_same_books(tmp_path: Path, heap: HeapFile) -> None:
    broker = open_broker(tmp_path, heap)
    channels = [lease_one(broker) for _ in range(5)]
    broker.let_go(channels[0], 0)
    broker.let_go(channels[1], 0)
    broker.let_go(channels[1], 1)
    before = [broker.find(channel) for channel in channels]
    again = open_broker(tmp_path, heap)
    assert [again.find(channel) for channel in channels] == before
    assert again.held_by("one") == broker.held_by("one")
    assert leased(again) == leased(broker) == 4 * LENGTH
    assert again.next_channel() > channels[-1]
    new = again.lease("shared", again.next_channel(), GUESTS, RING)
    assert new is not None
    assert new.generation not in {lease.generation for lease in before if lease}


def test_a_line_that_a_crash_cut_short_is_ignored(tmp_path: Path, heap: HeapFile) -> None:
    broker = open_broker(tmp_path, heap)
    channel = lease_one(broker)
    with (tmp_path / "leases").open("a") as journal:
        journal.write('{"lease":{"channel":9,')
    again = open_broker(tmp_path, heap)
    assert again.find(channel)
    assert leased(again) == LENGTH


def test_leases_of_another_heap_file_are_dropped(tmp_path: Path, heap: HeapFile) -> None:
    broker = open_broker(tmp_path, heap)
    channel = lease_one(broker)
    other = HeapFile.create(tmp_path / "new", SIZE)
    heap.path.unlink()
    other.path.rename(heap.path)
    again = open_broker(tmp_path, HeapFile.open(heap.path))
    assert again.find(channel) is None
    assert again.held_by("one") == ()
    assert leased(again) == 0


def test_wrong_books_stop_leasing_and_nothing_else(tmp_path: Path, heap: HeapFile) -> None:
    broker = open_broker(tmp_path, heap)
    lease_one(broker)
    journal = tmp_path / "leases"
    line = next(line for line in journal.read_text().splitlines() if '"lease"' in line)
    journal.write_text(line + "\n" + line.replace('"channel":1,', '"channel":2,') + "\n")
    again = open_broker(tmp_path, heap)
    assert again.lease("shared", again.next_channel(), GUESTS, RING) is None
    assert again.find(1)


def test_the_journal_does_not_grow_for_ever(tmp_path: Path, heap: HeapFile) -> None:
    broker = open_broker(tmp_path, heap)
    kept = lease_one(broker)
    for _ in range(1500):
        channel = lease_one(broker)
        broker.let_go(channel, 0)
        broker.let_go(channel, 1)
    assert len((tmp_path / "leases").read_text().splitlines()) < 2000
    again = open_broker(tmp_path, heap)
    assert again.find(kept)
    assert again.next_channel() > channel


def test_a_heap_is_served_once(tmp_path: Path, heap: HeapFile) -> None:
    broker = open_broker(tmp_path, heap)
    with pytest.raises(BrokerError, match="served already"):
        broker.open_heap("shared", heap)
    broker.close_heap("shared")
    assert broker.use() == []
    assert broker.lease("shared", broker.next_channel(), GUESTS, RING) is None
