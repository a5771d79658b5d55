"""What ansible-runner reports while a playbook runs: to a display, to JSON lines, and to results per host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from lab.errors import LabError
from lab.progress import Progress, Task

#: Lines of a failed command's output that are shown with it.
_TAIL: Final = 12

_OUTCOMES: Final = {
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
    "runner_on_skipped": "skipped",
}
_COUNTED: Final = (
    ("ok", "ok"),
    ("changed", "changed"),
    ("failures", "failed"),
    ("dark", "unreachable"),
    ("skipped", "skipped"),
    ("rescued", "rescued"),
    ("ignored", "ignored"),
)
#: Modules whose only purpose is to say something.
_SPEAKERS: Final = frozenset({"debug", "ansible.builtin.debug"})


@dataclass(frozen=True)
class Event:
    """Something that happened. `event` is "play", "task", "start", "ok", "changed", "failed", "unreachable"
    or "skipped"; the last six are of one host. `seconds` is how long a task took there.
    """

    event: str
    time: str
    play: str
    task: str = ""
    action: str = ""
    host: str = ""
    seconds: float | None = None
    message: str = ""


@dataclass(frozen=True)
class Failure:
    """A task that did not succeed on a host, and why."""

    task: str
    message: str


@dataclass(frozen=True)
class HostResult:
    """Numbers of tasks by outcome on one host; a changed task is an ok one, too."""

    name: str
    ok: int = 0
    changed: int = 0
    failed: int = 0
    unreachable: int = 0
    skipped: int = 0
    rescued: int = 0
    ignored: int = 0
    failures: tuple[Failure, ...] = ()


@dataclass
class Recorder:
    """Takes ansible-runner's events. `output` is what Ansible said outside of any task."""

    progress: Progress
    listener: Callable[[Event], None] | None = None
    output: str = ""
    _open: dict[str, tuple[contextlib.ExitStack, Task]] = field(default_factory=dict)
    _failures: dict[str, list[Failure]] = field(default_factory=dict)
    _counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def on_event(self, raw: dict[str, Any]) -> bool:
        """One event of ansible-runner; False, as it need not be kept."""
        kind = str(raw.get("event"))
        data = raw.get("event_data") or {}
        if kind == "playbook_on_stats":
            self._count(data)
        elif kind == "runner_on_start":
            self._begin(raw, data)
        elif kind in _OUTCOMES:
            self._end(raw, data, _OUTCOMES[kind])
        elif kind == "playbook_on_play_start":
            self._tell("play", raw, data)
        elif kind == "playbook_on_task_start":
            self._tell("task", raw, data)
        elif kind in ("verbose", "error", "warning"):
            self.output += f"{raw.get('stdout', '')}\n"
        return False

    def hosts(self) -> tuple[HostResult, ...]:
        """The results so far, by name. What was rescued is no failure where nothing else failed."""
        results = []
        for name in sorted({*self._counts, *self._failures}):
            counts = self._counts.get(name, {})
            was_well = bool(counts) and not counts.get("failed") and not counts.get("unreachable")
            failures = () if was_well else tuple(self._failures.get(name, ()))
            results.append(HostResult(name, **counts, failures=failures))
        return tuple(results)

    def close(self) -> None:
        """End what is still shown as going on, after a run that was cut off."""
        for stack, _ in self._open.values():
            stack.close()
        self._open.clear()

    def _begin(self, raw: dict[str, Any], data: dict[str, Any]) -> None:
        host = str(data.get("host"))
        self._tell("start", raw, data)
        stack = contextlib.ExitStack()
        self._open[host] = stack, stack.enter_context(self.progress.task(host, _name(data)))

    def _end(self, raw: dict[str, Any], data: dict[str, Any], outcome: str) -> None:
        host = str(data.get("host"))
        result = data.get("res") or {}
        if outcome == "ok" and result.get("changed"):
            outcome = "changed"
        message = _reason(result) if outcome in ("failed", "unreachable", "skipped") else ""
        if data.get("task_action") in _SPEAKERS and outcome == "ok":
            message = _words(result)
        self._tell(outcome, raw, data, message)
        self._finish(host, outcome, message, ignored=bool(data.get("ignore_errors")))
        if outcome == "ok" and message:
            self.progress.note(f"{host}: {message}")
        if outcome in ("failed", "unreachable") and not data.get("ignore_errors"):
            self._failures.setdefault(host, []).append(Failure(_name(data), message))

    def _finish(self, host: str, outcome: str, message: str, *, ignored: bool) -> None:
        """End the row of a host's task on the display."""
        if host not in self._open:
            return
        stack, task = self._open.pop(host)
        if outcome in ("failed", "unreachable") and not ignored:
            reason = LabError(message or outcome)
            stack.__exit__(LabError, reason, None)
            return
        if outcome == "skipped":
            task.skip("")
        elif outcome != "ok":
            task.detail(outcome)
        stack.close()

    def _count(self, data: dict[str, Any]) -> None:
        for theirs, ours in _COUNTED:
            for host, number in (data.get(theirs) or {}).items():
                self._counts.setdefault(host, {})[ours] = number

    def _tell(self, event: str, raw: dict[str, Any], data: dict[str, Any], message: str = "") -> None:
        if self.listener is None:
            return
        self.listener(
            Event(
                event=event,
                time=str(raw.get("created", "")),
                play=str(data.get("play") or data.get("name") or ""),
                task="" if event == "play" else _name(data),
                action=str(data.get("task_action") or ""),
                host=str(data.get("host") or ""),
                seconds=round(float(data["duration"]), 3) if "duration" in data else None,
                message=message,
            )
        )


def _name(data: dict[str, Any]) -> str:
    return str(data.get("task") or data.get("name") or data.get("task_action") or "task")


def _reason(result: dict[str, Any]) -> str:
    """Why a task failed or was skipped, with the end of what its command wrote."""
    failed = [each for each in result.get("results") or () if isinstance(each, dict) and each.get("failed")]
    if failed:
        item = failed[0].get("item")
        return f"{item}: {_reason(failed[0])}" if isinstance(item, str) else _reason(failed[0])
    message = result.get("msg") or result.get("skip_reason") or result.get("reason") or ""
    text = "\n".join(map(str, message)) if isinstance(message, list) else str(message)
    for stream in ("stderr", "module_stderr", "stdout", "module_stdout"):
        lines = str(result.get(stream) or "").strip().splitlines()[-_TAIL:]
        if lines:
            return "\n".join([text.rstrip(), *lines]).strip()
    return text.strip()


def _words(result: dict[str, Any]) -> str:
    """What a debug task says."""
    message = result.get("msg")
    if message is None:
        shown = {key: value for key, value in result.items() if not key.startswith("_") and key != "changed"}
        message = next(iter(shown.values()), "")
    return "\n".join(map(str, message)) if isinstance(message, list) else str(message)
