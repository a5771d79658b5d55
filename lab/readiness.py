"""When a guest that was started is ready, and what it was doing if it never is.

A guest passes four phases: boot (its setup has run), network (sshd answers), agent (registered), heap (all
its heaps mapped).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab import accelerator, console, control, domain, netns
from lab.errors import LabError, PhaseError
from lab.paths import LabPaths
from lab.progress import Progress
from lab.topology import Guest

#: What bin/setup on the tools disk says at its end.
SETUP_DONE = "hyperheap: setup done"

#: Seconds that each phase may take under KVM.
_LIMITS = {"boot": 20.0, "network": 10.0, "agent": 10.0, "heap": 10.0}

#: Seconds between two looks at a phase, and at whether the guest runs at all. The guests need the host's
#: processors.
_PAUSE = 0.15
_LOOK_INTERVAL = 1.0


@dataclass(frozen=True)
class Watch:
    """What is needed to look at a guest from outside."""

    lab: LabPaths
    guest: Guest
    accelerator: str
    connection: Any
    """To libvirt."""
    stop: threading.Event
    """Set when nobody waits for the answer any more."""


def wait(watch: Watch, progress: Progress) -> None:
    """Wait until the guest is ready. Raises `PhaseError` with its last console lines if a phase takes too
    long or it ends.
    """
    phases: list[tuple[str, Callable[[Watch], str | None]]] = [
        ("boot", _boot),
        ("network", _network),
        ("agent", _agent),
    ]
    if watch.guest.heaps:
        phases.append(("heap", _heap))
    for phase, missing in phases:
        with progress.task(watch.guest.name, phase):
            _wait_for(watch, phase, missing)


def _wait_for(watch: Watch, phase: str, missing: Callable[[Watch], str | None]) -> None:
    allowed = accelerator.limit(_LIMITS[phase], watch.accelerator)
    begun = time.monotonic()
    next_look = begun + _LOOK_INTERVAL
    while reason := missing(watch):
        now = time.monotonic()
        if now > next_look:
            next_look = now + _LOOK_INTERVAL
            if not domain.is_running(watch.connection, watch.lab, watch.guest.name):
                raise _failure(watch, phase, "it is not running any more")
        if now > begun + allowed:
            raise _failure(watch, phase, f"{reason} after {allowed:g} s")
        if watch.stop.wait(_PAUSE):
            raise _failure(watch, phase, "interrupted")


def _failure(watch: Watch, phase: str, reason: str) -> PhaseError:
    lines = console.last_lines(watch.lab.guest(watch.guest.name).console_log)
    cure = f"lab console {watch.guest.name}; lab logs {watch.guest.name}; lab down"
    return PhaseError(watch.guest.name, phase, reason, console=lines, cure=cure)


def _boot(watch: Watch) -> str | None:
    return None if has_booted(watch.lab, watch.guest.name) else "it has not finished booting"


def has_booted(lab: LabPaths, guest: str) -> bool:
    """Whether the guest's setup has run since its console log began."""
    try:
        return SETUP_DONE in lab.guest(guest).console_log.read_text(errors="replace")
    except FileNotFoundError:
        return False


def _network(watch: Watch) -> str | None:
    try:
        with netns.open_connection(watch.lab.netns_file, str(watch.guest.address), 22, 2.0) as connection:
            return None if connection.recv(4) == b"SSH-" else "what answers at port 22 is no sshd"
    except OSError as error:
        return f"sshd does not answer ({error.strerror or error})"


def _agent(watch: Watch) -> str | None:
    found = agent_status(watch.lab, watch.guest.name)
    return None if found.get("connected") else "its agent has not registered"


def _heap(watch: Watch) -> str | None:
    mapped = agent_status(watch.lab, watch.guest.name).get("heaps", [])
    absent = sorted(set(watch.guest.heaps) - set(mapped))
    return f"heaps not mapped: {', '.join(absent)}" if absent else None


def agent_status(lab: LabPaths, guest: str) -> dict[str, Any]:
    """What the daemon knows of the guest's agent; empty if the daemon does not answer."""
    try:
        agents = control.ask(lab.daemon_socket, "status").get("agents", {})
    except LabError:
        return {}
    found = agents.get(guest) if isinstance(agents, dict) else None
    return found if isinstance(found, dict) else {}
