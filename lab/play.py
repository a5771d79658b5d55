"""Running an Ansible playbook against the guests of a lab, by ansible-runner.

Nothing of a run stays behind: what ansible-runner and Ansible write lies in a temporary directory, and the
ssh connections that Ansible keeps open end with the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lab import inventory
from lab.errors import LabError, MissingError, UserError
from lab.paths import LabPaths
from lab.play_events import Event, HostResult, Recorder
from lab.progress import Progress
from lab.topology import Topology

#: Seconds. A TCG guest that is busy takes its time to answer.
_CONNECT_TIMEOUT = 60

#: Seconds between two looks at whether the run was interrupted, and until Ansible, which was asked to end its
#: tasks, is killed.
_POLL = 1
_GRACE = 10.0


@dataclass(frozen=True)
class Wishes:
    """How a playbook is to be run: as the options of `ansible-playbook` of these names."""

    extra_vars: tuple[str, ...] = ()
    """Each `NAME=VALUE ...`, JSON, or `@FILE`."""
    limit: str | None = None
    tags: str | None = None
    check: bool = False


@dataclass(frozen=True)
class PlayReport:
    """What came of a run. `exit_code` is that of ansible-playbook: 0; 2 a task failed; 4 a guest was
    unreachable; 1 the playbook is at fault. `output` is what Ansible said beside its events.
    """

    lab: str
    playbook: str
    exit_code: int
    seconds: float
    hosts: tuple[HostResult, ...]
    output: str


def run(
    topology: Topology,
    playbook: Path,
    progress: Progress,
    wishes: Wishes | None = None,
    *,
    file: Path | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> PlayReport:
    """Run the playbook; tasks that fail are no error but an exit code.

    `file` is the topology's file: playbooks find it as LAB_TOPOLOGY in their environment. An interrupt ends
    the run and is then raised. Raises `UserError` if there is no such playbook, `LabError` if the lab is not
    up.
    """
    wishes = wishes or Wishes()
    if not playbook.is_file():
        raise UserError(f"{playbook}: there is no such playbook")
    if not LabPaths(topology.name).private_key.exists():
        raise LabError(f"lab {topology.name} is not up", cure="lab up")
    recorder = Recorder(progress, on_event)
    with tempfile.TemporaryDirectory(prefix="hh-play-") as scratch, _signals_noted() as is_interrupted:
        private = Path(scratch)
        try:
            runner = _run_ansible(topology, playbook, wishes, file, private, recorder, is_interrupted)
        finally:
            _end_connections(private / "cp")
    recorder.close()
    # An Ansible that was killed has no exit code.
    code = 1 if runner.rc is None else int(runner.rc)
    return PlayReport(topology.name, str(playbook), code, progress.elapsed, recorder.hosts(), recorder.output)


def _run_ansible(
    topology: Topology,
    playbook: Path,
    wishes: Wishes,
    file: Path | None,
    private: Path,
    recorder: Recorder,
    is_interrupted: Callable[[], bool],
) -> Any:
    import ansible_runner

    hosts = private / "guests"
    # Ansible reads JSON as YAML, but the form of a dynamic inventory only from a program.
    hosts.write_text(f"#!/bin/sh\ncat {private}/list.json\n")
    hosts.chmod(0o700)
    (private / "list.json").write_text(json.dumps(inventory.make_list(topology)))
    # As an argument they would be lost where no such file is.
    (private / "env").mkdir()
    (private / "env" / "settings").write_text(json.dumps({"pexpect_timeout": _POLL}))
    words: list[str] = []
    for each in wishes.extra_vars:
        words += ["--extra-vars", each]
    words += ["--check"] * wishes.check
    return ansible_runner.interface.run(
        private_data_dir=str(private),
        project_dir=str(Path.cwd()),
        playbook=str(playbook.absolute()),
        inventory=str(hosts),
        limit=wishes.limit,
        tags=wishes.tags,
        cmdline=shlex.join(words) or None,
        envvars=_environment(private, file),
        quiet=True,
        event_handler=recorder.on_event,
        cancel_callback=is_interrupted,
    )


def _environment(private: Path, file: Path | None) -> dict[str, str]:
    # Ansible's programs are beside our Python, or where the user has them.
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if shutil.which("ansible-playbook", path=programs) is None:
        raise MissingError("there is no ansible-playbook on this machine", cure="pip install ansible-core")
    environment = {
        "PATH": programs,
        "ANSIBLE_HOME": str(private / "home"),
        "ANSIBLE_LOCAL_TEMP": str(private / "tmp"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(private / "cp"),
        "ANSIBLE_TIMEOUT": str(_CONNECT_TIMEOUT),
        "ANSIBLE_RETRY_FILES_ENABLED": "False",
    }
    # What runs on this machine may call `python -m lab`.
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    if file is not None:
        environment["LAB_TOPOLOGY"] = str(file.absolute())
    return environment


def _end_connections(directory: Path) -> None:
    """End the ssh connections that Ansible would keep open for another minute."""
    for control in directory.glob("*"):
        argv = ["ssh", "-F", "none", "-o", f"ControlPath={control}", "-O", "exit", "nobody"]
        subprocess.run(argv, capture_output=True, timeout=10, check=False)


@contextlib.contextmanager
def _signals_noted() -> Iterator[Callable[[], bool]]:
    """Note signals that would end us instead of obeying at once: Ansible is a session of its own and must be
    ended first. They are raised again at the end.

    Gives what ansible-runner asks every now and then: whether to kill Ansible.
    """
    noted: list[int] = []
    asked: list[float] = []

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(number)

    def is_to_be_killed() -> bool:
        if noted and not asked:
            # It ends its workers and their ssh then, which a kill would leave behind.
            asked.append(time.monotonic())
            for pid in _children():
                os.kill(pid, signal.SIGINT)
        return bool(asked) and time.monotonic() - asked[0] > _GRACE

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield is_to_be_killed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if noted:
            signal.raise_signal(noted[0])


def _children() -> list[int]:
    """The processes of Ansible that this thread has started."""
    words = Path("/proc/thread-self/children").read_text().split()
    return [int(word) for word in words if b"ansible-playbook" in Path("/proc", word, "cmdline").read_bytes()]
