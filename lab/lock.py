"""One verb at a time works on a lab, and the others learn which."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from lab import process
from lab.errors import LabError
from lab.paths import LabPaths


class BusyError(LabError):
    """Another process works on the lab."""


#: Seconds for the programs that a killed holder had running (`ip`, `mke2fs`, ...) to end.
_ORPHANS_TIMEOUT = 20.0


@contextlib.contextmanager
def hold(lab: LabPaths, verb: str) -> Iterator[None]:
    """Hold the lab's lock while the block runs. Raises `BusyError` that names the holder if somebody has it.

    The kernel drops the lock with its holder and the programs that the holder was running, so a killed `lab
    up` blocks nobody for long, and nothing that it began is still going on when the next verb begins. The
    file goes with the lock: who finds itself holding a file that is not there any more starts over.
    """
    lab.lock.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _ORPHANS_TIMEOUT
    while True:
        with lab.lock.open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _read(lab)
                if (holder and holder.process.is_alive()) or time.monotonic() > deadline:
                    raise BusyError(
                        f"lab {lab.lab} is busy: {_name(holder)}", cure="wait for it, or end it"
                    ) from None
                time.sleep(0.02)
                continue
            if not _is_current(lab, handle.fileno()):
                continue
            own = process.identify(os.getpid())
            handle.truncate(0)
            handle.write(
                json.dumps({"verb": verb, "pid": own.pid, "started": own.started, "since": time.time()})
            )
            handle.flush()
            process.inherited.add(handle.fileno())
            try:
                yield
            finally:
                process.inherited.discard(handle.fileno())
                lab.lock.unlink(missing_ok=True)
            return


def _is_current(lab: LabPaths, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), lab.lock.stat())
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class _Holder:
    process: process.Found
    verb: str
    since: float


def _read(lab: LabPaths) -> _Holder | None:
    """Who has the lock, or had it. None while a new holder has not said so yet."""
    try:
        data = json.loads(lab.lock.read_text())
        return _Holder(process.Found(data["pid"], data["started"]), data["verb"], data["since"])
    except (OSError, ValueError, KeyError):
        return None


def _name(holder: _Holder | None) -> str:
    if holder is None:
        return "another process works on it"
    since = time.strftime("%H:%M:%S", time.localtime(holder.since))
    return f"`lab {holder.verb}` (process {holder.process.pid}) works on it since {since}"
