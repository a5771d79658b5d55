"""The daemon of a lab: registry and broker in one process, and its control socket.

    python -m lab.daemon --lab-dir /run/hyperheap/<lab>

It serves what `daemon.json` in that directory says. SIGHUP reads it again, SIGTERM and SIGINT end cleanly. It
may be killed at any time: the next one finds the leases in `leases`, the doorbells with their keeper, and the
agents tell it the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lab import control, daemon_file, doorbell, doorbell_keeper, service
from lab.broker import HeapBroker
from lab.control_server import ControlServer, Operation
from lab.daemon_file import DaemonFile, HeapEntry
from lab.errors import LabError
from lab.heap_file import HeapFile
from lab.registry.core import Registry
from lab.registry.decision import HeapMembership, Policy, Rules
from lab.registry.link import Links
from lab.registry.report import report_agents, report_connections

QUERY_SECONDS = 1.0
"""How long `sockets` waits for agents; what does not answer is shown with its last counters."""

_NO_CALLS = 2**32 - 1
_NO_BYTES = 2**64 - 1
"""What no connection carries: no such condition."""

log = logging.getLogger("daemon")


class Daemon:
    """Everything that one lab's daemon serves."""

    def __init__(self, lab_dir: Path) -> None:
        self._dir = lab_dir
        self._file = daemon_file.read(self._config_path)
        self._broker = HeapBroker(lab_dir / "leases")
        self._heap_files: dict[str, HeapFile] = {}
        self._entries: dict[str, HeapEntry] = {}
        self._links = Links(lambda: self._registry)
        self._registry = Registry(self._file.lab, self._broker, clock=time.monotonic, send=self._links.send)
        self._stop = asyncio.Event()
        self._began = time.monotonic()

    @property
    def _config_path(self) -> Path:
        return self._dir / "daemon.json"

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or the stop operation."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        reload_wanted = asyncio.Event()
        loop.add_signal_handler(signal.SIGHUP, reload_wanted.set)
        chores: list[asyncio.Task[None]] = []
        try:
            await self._configure(self._file)
            chores = [
                asyncio.create_task(self._tick()),
                asyncio.create_task(self._reload_when(reload_wanted)),
            ]
            async with ControlServer(self._dir / "daemon.sock", self._operations):
                log.info("lab=%s pid=%d ready", self._file.lab, os.getpid())
                await self._stop.wait()
        finally:
            for chore in chores:
                chore.cancel()
            await self._links.close()
            await self._stop_keeper()
            self._broker.close()
            for file in self._heap_files.values():
                file.close()
            log.info("lab=%s ended", self._file.lab)

    # --- configuration --------------------------------------------------------------------------------------

    async def _configure(self, file: DaemonFile) -> None:
        """Serve what the file says. A heap that changed in any way but its members is closed and opened
        anew.
        """
        wanted = {entry.name: entry for entry in file.heaps}
        for name, entry in list(self._entries.items()):
            if name not in wanted or not daemon_file.is_same_heap(entry, wanted[name]):
                await self._close_heap(name)
        for entry in file.heaps:
            if entry.name not in self._entries:
                await self._open_heap(entry)
            self._entries[entry.name] = entry
        if file.heaps:
            await asyncio.to_thread(doorbell_keeper.ensure, self._dir)
        self._registry.configure(
            {guest.name: frozenset(guest.addresses) for guest in file.guests}, _rules_of(file)
        )
        await self._links.configure({guest.name: guest.port for guest in file.guests})
        self._file = file

    async def _open_heap(self, entry: HeapEntry) -> None:
        heap = HeapFile.ensure(entry.file, entry.size)
        try:
            self._broker.open_heap(entry.name, heap, partial(doorbell.have_met, entry.socket))
        except BaseException:
            heap.close()
            raise
        self._heap_files[entry.name] = heap

    async def _close_heap(self, name: str) -> None:
        self._broker.close_heap(name)
        self._heap_files.pop(name).close()
        del self._entries[name]

    async def _reload_when(self, wanted: asyncio.Event) -> None:
        while True:
            await wanted.wait()
            wanted.clear()
            try:
                await self._configure(daemon_file.read(self._config_path))
                log.info("configuration=%s read again", self._config_path)
            except (LabError, OSError) as error:
                log.error("configuration=%s ignored reason=%r", self._config_path, str(error))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._registry.tick()

    # --- doorbells ------------------------------------------------------------------------------------------

    @property
    def _keeper_socket(self) -> Path:
        return self._dir / "doorbells.sock"

    async def _stop_keeper(self) -> None:
        with contextlib.suppress(control.ControlError):
            await asyncio.to_thread(control.ask, self._keeper_socket, "stop")

    async def _peers(self) -> dict[str, int]:
        try:
            answer = await asyncio.to_thread(control.ask, self._keeper_socket, "peers")
        except control.ControlError:
            return {}
        return dict(answer["peers"])

    # --- control --------------------------------------------------------------------------------------------

    @property
    def _operations(self) -> dict[str, Operation]:
        return {
            "ping": self._on_ping,
            "status": self._on_status,
            "sockets": self._on_sockets,
            "stop": self._on_stop,
        }

    async def _on_ping(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"lab": self._file.lab, "pid": os.getpid()}

    async def _on_status(self, _: dict[str, Any]) -> dict[str, Any]:
        now = time.monotonic()
        peers = await self._peers()
        return {
            "lab": self._file.lab,
            "pid": os.getpid(),
            "uptime": round(now - self._began, 3),
            "epoch": self._registry.epoch,
            "agents": report_agents(self._registry, now),
            "heaps": {
                use.name: {**asdict(use), "peers": peers.get(use.name, 0)} for use in self._broker.use()
            },
        }

    async def _on_sockets(self, _: dict[str, Any]) -> dict[str, Any]:
        fresh = asyncio.Event()
        query = self._registry.query(fresh.set)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(fresh.wait(), QUERY_SECONDS)
        self._registry.forget_query(query)
        return {
            "fresh": fresh.is_set(),
            "connections": report_connections(self._registry, time.monotonic()),
        }

    async def _on_stop(self, _: dict[str, Any]) -> dict[str, Any]:
        asyncio.get_running_loop().call_soon(self._stop.set)
        return {}


def _rules_of(file: DaemonFile) -> Rules:
    heaps = {
        entry.name: HeapMembership(entry.name, frozenset(entry.members), entry.buffer) for entry in file.heaps
    }
    after = file.policy.upgrade == "after"
    policy = Policy(
        never=file.policy.upgrade == "never",
        upgrade_calls=(file.policy.after_calls or _NO_CALLS) if after else 0,
        upgrade_bytes=(file.policy.after_bytes or _NO_BYTES) if after else 0,
    )
    return Rules(heaps, policy)


def main(argv: list[str] | None = None) -> int:
    """Run the daemon; returns the exit code."""
    return service.run(
        argv,
        module="lab.daemon",
        what="the lab's daemon",
        pid_name="daemon.pid",
        serve=lambda lab_dir: Daemon(lab_dir).run(),
    )


if __name__ == "__main__":
    sys.exit(main())
