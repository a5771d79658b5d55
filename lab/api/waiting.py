"""Waiting for something to become true, and saying what was seen last if it does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from lab.api.result import WaitError

T = TypeVar("T")

#: Seconds between two looks: soon at first, then rarer, since each costs a guest something.
_FIRST_PAUSE = 0.1
_LAST_PAUSE = 1.0
_GROWTH = 1.5


def wait_until(look: Callable[[], T | None], timeout: float, what: Callable[[], str]) -> T:
    """Call `look` until it gives something that is not None, and return that.

    Raises `WaitError` with the words of `what` after `timeout` seconds; there is always at least one look.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while (found := look()) is None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise WaitError(f"{what()} (waited {timeout:g} s)")
        time.sleep(min(pause, left))
        pause = min(pause * _GROWTH, _LAST_PAUSE)
    return found
