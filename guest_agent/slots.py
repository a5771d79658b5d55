"""Doorbell slots of this guest: the eventfds on which its processes sleep, by number.

A number has the same eventfd as long as the agent lives, because whoever rings remembers it, and children
sleep on the one of their parent. Processes that come later get it too, and share it when there are more
processes than slots: that costs spurious wake-ups and nothing else, since nobody ever drains a bell.

A slot outlives the agent as well: the journal knows the eventfd's kernel-wide id, and a new agent gets the
eventfd back from a process that has it (pidfd_getfd(2), which needs root or the same user).
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from guest_agent.journal import Journal

SLOTS: Final = 64
"""A waiters word in a channel has one bit for each; slot 0 is nobody's."""
_SYS_PIDFD_GETFD: Final = 438

log = logging.getLogger("agent.slots")


class Slots:
    """The bells by number, and how many processes have each."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._bells: dict[int, int] = {}
        """Eventfd by slot; -1 for one that is in use and could not be recovered."""
        self._users = dict.fromkeys(range(1, SLOTS), 0)
        """Connected processes by slot."""

    def recover(self, *, wanted: bool) -> None:
        """Take over the slots of an earlier agent, if anybody may still sleep there."""
        for key, record in self._journal:
            if not key.startswith("slot "):
                continue
            if not wanted:
                self._journal.drop(key)
                continue
            slot = int(key.removeprefix("slot "))
            bell = find_eventfd(int(record["pid"]), int(record["bell"]))
            self._bells[slot] = -1 if bell is None else bell
            self._users[slot] = 1  # somebody has it who is not connected; others come first
            log.info("slot=%d bell=%s", slot, "lost" if bell is None else "recovered")

    def take(self, pid: int) -> tuple[int, int]:
        """Return a slot and its eventfd for a process. OSError when no eventfd can be made."""
        usable = (slot for slot in self._users if self._bells.get(slot) != -1)
        slot = min(usable, key=lambda slot: (self._users[slot], slot), default=0)
        if not slot:
            raise OSError(errno.ENOSPC, "the bells of all slots are lost")
        if slot not in self._bells:
            self._bells[slot] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._users[slot] += 1
        bell = self._bells[slot]
        self._journal.put(f"slot {slot}", {"pid": pid, "bell": eventfd_id(bell)})
        return slot, bell

    def give_back(self, slot: int) -> None:
        """A process that had the slot is gone."""
        self._users[slot] -= 1

    def bell(self, slot: int) -> int:
        """Return the eventfd of a slot, -1 if there is none."""
        return self._bells.get(slot, -1)

    def close(self) -> None:
        """Close the eventfds, which processes go on using."""
        for bell in self._bells.values():
            if bell >= 0:
                os.close(bell)
        self._bells.clear()


def eventfd_id(fd: int, pid: str = "self") -> int:
    """Return the kernel's number of an eventfd, the same in all processes; -1 if `fd` is none."""
    with suppress(OSError):
        for line in Path("/proc", pid, "fdinfo", str(fd)).read_text().splitlines():
            if line.startswith("eventfd-id:"):
                return int(line.split()[1])
    return -1


def find_eventfd(pid: int, number: int) -> int | None:
    """Return a descriptor of the eventfd with this id that process `pid` has, or if need be any other
    process.
    """
    if number < 0:
        return None
    others = (entry.name for entry in os.scandir("/proc") if entry.name.isdigit())
    for candidate in (str(pid), *others):
        for fd in _eventfds_of(candidate):
            if eventfd_id(fd, candidate) == number:
                with suppress(OSError):
                    return _take_descriptor(int(candidate), fd)
    return None


def _eventfds_of(pid: str) -> Iterator[int]:
    try:
        entries = list(os.scandir(f"/proc/{pid}/fd"))
    except OSError:
        return
    for entry in entries:
        with suppress(OSError):
            if Path(entry.path).readlink().name == "anon_inode:[eventfd]":
                yield int(entry.name)


def _take_descriptor(pid: int, fd: int) -> int:
    """Return a duplicate of another process's descriptor. OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        taken = libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0)
    finally:
        os.close(pidfd)
    if taken < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return int(taken)
