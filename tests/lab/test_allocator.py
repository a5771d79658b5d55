"""The allocator against a model that is one bit per page."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lab.allocator import PAGE, Allocator, AllocatorError

PAGES = 40
START = 3 * PAGE


class AllocatorAgainstPages(RuleBasedStateMachine):
    """Every page is free or belongs to one range; the allocator must agree with that at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator(START, START + PAGES * PAGE)
        self.owner: list[int | None] = [None] * PAGES

    def free_runs(self) -> list[tuple[int, int]]:
        """Return (first page, pages) of each maximal run of free pages."""
        runs: list[tuple[int, int]] = []
        for page, owner in enumerate(self.owner):
            if owner is not None:
                continue
            if runs and sum(runs[-1]) == page:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((page, 1))
        return runs

    def take(self, offset: int, pages: int) -> None:
        first = (offset - START) // PAGE
        assert self.owner[first : first + pages] == [None] * pages
        self.owner[first : first + pages] = [offset] * pages

    @rule(length=st.integers(1, PAGES * PAGE))
    def allocate(self, length: int) -> None:
        pages = -(-length // PAGE)
        fitting = [size for _, size in self.free_runs() if size >= pages]
        offset = self.allocator.allocate(length)
        if offset is None:
            assert not fitting
            return
        run = next((first, size) for first, size in self.free_runs() if first * PAGE + START == offset)
        assert run[1] == min(fitting), "best fit"
        self.take(offset, pages)

    @precondition(lambda self: any(owner is not None for owner in self.owner))
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted({owner for owner in self.owner if owner is not None})))
        self.allocator.free(offset)
        self.owner = [None if owner == offset else owner for owner in self.owner]

    @rule(first=st.integers(-1, PAGES), pages=st.integers(1, 8))
    def reserve(self, first: int, pages: int) -> None:
        offset = START + first * PAGE
        is_free = first >= 0 and self.owner[first : first + pages] == [None] * pages
        if is_free:
            self.allocator.reserve(offset, pages * PAGE)
            self.take(offset, pages)
        else:
            with pytest.raises(AllocatorError):
                self.allocator.reserve(offset, pages * PAGE)

    @rule(first=st.integers(-1, PAGES))
    def free_what_was_not_allocated(self, first: int) -> None:
        offset = START + first * PAGE
        if offset not in self.owner:
            with pytest.raises(AllocatorError):
                self.allocator.free(offset)

    @rule()
    def rebuild(self) -> None:
        offsets = {owner for owner in self.owner if owner is not None}
        used = [(offset, self.owner.count(offset) * PAGE) for offset in offsets]
        self.allocator = Allocator.rebuild(START, START + PAGES * PAGE, used)

    @invariant()
    def agrees(self) -> None:
        runs = self.free_runs()
        assert self.allocator.free_bytes == sum(size for _, size in runs) * PAGE
        assert self.allocator.largest_free == max((size for _, size in runs), default=0) * PAGE
        assert self.allocator._free == {START + first * PAGE: size * PAGE for first, size in runs}
        assert self.allocator.used_count == len({owner for owner in self.owner if owner is not None})


TestAllocator = AllocatorAgainstPages.TestCase


@pytest.mark.parametrize(
    "used",
    [
        [(0, PAGE)],
        [(START, PAGE), (START, PAGE)],
        [(START, 2 * PAGE), (START + PAGE, PAGE)],
        [(START + 1, PAGE)],
        [(START + 9 * PAGE, 2 * PAGE)],
        [(START, 0)],
    ],
)
def test_rebuild_refuses_ranges_that_cannot_be(used: list[tuple[int, int]]) -> None:
    with pytest.raises(AllocatorError):
        Allocator.rebuild(START, START + 10 * PAGE, used)


def test_ranges_of_part_pages_are_refused() -> None:
    with pytest.raises(ValueError, match="whole pages"):
        Allocator(1, 2)
    with pytest.raises(ValueError, match="length 0"):
        Allocator(0, PAGE).allocate(0)
