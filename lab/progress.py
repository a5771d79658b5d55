"""Progress of something that takes time: what is being done for whom, and for how long already.

    with Progress("up") as progress:
        with progress.task("client", "boot") as task:
            task.detail("kernel started")
            ...

Services get a `Progress` as an argument and report to it; they never print. Tasks may run in several
threads at once. On a terminal they form a live table on stderr, elsewhere each start and end is one
plain line; `Progress.silent()` shows nothing. A task that is left by an exception is shown as failed.
"""

from __future__ import annotations

import enum
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

# A finished task is folded away from the live table when more than this many rows stand in it.
_MAX_ROWS = 40


class State(enum.Enum):
    """Where a task stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass
class _Row:
    subject: str
    phase: str
    started: float
    state: State = State.RUNNING
    detail: str = ""
    ended: float | None = None


class Task:
    """One phase of one subject. Made by `Progress.task`."""

    def __init__(self, progress: Progress, row: _Row) -> None:
        self._progress = progress
        self._row = row

    @property
    def elapsed(self) -> float:
        """Seconds since the task began, or that it took."""
        return self._progress.elapsed_of(self._row)

    def detail(self, text: str) -> None:
        """Say in a few words what the task is doing now. On plain output only the last one is shown."""
        with self._progress.lock:
            self._row.detail = text

    def skip(self, reason: str) -> None:
        """There was nothing to do: the task ends as skipped, with the reason."""
        with self._progress.lock:
            self._row.state = State.SKIPPED
            self._row.detail = reason


class Progress:
    """All tasks of one verb. A context manager; entering starts the clock and the display."""

    def __init__(
        self, title: str, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.lock = threading.RLock()
        self._title = title
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._begun = clock()
        self._rows: list[_Row] = []
        self._live: Live | None = None
        self._silent = False

    @classmethod
    def silent(cls) -> Progress:
        """A progress that shows nothing."""
        progress = cls("")
        progress._silent = True
        return progress

    def __enter__(self) -> Progress:
        self._begun = self._clock()
        if not self._silent and is_live_terminal(self._stream):
            self._live = self._make_live()
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def elapsed(self) -> float:
        """Seconds since the progress was entered."""
        return self._clock() - self._begun

    @contextmanager
    def task(self, subject: str, phase: str) -> Iterator[Task]:
        """Show that `phase` is going on for `subject` (a guest's name, or "lab") while the block runs."""
        row = _Row(subject, phase, self._clock())
        with self.lock:
            self._rows.append(row)
            self._plain(f"{subject}: {phase} ...")
        try:
            yield Task(self, row)
        except BaseException as error:
            self._end(row, State.FAILED, detail=row.detail or _first_line(error))
            raise
        self._end(row, State.DONE if row.state is State.RUNNING else row.state, detail=row.detail)

    def note(self, text: str) -> None:
        """Show one line that belongs to no task."""
        live = self._live
        if live is not None:
            live.console.print(text, markup=False, highlight=False)
        else:
            with self.lock:
                self._plain(text)

    def elapsed_of(self, row: _Row) -> float:
        """Seconds that a row has been running, or ran."""
        return (self._clock() if row.ended is None else row.ended) - row.started

    def _end(self, row: _Row, state: State, *, detail: str) -> None:
        with self.lock:
            row.ended = self._clock()
            row.state = state
            row.detail = detail
            words = f"{row.subject}: {row.phase} {state.value} ({format_elapsed(self.elapsed_of(row))})"
            self._plain(f"{words}: {detail}" if detail else words)
            live = self._live
        # Not under our lock: the display holds its own while it asks for the table, which takes ours.
        if live is not None:
            live.refresh()

    def _plain(self, text: str) -> None:
        if self._silent or self._live is not None:
            return
        prefix = f"[{self._title} {format_elapsed(self.elapsed)}] " if self._title else ""
        try:
            self._stream.write(f"{prefix}{text}\n")
            self._stream.flush()
        except (BrokenPipeError, ValueError):
            self._silent = True  # nobody reads any more; the work goes on

    def _make_live(self) -> Live:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self._stream, highlight=False)
        return Live(get_renderable=self._table, console=console, refresh_per_second=5, redirect_stdout=False)

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        style = {
            State.RUNNING: "cyan",
            State.DONE: "green",
            State.FAILED: "bold red",
            State.SKIPPED: "dim",
        }
        with self.lock:
            table = Table(
                title=f"{self._title}  {format_elapsed(self.elapsed)}",
                title_justify="left",
                box=None,
                pad_edge=False,
            )
            table.add_column("")
            table.add_column("phase")
            table.add_column("state")
            table.add_column("time", justify="right")
            table.add_column("detail", overflow="ellipsis", no_wrap=True, style="dim")
            for row in self._visible_rows():
                table.add_row(
                    Text(row.subject, style="bold"),
                    Text(row.phase),
                    Text(row.state.value, style=style[row.state]),
                    Text(format_elapsed(self.elapsed_of(row))),
                    Text(row.detail),
                )
        return table

    def _visible_rows(self) -> list[_Row]:
        surplus = len(self._rows) - _MAX_ROWS
        rows = []
        for row in self._rows:
            if surplus > 0 and row.state in (State.DONE, State.SKIPPED):
                surplus -= 1
                continue
            rows.append(row)
        return rows


def is_live_terminal(stream: TextIO) -> bool:
    """Whether a display that redraws itself may be shown on the stream."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def format_elapsed(seconds: float) -> str:
    """A duration in few letters: `0.4s`, `12.3s`, `2m05s`, `1h02m`."""
    if seconds < 99.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
