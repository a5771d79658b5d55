"""Processes of the host: run one to its end, leave one running, find and end those of a lab."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError, MissingError

#: Files that the programs of `run` inherit beside the standard ones: locks, which so are held until the last
#: program that works under them has ended, even if this process was killed before.
inherited: set[int] = set()


def run(
    argv: Sequence[object],
    *,
    what: str,
    timeout: float | None = 120,
    data: bytes = b"",
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> bytes:
    """Run argv to its end with `data` as input; returns its stdout.

    `what` says in an error what was being done. `on_line` gets each line of stderr as it comes. Raises
    `MissingError` if there is no such program, `LabError` with the last words of the program if it failed or
    took more than `timeout` seconds.
    """
    words = [str(word) for word in argv]
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if env is None else dict(env),
            pass_fds=tuple(inherited),
        )
    except FileNotFoundError:
        raise MissingError(f"{what}: no program {words[0]!r} on this host", cure="lab doctor") from None
    with process:
        try:
            if on_line is not None:
                out, errors = _follow(process, on_line)
            else:
                out, errors = process.communicate(data, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise LabError(f"{what}: {words[0]} took more than {timeout:g} s") from None
        except BaseException:
            # Not SIGTERM: some programs (unshare) leave that to their children.
            process.kill()
            raise
    if process.returncode:
        last = b"\n".join(errors.strip().splitlines()[-8:]).decode(errors="replace")
        raise LabError(f"{what}: {words[0]} ended with {process.returncode}: {last or 'it said nothing'}")
    return out


def _follow(process: subprocess.Popen[bytes], on_line: Callable[[str], None]) -> tuple[bytes, bytes]:
    assert process.stderr is not None
    assert process.stdin is not None
    process.stdin.close()
    errors: list[bytes] = []
    for line in process.stderr:
        errors.append(line)
        on_line(line.decode(errors="replace").strip())
    return b"", b"".join(errors[-50:])


def identify(pid: int) -> Found:
    """The process that has this number now."""
    fields = _stat(pid)
    return Found(pid, int(fields[19]) if fields else -1)


@dataclass(frozen=True)
class Found:
    """A process and the moment of its start, which together name it for ever (proc(5), stat, field 22)."""

    pid: int
    started: int

    def is_alive(self) -> bool:
        """Whether this very process still runs. A zombie does not."""
        fields = _stat(self.pid)
        return fields is not None and fields[0] not in "ZX" and int(fields[19]) == self.started

    def kill(self) -> None:
        """SIGKILL to this very process, if it still runs. The pidfd rules out that the number was given
        away meanwhile.
        """
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid)
            try:
                if self.is_alive():
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the third on (the second, the name, may contain anything)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


#: Starts "$@" in the background and says its number. When the shell ends, init becomes the program's parent.
_DETACH = 'log=$1; shift; "$@" >>"$log" 2>&1 </dev/null %s & echo $!'


def start(argv: Sequence[object], *, log: Path, env: Mapping[str, str] | None = None) -> Found:
    """Start a program that outlives this process, in a session of its own, with its output appended to `log`.

    It is no child of this process, which need not wait for it. That there is no such program, its log says.
    """
    words = [str(word) for word in argv]
    # What this shell inherits, the program must not: it would hold a lock for ever. (bash, since dash knows
    # only ten files.)
    script = _DETACH % " ".join(f"{number}>&-" for number in inherited)
    shell = ["setsid", "--wait", "bash", "-c", script, "bash", str(log), *words]
    return identify(int(run(shell, what=f"starting {words[0]}", env=env)))


def find(matches: Callable[[Path], bool]) -> list[Found]:
    """All processes whose directory in /proc satisfies `matches`, but neither this one nor its parents."""
    own = _ancestry(os.getpid())
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) in own:
            continue
        fields = _stat(int(entry.name))
        if fields is None or fields[0] in "ZX":
            continue
        with contextlib.suppress(OSError):
            if matches(entry):
                found.append(Found(int(entry.name), int(fields[19])))
    return found


def _ancestry(pid: int) -> set[int]:
    seen: set[int] = set()
    while pid > 0 and pid not in seen:
        seen.add(pid)
        fields = _stat(pid)
        pid = int(fields[1]) if fields else 0
    return seen


def in_netns(file: Path) -> Callable[[Path], bool]:
    """For `find`: processes whose network namespace is the one that `file` pins."""
    try:
        wanted = file.stat()
    except OSError:
        return lambda _: False

    def matches(entry: Path) -> bool:
        is_ = (entry / "ns" / "net").stat()
        return (is_.st_dev, is_.st_ino) == (wanted.st_dev, wanted.st_ino)

    return matches


def works_in(directory: Path, programs: Iterable[str]) -> Callable[[Path], bool]:
    """For `find`: processes that run one of these executables (by the start of their name) with an argument
    inside `directory`.
    """
    inside = f"{directory}/".encode()
    prefixes = tuple(programs)

    def matches(entry: Path) -> bool:
        if not (entry / "exe").readlink().name.startswith(prefixes):
            return False
        arguments = (entry / "cmdline").read_bytes()
        return inside in arguments or arguments.rstrip(b"\0").endswith(b"\0" + bytes(directory))

    return matches


def kill(processes: Iterable[Found], *, timeout: float = 5) -> list[Found]:
    """SIGKILL to all of them; returns those that were still there after `timeout` seconds."""
    left = list(processes)
    for process in left:
        process.kill()
    deadline = time.monotonic() + timeout
    while left := [process for process in left if process.is_alive()]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return left
