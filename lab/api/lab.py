"""A lab, as a Python object."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar

from lab import accelerator, control, lifecycle
from lab import status as status_service
from lab.api import connection as connections
from lab.api.connection import Connection
from lab.api.connection import Path as DataPath
from lab.api.guest import Guest
from lab.api.result import ExpectationError
from lab.api.waiting import wait_until
from lab.errors import UserError
from lab.lock import BusyError
from lab.paths import LabPaths
from lab.progress import Progress
from lab.topology import Topology
from lab.topology_file import load_topology, parse_topology

_T = TypeVar("_T")

#: Commands that run at the same time in all guests of one lab.
_THREADS = 64

#: Seconds for the registry to see something, under KVM.
_PATIENCE = 30.0


class Lab:
    """A lab of one topology. Nothing is started by making one.

    As a context manager it is brought up, and taken down at the end, whatever happened:

        with Lab.from_file("lab.yaml") as lab:
            lab["client"].execute(["uname", "-r"])

    A lab that is up already is used by not entering it: `Lab.from_file("lab.yaml")["client"].execute(...)`;
    `close` ends the ssh sessions then.
    """

    def __init__(
        self, topology: Topology, *, connect: str | None = None, progress: Progress | None = None
    ) -> None:
        """`connect` is the URI of an existing libvirt to use instead of a private one; `progress` is told
        what goes on (default: nobody).
        """
        self.topology = topology
        self.connect = connect
        self.guests: Mapping[str, Guest] = MappingProxyType(
            {name: Guest(self, definition) for name, definition in topology.guests.items()}
        )
        self.subtests: list[tuple[str, float | None]] = []
        """The blocks of `subtest` so far: name, and seconds, None for one that did not end well."""
        self._progress = progress if progress is not None else Progress.silent()
        self._accelerator: str | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_file(
        cls, path: str | Path, *, connect: str | None = None, progress: Progress | None = None
    ) -> Lab:
        """The lab of a topology file. Raises `TopologyError` with all faults of the file."""
        return cls(load_topology(Path(path)), connect=connect, progress=progress)

    @classmethod
    def from_text(cls, text: str, *, connect: str | None = None, progress: Progress | None = None) -> Lab:
        """The lab of a topology as YAML text."""
        return cls(parse_topology(text, "<text>"), connect=connect, progress=progress)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], *, connect: str | None = None, progress: Progress | None = None
    ) -> Lab:
        """The lab of a topology as plain data, with the keys of a topology file."""
        text = json.dumps(data, indent=1, default=str)
        return cls(parse_topology(text, "<dict>"), connect=connect, progress=progress)

    # --- Its guests

    @property
    def name(self) -> str:
        """The lab's name."""
        return self.topology.name

    def __getitem__(self, guest: str) -> Guest:
        """The guest of that name. Raises `UserError` that lists the guests if there is none."""
        self.topology.guest(guest)
        return self.guests[guest]

    def __iter__(self) -> Iterator[Guest]:
        """Its guests, in the order of the topology."""
        return iter(self.guests.values())

    def __len__(self) -> int:
        return len(self.guests)

    def __repr__(self) -> str:
        return f"<Lab {self.name}: {', '.join(self.guests)}>"

    # --- Its life

    def up(self) -> lifecycle.UpReport:
        """Bring it up and wait until every guest is ready, as `lab up` does. Guests that died come back."""
        report = lifecycle.up(self.topology, self._progress, connect=self.connect)
        self._accelerator = report.accelerator
        for name in report.started:
            self.guests[name].forget()
        return report

    def down(self) -> lifecycle.DownReport:
        """Take it down and leave nothing of it, as `lab down` does."""
        self.close()
        return lifecycle.down(self.name, self._progress, connect=self.connect)

    def close(self) -> None:
        """Close the ssh sessions; the lab stays as it is, and this object can be used again."""
        with self._lock:
            pool, self._pool = self._pool, None
        for guest in self:
            guest.forget()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Lab:
        try:
            self.up()
        except (UserError, BusyError):
            # Another topology runs under this name, or another process works on it: it is not ours.
            raise
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    # --- Looking

    def status(self) -> status_service.LabStatus:
        """What it is doing now. Never raises for a lab that is down or damaged."""
        return status_service.collect(self.topology, connect=self.connect)

    def sockets(self) -> list[Connection]:
        """Every connection that the registry knows, the ended ones first, with fresh counters."""
        answer = control.ask(LabPaths(self.name).daemon_socket, "sockets")
        return [connections.read(each) for each in answer["connections"]]

    def connection(self, which: Connection | int, *, guest: str | None = None) -> Connection | None:
        """A connection as it is now: one that `sockets` gave, or the newest one to a server's port (of or to
        `guest`); of several at that time, the one that carried most. None if the registry knows none.
        """
        found = [
            each
            for each in self.sockets()
            if (each.server.port == which if isinstance(which, int) else each.number == which.number)
            and guest in (None, each.client.guest, each.server.guest)
        ]
        return connections.find_newest(found)

    def path_of(self, which: Connection | int, *, guest: str | None = None) -> DataPath:
        """What carried most of a connection's bytes so far: "shared" or "network".

        `which` is a connection that `sockets` gave, or a server's port: then its newest connection. Raises
        `ExpectationError` if the registry knows no such connection.
        """
        found = self.connection(which, guest=guest)
        if found is None:
            whose = f" of guest {guest}" if guest else ""
            what = f"to port {which}" if isinstance(which, int) else f"number {which.number}"
            raise ExpectationError(
                f"lab {self.name}: no connection{whose} {what} is known", cure="lab sockets"
            )
        return found.path

    def wait_for_path(
        self, which: Connection | int, path: DataPath, *, timeout: float | None = None
    ) -> Connection:
        """Wait until most of a connection's bytes went by this path; returns the connection."""
        __tracebackhide__ = True
        seen: Connection | None = None

        def look() -> Connection | None:
            nonlocal seen
            seen = self.connection(which)
            return seen if seen is not None and seen.path == path else None

        limit = self.limit(_PATIENCE) if timeout is None else timeout
        return wait_until(look, limit, lambda: f"not on path {path}: {seen or 'no such connection is known'}")

    # --- Tests

    @contextmanager
    def subtest(self, name: str) -> Iterator[None]:
        """Name a part of a long test: an error in it says so, and the report lists the parts.

        An error still ends the test: what follows relies on what came before.
        """
        begun = time.monotonic()
        self._progress.note(f"subtest: {name}")
        place = len(self.subtests)
        self.subtests.append((name, None))
        try:
            yield
        except BaseException as error:
            error.add_note(f"in subtest {name!r}")
            raise
        self.subtests[place] = (name, time.monotonic() - begun)

    # --- For its guests

    def limit(self, seconds: float) -> float:
        """A time limit for what takes at most `seconds` under KVM: more, if the guests run under TCG."""
        if self._accelerator is None:
            found = (guest.accelerator for guest in self.status().guests)
            self._accelerator = next((each for each in found if each), None)
        return accelerator.limit(seconds, self._accelerator or "tcg")

    def submit(self, function: Callable[[], _T]) -> Future[_T]:
        """Call a function in a thread of the lab's."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"lab-{self.name}")
            return self._pool.submit(function)
