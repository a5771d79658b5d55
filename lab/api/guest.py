"""A guest of a lab, as a Python object."""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import libvirt

from lab import carrier, console, domain, libvirtd, transfer
from lab import guest as service
from lab.api.connection import Connection
from lab.api.connection import Path as DataPath
from lab.api.result import Command, CommandError, ExpectationError, Result, argv_of
from lab.api.waiting import wait_until
from lab.errors import LabError, UserError
from lab.paths import GuestPaths, LabPaths
from lab.ssh_session import CommandTimeoutError, Session
from lab.status import GuestStatus
from lab.topology import Guest as Definition

if TYPE_CHECKING:
    from lab.api.lab import Lab

#: Seconds that something in a guest may take under KVM unless the caller says otherwise.
_PATIENCE = 30.0

_T = TypeVar("_T")

_AGENT = "hyperheap-agent.service"


class Guest:
    """One guest; `Lab[name]` gives it. Commands run as root, over one ssh session that is kept.

    A command is a list of words, which are passed as they are, or a text for the guest's shell. A `timeout`
    is in seconds and exact; where it is left out, waiting takes as long as the accelerator makes sensible
    (30 s under KVM, 180 s under TCG) and commands may take any time.
    """

    def __init__(self, lab: Lab, definition: Definition) -> None:
        self._lab = lab
        self._definition = definition
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._retired: list[Session] = []

    @property
    def name(self) -> str:
        """Its name in the topology, which is its host name too."""
        return self._definition.name

    @property
    def address(self) -> str:
        """The IPv4 address at which the host reaches it."""
        return str(self._definition.address)

    @property
    def addresses(self) -> tuple[str, ...]:
        """All its addresses in the lab."""
        return tuple(str(address) for address in self._definition.addresses)

    @property
    def definition(self) -> Definition:
        """What the topology says of it."""
        return self._definition

    @property
    def files(self) -> GuestPaths:
        """Its files on the host: the console's log, for example."""
        return LabPaths(self._lab.name).guest(self.name)

    def __repr__(self) -> str:
        return f"<Guest {self._lab.name}/{self.name} {self.address}>"

    # --- Commands

    def execute(self, command: Command, *, stdin: str | bytes = b"", timeout: float | None = None) -> Result:
        """Run a command and return what it gave, whatever its exit code is.

        Raises `CommandTimeoutError` if it takes more than `timeout` seconds (it is ended), `LabError` if the
        guest cannot be reached or goes away meanwhile.
        """
        data = stdin.encode() if isinstance(stdin, str) else stdin
        argv = argv_of(command)
        done = service.run_in(self.session(), argv, stdin=data, timeout=timeout)
        kept = command if isinstance(command, str) else tuple(command)
        return Result(self.name, kept, done.code, done.stdout, done.stderr)

    def spawn(
        self, command: Command, *, stdin: str | bytes = b"", timeout: float | None = None
    ) -> Future[Result]:
        """Start a command and go on; `.result()` of what is returned waits for it, as `execute` does."""
        self.session()
        return self._lab.submit(lambda: self.execute(command, stdin=stdin, timeout=timeout))

    def succeed(self, command: Command, *, stdin: str | bytes = b"", timeout: float | None = None) -> Result:
        """Run a command that must succeed. Raises `CommandError`, with what it said, if it does not."""
        __tracebackhide__ = True
        return self.execute(command, stdin=stdin, timeout=timeout).check()

    def fail(self, command: Command, *, stdin: str | bytes = b"", timeout: float | None = None) -> Result:
        """Run a command that must fail. Raises `CommandError` if it succeeds."""
        __tracebackhide__ = True
        result = self.execute(command, stdin=stdin, timeout=timeout)
        if result.code == 0:
            raise CommandError(result, "with a failure")
        return result

    # --- Waiting

    def wait_until_succeeds(self, command: Command, *, timeout: float | None = None) -> Result:
        """Repeat a command until it succeeds. Raises `WaitError` with its last words if it does not."""
        __tracebackhide__ = True
        return self._repeat(command, timeout, lambda result: result.code == 0, "succeed")

    def wait_until_fails(self, command: Command, *, timeout: float | None = None) -> Result:
        """Repeat a command until it fails. Raises `WaitError` if it goes on succeeding."""
        __tracebackhide__ = True
        return self._repeat(command, timeout, lambda result: result.code != 0, "fail")

    def wait_for_unit(self, unit: str, *, timeout: float | None = None) -> None:
        """Wait until a systemd unit is active. Raises `ExpectationError` at once if it failed."""
        __tracebackhide__ = True
        seen = "unknown"

        def look() -> bool | None:
            nonlocal seen
            seen = self.execute(["systemctl", "is-active", unit]).stdout.strip() or "unknown"
            if seen == "failed":
                raise ExpectationError(
                    f"guest {self.name}: unit {unit} failed\n{self.journal(unit)}",
                    cure=f"lab exec {self.name} -- systemctl status {unit}",
                )
            return True if seen == "active" else None

        self._wait(look, timeout, lambda: f"unit {unit} is {seen}, not active")

    def wait_for_open_port(self, port: int, *, timeout: float | None = None) -> None:
        """Wait until a program listens on a TCP port of the guest. Nothing connects to it."""
        __tracebackhide__ = True
        look = ["ss", "-Hltn", f"sport = :{port}"]
        self._wait(
            lambda: self.succeed(look).stdout.strip() or None, timeout, lambda: f"nobody listens on {port}"
        )

    def wait_for_closed_port(self, port: int, *, timeout: float | None = None) -> None:
        """Wait until no program listens on a TCP port of the guest any more."""
        __tracebackhide__ = True
        look = ["ss", "-Hltn", f"sport = :{port}"]
        self._wait(
            lambda: None if self.succeed(look).stdout.strip() else True,
            timeout,
            lambda: f"somebody still listens on {port}",
        )

    def wait_for_console_text(self, pattern: str, *, timeout: float | None = None) -> re.Match[str]:
        """Wait until the serial console has, since the guest's start, something that the regular expression
        matches.
        """
        __tracebackhide__ = True
        expression = re.compile(pattern, re.MULTILINE)
        return self._wait(
            lambda: expression.search(self.console()),
            timeout,
            lambda: f"its console has no {pattern!r}; it ends with:\n" + "\n".join(self.console_tail(5)),
        )

    # --- Files

    def copy_to(self, source: str | Path, target: str) -> None:
        """Copy a file or directory of the host into the guest, as `lab cp` does."""
        transfer.put(self.session(), Path(source), target)

    def copy_from(self, source: str, target: str | Path) -> None:
        """Copy a file or directory of the guest to the host, as `lab cp` does."""
        transfer.get(self.session(), source, target)

    # --- Breaking and mending

    def crash(self) -> None:
        """Switch the guest off as a power failure does. `start` boots it again, with the disk as it was made
        by `up`.
        """
        lab = LabPaths(self._lab.name)
        try:
            with libvirtd.connect(lab, self._lab.connect) as connection:
                connection.lookupByName(lab.domain(self.name)).destroyFlags(0)
        except libvirt.libvirtError as error:
            if not self._is_off():
                raise LabError(f"guest {self.name}: cannot be switched off: {error}") from error
        self.forget()

    def start(self) -> None:
        """Boot the guest if it does not run, and wait until it is ready. (Whatever else of the lab does not
        run, too.)
        """
        self._lab.up()

    def block(self, network: str | None = None) -> None:
        """Pull the guest's cable to a network out (default: the first network): its link loses the carrier.

        The host reaches the guest over its first network, too: while that is blocked, commands wait or fail,
        and shared memory, which needs no network, goes on.
        """
        carrier.set_carrier(self._lab.topology, self.name, network, present=False, connect=self._lab.connect)

    def unblock(self, network: str | None = None) -> None:
        """Plug the cable in again."""
        carrier.set_carrier(self._lab.topology, self.name, network, present=True, connect=self._lab.connect)
        # TCP tries less and less often to get through: a new session is quicker.
        with self._lock:
            if self._session is not None:
                self._retired.append(self._session)
                self._session = None

    # --- Looking

    def status(self) -> GuestStatus:
        """What libvirt and the registry say of it now."""
        return next(status for status in self._lab.status().guests if status.name == self.name)

    def sockets(self) -> list[Connection]:
        """The connections that have an end in this guest, the ended ones first."""
        return [each for each in self._lab.sockets() if self.name in (each.client.guest, each.server.guest)]

    def path_of(self, connection: Connection | int) -> DataPath:
        """What carries a connection of this guest: see `Lab.path_of`."""
        return self._lab.path_of(connection, guest=self.name)

    def console(self) -> str:
        """All that it wrote to its serial console since its start, without control sequences."""
        return console.text_of(self.files.console_log)

    def console_tail(self, lines: int = 30) -> tuple[str, ...]:
        """The last lines of its serial console; works for a guest that is dead, too."""
        return console.last_lines(self.files.console_log, lines)

    def journal(self, unit: str = _AGENT, lines: int = 40, *, timeout: float | None = 60) -> str:
        """The last lines of a unit's journal; by default, the agent's."""
        argv = ["journalctl", "--no-pager", "--output=short-precise", f"--lines={lines}", f"--unit={unit}"]
        return self.execute(argv, timeout=timeout).stdout

    # --- Its ssh session

    def session(self) -> Session:
        """The ssh session to it, made anew if it is gone: for streams, which a `Result` is not. Raises
        `LabError`.
        """
        with self._lock:
            if self._session is None or not self._session.is_alive:
                self._session = service.open_session(self._lab.topology, self.name)
            return self._session

    def forget(self) -> None:
        """Close the ssh session: its guest is gone, and it may not know."""
        with self._lock:
            sessions = [*self._retired, *([self._session] if self._session else [])]
            self._session = None
            self._retired = []
        for session in sessions:
            session.close()

    def _is_off(self) -> bool:
        lab = LabPaths(self._lab.name)
        with libvirtd.connect(lab, self._lab.connect) as connection:
            return not domain.is_running(connection, lab, self.name)

    def _limit(self, timeout: float | None) -> float:
        return self._lab.limit(_PATIENCE) if timeout is None else timeout

    def _wait(self, look: Callable[[], _T | None], timeout: float | None, what: Callable[[], str]) -> _T:
        __tracebackhide__ = True
        return wait_until(look, self._limit(timeout), lambda: f"guest {self.name}: {what()}")

    def _repeat(
        self, command: Command, timeout: float | None, is_good: Callable[[Result], bool], verb: str
    ) -> Result:
        __tracebackhide__ = True
        limit = self._limit(timeout)
        last = "it did not end"

        def look() -> Result | None:
            nonlocal last
            try:
                result = self.execute(command, timeout=limit)
            except CommandTimeoutError:
                return None
            except UserError:
                raise
            except LabError as error:
                # A guest that is blocked, or boots just now.
                last = error.message
                return None
            last = f"its last exit code is {result.code}: {(result.stderr or result.stdout).strip()[-500:]}"
            return result if is_good(result) else None

        words = command if isinstance(command, str) else shlex.join(command)
        return self._wait(look, timeout, lambda: f"{words!r} did not {verb}; {last}")
