"""The process that serves a lab's doorbell sockets, apart from the daemon.

    python -m lab.doorbell_keeper --lab-dir /run/hyperheap/<lab>

QEMU does not reconnect to a doorbell server, so guests that start after a restart of it could not ring those
that started before. The daemon may be killed and come back; this process does next to nothing and stays. It
serves the heaps of `daemon.json`, and reads that again when the daemon asks it to over `doorbells.sock`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lab import control, daemon_file, service
from lab.control_server import ControlServer
from lab.daemon_file import HeapEntry
from lab.doorbell import DoorbellServer
from lab.errors import LabError
from lab.heap_file import HeapFile

LOOK_SECONDS = 2.0
"""How often the keeper looks whether its lab still exists."""
START_TIMEOUT = 30.0
"""Seconds until the keeper answers; it does in half a second, but a busy host does nothing at once."""

log = logging.getLogger("keeper")


class Keeper:
    """The doorbell servers of one lab."""

    def __init__(self, lab_dir: Path) -> None:
        self._dir = lab_dir
        self._entries: dict[str, HeapEntry] = {}
        self._files: dict[str, HeapFile] = {}
        self._doorbells: dict[str, DoorbellServer] = {}
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or the stop operation."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        operations = {"ping": self._ping, "reload": self._reload, "peers": self._peers, "stop": self._end}
        try:
            await self._serve_heaps()
            async with ControlServer(self._dir / "doorbells.sock", operations):
                await self._until_stopped()
        finally:
            for name in list(self._entries):
                await self._close(name)

    async def _until_stopped(self) -> None:
        """Until somebody says so, or the lab's directory is gone: then so is the lab."""
        while self._dir.exists():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), LOOK_SECONDS)
                return

    async def _serve_heaps(self) -> None:
        wanted = {entry.name: entry for entry in daemon_file.read(self._dir / "daemon.json").heaps}
        for name, entry in list(self._entries.items()):
            if name not in wanted or not daemon_file.is_same_heap(entry, wanted[name]):
                await self._close(name)
        for name, entry in wanted.items():
            if name not in self._entries:
                await self._open(entry)

    async def _open(self, entry: HeapEntry) -> None:
        entry.socket.parent.mkdir(parents=True, exist_ok=True)
        file = HeapFile.ensure(entry.file, entry.size)
        doorbell = DoorbellServer(file, entry.socket, entry.vectors)
        try:
            await doorbell.start()
        except BaseException:
            file.close()
            raise
        self._entries[entry.name] = entry
        self._files[entry.name], self._doorbells[entry.name] = file, doorbell

    async def _close(self, name: str) -> None:
        del self._entries[name]
        await self._doorbells.pop(name).close()
        self._files.pop(name).close()

    async def _ping(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"pid": os.getpid()}

    async def _reload(self, _: dict[str, Any]) -> dict[str, Any]:
        await self._serve_heaps()
        return {}

    async def _peers(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"peers": {name: len(doorbell.peers) for name, doorbell in self._doorbells.items()}}

    async def _end(self, _: dict[str, Any]) -> dict[str, Any]:
        asyncio.get_running_loop().call_soon(self._stop.set)
        return {}


def ensure(lab_dir: Path) -> None:
    """Have a keeper that serves what daemon.json says: start one, or let the one there read it again.

    Raises:
        LabError: it does not come up, or cannot serve.
    """
    path = lab_dir / "doorbells.sock"
    try:
        control.ask(path, "reload")
        return
    except control.Unanswered:
        pass
    with (lab_dir / "doorbells.log").open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "lab.doorbell_keeper", "--lab-dir", str(lab_dir)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            control.ask(path, "ping")
            return
        except control.Unanswered as error:
            if child.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"the doorbell keeper did not start; see {output.name}") from error
        time.sleep(0.02)


def main(argv: list[str] | None = None) -> int:
    """Run the keeper; returns the exit code."""
    return service.run(
        argv,
        module="lab.doorbell_keeper",
        what="the lab's doorbell keeper",
        pid_name="doorbells.pid",
        serve=lambda lab_dir: Keeper(lab_dir).run(),
    )


if __name__ == "__main__":
    sys.exit(main())
