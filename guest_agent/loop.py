"""A small event loop: descriptors that are ready, and timers. One thread, nothing blocks."""

from __future__ import annotations

import heapq
import itertools
import selectors
import time
from collections.abc import Callable

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


class Timer:
    """A call in the future, which can be cancelled."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Do not call any more. Twice is fine."""
        self.callback = None


class Loop:
    """Calls back when a descriptor is ready or a time has come."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._running = False

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(events)` whenever `fd` is ready for one of `events`; replaces an earlier watch."""
        try:
            self._selector.modify(fd, events, callback)
        except KeyError:
            self._selector.register(fd, events, callback)

    def forget(self, fd: int) -> None:
        """Do not watch `fd` any more; call it before closing. Twice is fine."""
        try:
            self._selector.unregister(fd)
        except (KeyError, ValueError):
            return

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call once, in `seconds`."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def run(self) -> None:
        """Serve until `stop`."""
        self._running = True
        while self._running:
            self.step()

    def step(self, longest: float | None = None) -> None:
        """Wait for the next event, at most `longest` seconds, and serve it."""
        for key, events in self._selector.select(self._pause(longest)):
            # An earlier callback of this round may have forgotten this descriptor.
            current = self._selector.get_map().get(key.fd)
            if current is not None and current.data is key.data:
                key.data(events)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                callback()

    def stop(self) -> None:
        """Make `run` return after the current round."""
        self._running = False

    def close(self) -> None:
        """Watch nothing any more."""
        self._timers.clear()
        self._selector.close()

    def _pause(self, longest: float | None) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return longest
        until = max(0.0, self._timers[0][0] - time.monotonic())
        return until if longest is None else min(until, longest)
