"""The table of `lab stats` and `lab top`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.stats import Counters, LabStats

COLUMNS = ("guest", "cpu", "memory", "disk r / w", "network in / out", "shared in / out", "connections")


def format_rows(stats: LabStats, rates: dict[str, Counters] | None) -> list[tuple[str, ...]]:
    """A row for each guest: totals, or with `rates` what it uses a second."""
    rows = []
    for guest in stats.guests:
        if not guest.running:
            rows.append((guest.name, "absent", *["-"] * (len(COLUMNS) - 2)))
            continue
        counters = guest.counters if rates is None else rates[guest.name]
        unit = "" if rates is None else "/s"
        shared = _pair(counters.shared_received, counters.shared_sent, unit) if stats.daemon else "unknown"
        rows.append(
            (
                guest.name,
                f"{counters.cpu_seconds:.1f} s" if rates is None else f"{100 * counters.cpu_seconds:.0f}%",
                f"{format_bytes(guest.resident)} of {format_bytes(guest.memory)}",
                _pair(counters.disk_read, counters.disk_written, unit),
                _pair(counters.received, counters.sent, unit),
                shared,
                str(guest.connections) if stats.daemon else "unknown",
            )
        )
    return rows


def _pair(one: float, other: float, unit: str) -> str:
    return f"{format_bytes(one)}{unit} / {format_bytes(other)}{unit}"


def format_bytes(count: float) -> str:
    """A number of bytes with three digits or so: 0 B, 512 B, 1.5 KiB, 20 MiB."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while count >= 1023.5 and power + 1 < len(units):
        count /= 1024
        power += 1
    return f"{count:.0f} {units[power]}" if power == 0 or count >= 99.95 else f"{count:.1f} {units[power]}"
