"""The daemon of a lab: registry, broker and doorbell servers in one process, and its control socket.

    python -m lab.daemon --lab-dir /run/hyperheap/<lab>

It serves what `daemon.json` in that directory says. SIGHUP reads it again, SIGTERM and SIGINT end cleanly. It
may be killed at any time: the next one finds the leases in `leases`, and the agents tell it the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab import daemon_file
from lab.broker import HeapBroker
from lab.daemon_file import DaemonFile, HeapEntry
from lab.doorbell import DoorbellServer
from lab.errors import LabError
from lab.heap_file import HeapFile
from lab.registry.core import Registry
from lab.registry.decision import HeapMembership, Policy, Rules
from lab.registry.link import Links
from lab.registry.report import report_agents, report_connections

QUERY_SECONDS = 1.0
"""How long `sockets` waits for agents; what does not answer is shown with its last counters."""
REQUEST_LIMIT = 65536

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
        self._doorbells: dict[str, DoorbellServer] = {}
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
        control: asyncio.Server | None = None
        chores: list[asyncio.Task[None]] = []
        try:
            await self._configure(self._file)
            control = await self._listen()
            chores = [
                asyncio.create_task(self._tick()),
                asyncio.create_task(self._reload_when(reload_wanted)),
            ]
            log.info("lab=%s pid=%d ready", self._file.lab, os.getpid())
            await self._stop.wait()
        finally:
            for chore in chores:
                chore.cancel()
            if control is not None:
                control.close()
                self._socket_path.unlink(missing_ok=True)
            await self._links.close()
            for doorbell in self._doorbells.values():
                await doorbell.close()
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
            if name not in wanted or not _is_same_heap(entry, wanted[name]):
                await self._close_heap(name)
        for entry in file.heaps:
            if entry.name not in self._entries:
                await self._open_heap(entry)
            self._entries[entry.name] = entry
        self._registry.configure(
            {guest.name: frozenset(guest.addresses) for guest in file.guests}, _rules_of(file)
        )
        await self._links.configure({guest.name: guest.port for guest in file.guests})
        self._file = file

    async def _open_heap(self, entry: HeapEntry) -> None:
        heap = HeapFile.ensure(entry.file, entry.size)
        try:
            entry.socket.parent.mkdir(parents=True, exist_ok=True)
            doorbell = DoorbellServer(heap, entry.socket, entry.vectors)
            self._broker.open_heap(entry.name, heap, doorbell.have_met)
            await doorbell.start()
        except BaseException:
            heap.close()
            raise
        self._heap_files[entry.name] = heap
        self._doorbells[entry.name] = doorbell

    async def _close_heap(self, name: str) -> None:
        await self._doorbells.pop(name).close()
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

    # --- control --------------------------------------------------------------------------------------------

    @property
    def _socket_path(self) -> Path:
        return self._dir / "daemon.sock"

    async def _listen(self) -> asyncio.Server:
        self._socket_path.unlink(missing_ok=True)  # ours to take: we hold the lock on the pid file
        mask = os.umask(0o177)
        try:
            return await asyncio.start_unix_server(self._serve, str(self._socket_path), limit=REQUEST_LIMIT)
        finally:
            os.umask(mask)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            try:
                while line := await reader.readline():
                    writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                    await writer.drain()
            except ValueError:
                writer.write(b'{"ok": false, "error": "the request is too long"}\n')
            finally:
                writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        operations = {
            "ping": self._on_ping,
            "status": self._on_status,
            "sockets": self._on_sockets,
            "stop": self._on_stop,
        }
        try:
            request = json.loads(line)
            operation = operations[request["op"]]
        except (ValueError, TypeError, KeyError):
            return {"ok": False, "error": f"no such operation; there are {', '.join(operations)}"}
        return {"ok": True, **await operation()}

    async def _on_ping(self) -> dict[str, Any]:
        return {"lab": self._file.lab, "pid": os.getpid()}

    async def _on_status(self) -> dict[str, Any]:
        now = time.monotonic()
        peers = {name: len(doorbell.peers) for name, doorbell in self._doorbells.items()}
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

    async def _on_sockets(self) -> dict[str, Any]:
        fresh = asyncio.Event()
        query = self._registry.query(fresh.set)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(fresh.wait(), QUERY_SECONDS)
        self._registry.forget_query(query)
        return {
            "fresh": fresh.is_set(),
            "connections": report_connections(self._registry, time.monotonic()),
        }

    async def _on_stop(self) -> dict[str, Any]:
        asyncio.get_running_loop().call_soon(self._stop.set)
        return {}


def _is_same_heap(one: HeapEntry, other: HeapEntry) -> bool:
    changeable = {"members", "buffer"}
    return one.model_dump(exclude=changeable) == other.model_dump(exclude=changeable)


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


@contextmanager
def hold_pid_file(path: Path) -> Iterator[None]:
    """Be the only daemon of the lab: hold a lock on the pid file while the block runs, then remove it.

    Raises:
        LabError: another daemon has it.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = path.read_text().strip()
            raise LabError(f"{path}: the lab's daemon runs already (pid {pid})") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Run the daemon; returns the exit code."""
    parser = argparse.ArgumentParser(prog="lab.daemon", description="The daemon of a hyperheap lab.")
    parser.add_argument("--lab-dir", type=Path, required=True, help="the lab's runtime directory")
    parser.add_argument("--debug", action="store_true", help="log every announcement")
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if arguments.debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)

    async def serve() -> None:
        await Daemon(arguments.lab_dir).run()

    try:
        with hold_pid_file(arguments.lab_dir / "daemon.pid"):
            asyncio.run(serve())
    except (LabError, OSError) as error:
        log.critical("%s", error)
        return error.exit_code if isinstance(error, LabError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
