"""The labs of a test run: each under a name of its own, and what is told of them when a test fails.

`lab.pytest_plugin` uses this; it is imported when the first test asks for a lab.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from lab import sockets as socket_rows
from lab.api import Guest, Lab
from lab.errors import LabError
from lab.lock import BusyError
from lab.progress import Progress, format_elapsed
from lab.topology import Topology
from lab.topology_file import load_topology, parse_topology
from lab.topology_yaml import parse as parse_yaml

Section = tuple[str, str]

#: Seconds that a guest's part of a report may take. A guest that hangs must not hang the tests.
_REPORT_TIMEOUT = 45.0

#: Characters of a lab's name that are left for the topology's own, beside a process number and a counter.
_NAME_ROOM = 11

_counter = itertools.count(1)


#: A topology: a file, YAML text (more than one line), or data.
Source = str | Path | Mapping[str, Any]


class Given(NamedTuple):
    """A topology that a test gave, and its data as they were written."""

    topology: Topology
    data: Mapping[str, Any]


class Kept(NamedTuple):
    """A lab that stays up: its name, the file with its topology, and a guest to log in to."""

    name: str
    file: str
    guest: str


class Keeper:
    """All labs of one process of a test run."""

    def __init__(self, directory: Path, *, keep: bool, say: Callable[[str], None]) -> None:
        """`directory` gets the topology files; with `keep`, labs stay up; `say` shows a line to the user."""
        self._directory = directory
        self._keep = keep
        self._say = say
        self._open: list[Lab] = []
        self._failed: list[Lab] = []
        self._shared: dict[str, Lab] = {}
        self.kept: list[Kept] = []

    def open(self, source: Source) -> Lab:
        """Bring up a lab of this topology: a file, YAML text, or data. Raises `LabError`."""
        return self._bring_up(read(source))

    def share(self, source: Source) -> Lab:
        """As `open`, but the same lab for the same topology; `close_shared` ends it."""
        given = read(source)
        digest = given.topology.digest()
        if digest not in self._shared:
            self._shared[digest] = self._bring_up(given)
        return self._shared[digest]

    def close(self, lab: Lab) -> None:
        """Take a lab down, unless labs are kept."""
        if lab in self._open:
            self._open.remove(lab)
        if self._keep:
            lab.close()
        else:
            lab.down()

    def close_shared(self) -> None:
        """`close` for the shared ones."""
        while self._shared:
            _, lab = self._shared.popitem()
            self.close(lab)

    def describe(self, values: Iterable[object]) -> list[Section]:
        """What the guests said: of the labs among the values of a test's fixtures, and of those that have not
        come up since the last report.
        """
        labs = [value for value in values if isinstance(value, Lab)]
        failed, self._failed = self._failed, []
        sections = [section for lab in dict.fromkeys(labs) for section in describe(lab)]
        for lab in failed:
            sections += describe(lab)
            self._give_up(lab)
        return sections

    def _bring_up(self, given: Given) -> Lab:
        topology, file = self._name_apart(given)
        lab = Lab(topology, progress=Progress(topology.name))
        begun = time.monotonic()
        self._say(f"lab {lab.name}: bringing up {', '.join(lab.guests)} ...")
        if self._keep:
            self.kept.append(Kept(lab.name, str(file), next(iter(lab.guests))))
        try:
            lab.up()
        except BusyError:
            raise
        except LabError:
            # The report is to show its consoles; it is taken down after that.
            self._failed.append(lab)
            raise
        except BaseException:
            self._give_up(lab)
            raise
        self._say(f"lab {lab.name}: up after {format_elapsed(time.monotonic() - begun)}")
        self._open.append(lab)
        return lab

    def _give_up(self, lab: Lab) -> None:
        if not self._keep:
            lab.down()

    def _name_apart(self, given: Given) -> tuple[Topology, Path]:
        """The topology under a name that no other lab of this host has, and the file that it now stands in.

        Labs of different names share nothing, not even their networks: the same subnet may be in all.
        """
        name = f"{given.topology.name[:_NAME_ROOM].rstrip('-')}-{os.getpid()}-{next(_counter)}"
        data = {**given.data, "name": name}
        file = self._directory / f"{name}.yaml"
        # JSON is YAML, and needs no thought about which texts YAML would take for something else.
        file.write_text(json.dumps(data, indent=2, default=str) + "\n")
        return load_topology(file), file


def read(source: Source) -> Given:
    """The topology of a file, of YAML text (more than one line), or of data. Raises `TopologyError`."""
    if isinstance(source, Mapping):
        text, name = json.dumps(source, indent=1, default=str), "<dict>"
    elif isinstance(source, str) and "\n" in source:
        text, name = source, "<text>"
    else:
        topology = load_topology(Path(source))
        return Given(topology, parse_yaml(Path(source).read_bytes()).data)
    return Given(parse_topology(text, name), parse_yaml(text.encode()).data)


# --- Reports


def describe(lab: Lab) -> list[Section]:
    """Sections for a report: console, agent's journal and sockets of every guest, all asked at once."""
    try:
        rows: list[socket_rows.Row] | str = socket_rows.collect(lab.name)
    except LabError as error:
        rows = error.message
    running = {status.name for status in lab.status().guests if status.state == "running"}
    journals = {guest.name: lab.submit(guest.journal) for guest in lab if guest.name in running}
    sections = []
    if lab.subtests:
        lines = [
            f"{'failed' if seconds is None else format_elapsed(seconds):>8}  {name}"
            for name, seconds in lab.subtests
        ]
        sections.append((f"lab {lab.name}: subtests", "\n".join(lines)))
    for guest in lab:
        state = "" if guest.name in running else " (it does not run)"
        console = "\n".join(guest.console_tail()) or "(nothing)"
        sections.append((f"lab {lab.name}: console of {guest.name}{state}", console))
        if guest.name in journals:
            journal = _text_of(journals[guest.name])
            sections.append((f"lab {lab.name}: agent of {guest.name}", journal))
        sections.append((f"lab {lab.name}: sockets of {guest.name}", _format_sockets(guest, rows)))
    return sections


def _text_of(future: Future[str]) -> str:
    try:
        return future.result(_REPORT_TIMEOUT).rstrip()
    except TimeoutError:
        return f"(no answer in {_REPORT_TIMEOUT:g} s)"
    except LabError as error:
        return f"({error.message})"


def _format_sockets(guest: Guest, rows: list[socket_rows.Row] | str) -> str:
    if isinstance(rows, str):
        return f"({rows})"
    own = [row for row in rows if guest.name in (row["client_guest"], row["server_guest"])]
    if not own:
        return "(none)"
    table = [socket_rows.TABLE_COLUMNS, *socket_rows.format_table(own[-30:])]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )
