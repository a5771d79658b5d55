"""A pid file that is a lock: who holds it is the only one of its kind."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.errors import LabError


@contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold the lock on the pid file while the block runs, then remove it. `what` names the process.

    Raises:
        LabError: another process has it.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = path.read_text().strip()
            raise LabError(f"{path}: {what} runs already (pid {pid})") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
