"""Which ranges of a heap are free: best fit with coalescing, over pages.

The state lives in the broker's memory only; the heap itself holds no free lists. Allocating costs a binary
search over the distinct sizes of free ranges, freeing a few dictionary operations, whatever the number of
ranges.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from lab.errors import LabError

PAGE = 4096


class AllocatorError(LabError):
    """A range that is not free was reserved, or one that was not allocated was freed: the caller's books are
    wrong.
    """


class Allocator:
    """Hands out page-aligned ranges of `[start, end)`.

    Of all free ranges that are large enough the smallest is taken, of equal ones the last freed, whose pages
    are the likeliest to be in a cache. What is freed is merged with its free neighbours at once, so two free
    ranges never touch.
    """

    def __init__(self, start: int, end: int) -> None:
        if start % PAGE or end % PAGE or not 0 <= start <= end:
            raise ValueError(f"not a range of whole pages: {start}..{end}")
        self._start = start
        self._end = end
        self._used: dict[int, int] = {}
        """Length by offset of what is allocated."""
        self._free: dict[int, int] = {}
        """Length by offset of what is free."""
        self._free_by_end: dict[int, int] = {}
        """Offset by end of what is free."""
        self._by_length: dict[int, dict[int, None]] = {}
        """Offsets of the free ranges of a length, the last freed last."""
        self._lengths: list[int] = []
        """The keys of `_by_length`, sorted."""
        self.free_bytes = 0
        if end > start:
            self._add_free(start, end - start)

    @classmethod
    def rebuild(cls, start: int, end: int, used: Iterable[tuple[int, int]]) -> Allocator:
        """Return an allocator with the ranges `(offset, length)` of `used` allocated.

        Raises:
            AllocatorError: they overlap or lie outside.
        """
        allocator = cls(start, start)
        allocator._end = end
        at = start
        for offset, length in sorted(used):
            if offset < at or length <= 0 or offset % PAGE or length % PAGE or offset + length > end:
                raise AllocatorError(
                    f"range {offset}+{length} overlaps another or lies outside {start}..{end}"
                )
            if offset > at:
                allocator._add_free(at, offset - at)
            allocator._used[offset] = length
            at = offset + length
        if at < end:
            allocator._add_free(at, end - at)
        return allocator

    @property
    def used_bytes(self) -> int:
        """Bytes in allocated ranges."""
        return self._end - self._start - self.free_bytes

    @property
    def used_count(self) -> int:
        """Number of allocated ranges."""
        return len(self._used)

    @property
    def largest_free(self) -> int:
        """The most that one `allocate` could get now, in bytes."""
        return self._lengths[-1] if self._lengths else 0

    def allocate(self, length: int) -> int | None:
        """Return the offset of a range of `length` bytes (rounded up to pages), or None if no free range is
        that long.
        """
        if length <= 0:
            raise ValueError(f"length {length}")
        length = -(-length // PAGE) * PAGE
        at = bisect_left(self._lengths, length)
        if at == len(self._lengths):
            return None
        found = self._lengths[at]
        offset = next(reversed(self._by_length[found]))
        self._remove_free(offset, found)
        if found > length:
            self._add_free(offset + length, found - length)
        self._used[offset] = length
        return offset

    def reserve(self, offset: int, length: int) -> None:
        """Allocate this very range. Takes time in proportion to the number of free ranges.

        Raises:
            AllocatorError: it is not wholly free, or not of whole pages.
        """
        if length <= 0 or offset % PAGE or length % PAGE:
            raise AllocatorError(f"range {offset}+{length} is not of whole pages")
        for start, size in self._free.items():
            if start <= offset and offset + length <= start + size:
                break
        else:
            raise AllocatorError(f"range {offset}+{length} is not free")
        self._remove_free(start, size)
        if offset > start:
            self._add_free(start, offset - start)
        if start + size > offset + length:
            self._add_free(offset + length, start + size - offset - length)
        self._used[offset] = length

    def free(self, offset: int) -> None:
        """Give back the range that was allocated at `offset`.

        Raises:
            AllocatorError: there is none.
        """
        length = self._used.pop(offset, 0)
        if not length:
            raise AllocatorError(f"nothing is allocated at {offset}")
        after = self._free.get(offset + length)
        if after is not None:
            self._remove_free(offset + length, after)
            length += after
        before = self._free_by_end.get(offset)
        if before is not None:
            self._remove_free(before, offset - before)
            length += offset - before
            offset = before
        self._add_free(offset, length)

    def _add_free(self, offset: int, length: int) -> None:
        self._free[offset] = length
        self._free_by_end[offset + length] = offset
        same = self._by_length.get(length)
        if same is None:
            same = self._by_length[length] = {}
            insort(self._lengths, length)
        same[offset] = None
        self.free_bytes += length

    def _remove_free(self, offset: int, length: int) -> None:
        del self._free[offset]
        del self._free_by_end[offset + length]
        same = self._by_length[length]
        del same[offset]
        if not same:
            del self._by_length[length]
            del self._lengths[bisect_left(self._lengths, length)]
        self.free_bytes -= length
