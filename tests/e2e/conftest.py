"""Real guests for the tests of this directory: one lab for all that do not break it, and a look at the host
for those that do.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab import Lab, cleanup, control, guest, lifecycle, paths, process
from lab.paths import LabPaths
from lab.progress import Progress
from lab.ssh_session import Session
from lab.topology import Topology
from lab.topology_file import parse_topology

REPOSITORY = Path(__file__).resolve().parents[2]

#: Seconds for a whole test, its guests under TCG on a busy host.
TEST_TIMEOUT = 600

_PREFIX = "e2e-"

_NEEDED = ("qemu-system-x86_64", "libvirtd", "ip", "nsenter", "mke2fs", "mmdebstrap")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests here as e2e, give them time, and skip them where guests cannot be."""
    reason = why_not()
    for item in items:
        if Path(item.fspath).is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.e2e)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TEST_TIMEOUT))
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


def why_not() -> str | None:
    """Why this host cannot run guests, or None if it can."""
    if os.geteuid() != 0:
        return "real guests need root: network namespaces, bridges, libvirt"
    missing = [program for program in _NEEDED if shutil.which(program) is None]
    return f"real guests need {', '.join(missing)}; `lab doctor` has the cure" if missing else None


@dataclass
class RunningLab:
    """A lab that is up, and ways to use it from a test: bytes and exit codes as they are. `lab` is the same
    lab for users of the Python API.
    """

    topology: Topology
    file: Path
    lab: Lab = field(init=False)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(16))

    @property
    def paths(self) -> LabPaths:
        return LabPaths(self.topology.name)

    def __post_init__(self) -> None:
        self.lab = Lab(self.topology)

    def up(self) -> lifecycle.UpReport:
        """Make it whole again, after a test that broke something."""
        return self.lab.up()

    def forget(self, name: str) -> None:
        """Close the session to a guest that went: it is dead, and may not know."""
        self.lab[name].forget()

    def session(self, name: str) -> Session:
        return self.lab[name].session()

    def run(
        self, name: str, *argv: str, check: bool = True, timeout: float = 120, stdin: bytes = b""
    ) -> guest.Completed:
        """Run a command in a guest; with `check`, a bad exit code fails the test with what the command
        said.
        """
        done = guest.run_in(self.session(name), argv, stdin=stdin, timeout=timeout)
        if check and done.code:
            pytest.fail(f"{name}: {argv} ended with {done.code}\n{done.stdout!r}\n{done.stderr!r}")
        return done

    def start(
        self, name: str, *argv: str, timeout: float = 120, stdin: bytes = b""
    ) -> Future[guest.Completed]:
        """Start a command in a guest and go on; `.result()` waits for it. A bad exit code is no error."""
        session = self.session(name)
        return self._pool.submit(guest.run_in, session, argv, stdin=stdin, timeout=timeout)

    def sockets(self) -> list[dict[str, Any]]:
        """The registry's connections, the ended ones first."""
        return list(control.ask(self.paths.daemon_socket, "sockets")["connections"])

    def cli(
        self, *arguments: str, stdin: bytes = b"", timeout: float = 300
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `lab` as a user would, with this lab's topology: cli("exec", "client", "--", "true")."""
        return run_cli(arguments[0], "-t", str(self.file), *arguments[1:], stdin=stdin, timeout=timeout)

    def close(self) -> None:
        self.lab.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def run_cli(*arguments: str, stdin: bytes = b"", timeout: float = 300) -> subprocess.CompletedProcess[bytes]:
    """Run `python -m lab` with these arguments."""
    argv = [sys.executable, "-m", "lab", *arguments]
    return subprocess.run(
        argv, input=stdin, capture_output=True, timeout=timeout, cwd=REPOSITORY, check=False
    )


def write_topology(directory: Path, text: str, suffix: str) -> tuple[Topology, Path]:
    """The topology of this text (with `name: {name}`), under a name that is this test run's own."""
    name = f"{_PREFIX}{os.getpid()}{suffix}"
    file = directory / f"{name}.yaml"
    file.write_text(text.replace("{name}", name))
    return parse_topology(file.read_text(), str(file)), file


def hello_text() -> str:
    """examples/hello.yaml with a place for the name."""
    return re.sub(
        r"^name: .*$", "name: {name}", (REPOSITORY / "examples" / "hello.yaml").read_text(), flags=re.M
    )


@pytest.fixture(scope="session")
def hello_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """examples/hello.yaml, up: guests client and server with the heap `shared`, outsider without. Shared by
    all tests.

    A test that breaks something calls `hello_lab.up()` in the end.
    """
    _remove_leftovers()
    topology, file = write_topology(tmp_path_factory.mktemp("hello"), hello_text(), "")
    running = RunningLab(topology, file)
    try:
        lifecycle.up(topology, Progress("hello_lab"))
        yield running
    finally:
        running.close()
        lifecycle.down(topology.name, Progress.silent())


def _remove_leftovers() -> None:
    """Take down labs of test runs that were killed."""
    for parent in (paths.runtime_root(), paths.state_root()):
        for entry in parent.glob(f"{_PREFIX}*"):
            match = re.fullmatch(rf"{_PREFIX}(\d+).*", entry.name)
            if match and entry.is_dir() and not Path("/proc", match[1]).exists():
                cleanup.remove_everything(LabPaths(entry.name))


@dataclass(frozen=True)
class HostState:
    """What a lab could leave on its host. Two of them are compared."""

    namespaces: frozenset[str]
    links: frozenset[str]
    mounts: frozenset[str]
    shared_memory: frozenset[str]
    files: frozenset[str]
    control_groups: frozenset[str]
    processes: frozenset[str]


def look_at_host(lab: str) -> HostState:
    """The host as it is now, without what belongs to labs of other names, which may come and go meanwhile."""
    other = re.compile(
        rf"\bhh-(?!{re.escape(lab)}\b)|/hyperheap/(?!{re.escape(lab)}\b)|hyperheap-(?!{re.escape(lab)}\b)"
    )

    def ours(lines: Sequence[str]) -> frozenset[str]:
        return frozenset(line for line in lines if not other.search(line))

    def names(directory: Path, pattern: str = "*") -> list[str]:
        return [str(entry) for entry in directory.glob(pattern)]

    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    groups = Path("/sys/fs/cgroup")
    return HostState(
        namespaces=ours(names(Path("/run/netns"))),
        links=frozenset(line.split(": ")[1] for line in links.splitlines()),
        mounts=ours(Path("/proc/self/mounts").read_text().splitlines()),
        shared_memory=ours(names(Path("/dev/shm"), "hyperheap-*")),
        files=ours([*names(paths.runtime_root()), *names(paths.state_root())]),
        control_groups=ours([*names(groups, "*/machine*/*qemu*"), *names(groups, "machine*/*qemu*")]),
        processes=frozenset(
            f"{found.pid} {_command(found.pid)}" for found in process.find(lambda entry: _belongs(entry, lab))
        ),
    )


def _belongs(entry: Path, lab: str) -> bool:
    """Whether a process is in the lab's namespace, or has the lab's directories among its arguments."""
    if process.in_netns(LabPaths(lab).netns_file)(entry):
        return True
    return f"/hyperheap/{lab}/".encode() in (entry / "cmdline").read_bytes()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
