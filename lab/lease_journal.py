"""The broker's books on disk: which leases exist, so that a restarted broker finds them.

One JSON object per line, appended: a lease, one side's letting go, the counters. A line that was cut short by
a crash is the last one, and is ignored. The file lies on a tmpfs and need only survive the process, so
nothing is synced. It is written anew when most of it is history. The host alone writes and reads it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab.registry.broker_interface import Lease

_MIN_LINES = 1000
"""Below so many lines the file is not worth writing anew."""

log = logging.getLogger("broker")


class LeaseJournal:
    """The journal at `path`. What was read is in `leases`, with who still holds a side, and in the
    counters.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.leases: dict[int, tuple[Lease, list[bool]]] = {}
        self.channel = 0
        """The highest channel number that was given out."""
        self.generation = 0
        self._lines = 0
        self._read()
        self._fd = -1
        self._write_anew()

    def put(self, lease: Lease) -> None:
        """A lease begins; both sides hold it. OSError when it cannot be written down."""
        self._append({"lease": asdict(lease)})
        self.leases[lease.channel] = (lease, [True, True])
        self.channel = max(self.channel, lease.channel)
        self.generation = max(self.generation, lease.generation)

    def let_go(self, channel: int, side: int) -> bool:
        """A side let go; True when none holds the lease any more, which ends it."""
        _, held = self.leases[channel]
        held[side] = False
        is_over = not any(held)
        if is_over:
            del self.leases[channel]
        try:
            self._append({"let_go": [channel, side]})
            if self._lines > _MIN_LINES + 4 * len(self.leases):
                self._write_anew()
        except (
            OSError
        ) as error:  # the next broker will believe in the lease until the agents tell it otherwise
            log.error("journal=%s not written reason=%r", self.path, error.strerror)
        return is_over

    def drop(self, channels: Iterable[int]) -> None:
        """Forget leases, whoever holds them: their heap is not there any more."""
        for channel in list(channels):
            del self.leases[channel]
        self._write_anew()

    def close(self) -> None:
        """Close the file, which stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, entry: dict[str, Any]) -> None:
        os.write(self._fd, json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        self._lines += 1

    def _read(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            for number, line in enumerate(self.path.read_text().splitlines(), 1):
                try:
                    self._apply(json.loads(line))
                except (ValueError, KeyError, TypeError, IndexError) as error:
                    log.warning("journal=%s line=%d ignored reason=%r", self.path, number, error)

    def _apply(self, entry: dict[str, Any]) -> None:
        if "counters" in entry:
            self.channel, self.generation = map(int, entry["counters"])
        elif "lease" in entry:
            lease = Lease(**{**entry["lease"], "guests": tuple(entry["lease"]["guests"])})
            self.leases[lease.channel] = (lease, list(entry.get("held", (True, True))))
            self.channel = max(self.channel, lease.channel)
            self.generation = max(self.generation, lease.generation)
        else:
            channel, side = entry["let_go"]
            held = self.leases[channel][1]
            held[side] = False
            if not any(held):
                del self.leases[channel]

    def _write_anew(self) -> None:
        entries: list[dict[str, Any]] = [{"counters": [self.channel, self.generation]}]
        entries += ({"lease": asdict(lease), "held": held} for lease, held in self.leases.values())
        scratch = self.path.with_name(self.path.name + ".new")
        scratch.write_text("".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries))
        scratch.replace(self.path)
        self.close()
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._lines = len(entries)
