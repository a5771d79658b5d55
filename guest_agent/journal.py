"""What a restarted agent must know again and cannot ask anybody: small records by key, in a file on a tmpfs.

One JSON line per change, appended; written anew when most of it is history. A line that a crash cut short is
the last one, and is ignored. Only the agent can write the file, and all that is read is checked against the
kernel afterwards.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

MIN_LINES: Final = 1000
"""Below so many lines the file is not worth writing anew."""

log = logging.getLogger("agent")


class Journal:
    """A dictionary of JSON objects that outlives the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[str, dict[str, Any]] = {}
        self._lines = 0
        self._read()
        self._fd = -1
        self._write_anew()

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """All records, with their keys."""
        return iter(list(self._records.items()))

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Remember a record."""
        self._records[key] = record
        self._append([key, record])

    def drop(self, key: str) -> None:
        """Forget a record, if there is one."""
        if self._records.pop(key, None) is not None:
            self._append([key])
            if self._lines > MIN_LINES + 4 * len(self._records):
                self._write_anew()

    def close(self) -> None:
        """Close the file, which stays."""
        os.close(self._fd)

    def _append(self, entry: list[Any]) -> None:
        try:
            os.write(self._fd, json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        except OSError as error:  # a full /run costs the memory of the next agent, not the work of this one
            log.error("journal=%s not written reason=%r", self._path, error.strerror)
        self._lines += 1

    def _read(self) -> None:
        try:
            text = self._path.read_text(errors="replace")
        except FileNotFoundError:
            return
        for line in text.splitlines():
            try:
                key, *record = json.loads(line)
                if record:
                    self._records[key] = dict(record[0])
                else:
                    self._records.pop(key, None)
            except (ValueError, TypeError):
                log.warning("journal=%s ignored line=%r", self._path, line[:80])

    def _write_anew(self) -> None:
        scratch = self._path.with_name(self._path.name + ".new")
        lines = [json.dumps([key, record], separators=(",", ":")) for key, record in self._records.items()]
        scratch.write_text("".join(line + "\n" for line in lines))
        scratch.chmod(0o600)
        scratch.replace(self._path)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._lines = len(lines)
