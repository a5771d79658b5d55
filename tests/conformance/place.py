# SPDX-License-Identifier: Apache-2.0
"""Where a suite runs: a directory of its own, an environment with or without the shim, and its processes."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

SEARCH_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
LOOPBACK = "127.0.0.1"
START_SECONDS = 30.0
RUN_SECONDS = 120.0
END_SECONDS = 10.0


class CommandFailed(Exception):
    """A command of a test ended with another code than 0; carries its words and what it said."""


class Place:
    """Where one suite runs once.

    Args:
        directory: empty, and this run's own.
        preload: libraries to preload into all programs.
        runtime: the agent's runtime directory.

    Attributes:
        env: the environment of all programs: a plain one, so that nothing depends on who runs it.
    """

    def __init__(self, directory: Path, preload: Sequence[Path], runtime: Path) -> None:
        self.directory = directory
        self.env = {
            "PATH": SEARCH_PATH,
            "HOME": str(directory),
            "TMPDIR": str(directory),
            "LANG": "C.UTF-8",
            "HYPERHEAP_RUN": str(runtime),
        }
        if preload:
            self.env["LD_PRELOAD"] = ":".join(map(str, preload))
        self._random = random.Random(1)
        # Servers drop root; they have to reach their files.
        directory.chmod(0o755)

    # --- files ----------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """Return a path in the directory; its parent exists."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file in the directory."""
        path = self.path(name)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def noise(self, name: str, size: int) -> Path:
        """Write a file of `size` random bytes, the same in every run."""
        return self.write(name, self._random.randbytes(size))

    # --- processes ------------------------------------------------------------------------------------------

    def run(
        self,
        *argv: str | Path,
        stdin: bytes = b"",
        seconds: float = RUN_SECONDS,
        user: str | None = None,
        code: int | None = 0,
    ) -> bytes:
        """Run a command to its end and return its standard output.

        Raises:
            CommandFailed: it ended with another code than `code` (None: any will do), or not in time.
        """
        words = _as_user(argv, user)
        with self.path("commands.log").open("ab") as log:
            log.write(f"$ {' '.join(words)}\n".encode())
        process = subprocess.Popen(
            words,
            env=self.env,
            cwd=self.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(stdin, timeout=seconds)
        except subprocess.TimeoutExpired:
            _signal_group(process, signal.SIGKILL)
            out, err = process.communicate()
            raise CommandFailed(
                f"{' '.join(words)}: not done in {seconds:g} s\n{_tail(out)}{_tail(err)}"
            ) from None
        except BaseException:
            _signal_group(process, signal.SIGKILL)
            process.wait()
            raise
        if code is not None and process.returncode != code:
            raise CommandFailed(
                f"{' '.join(words)}: ended with {process.returncode}\n{_tail(out)}{_tail(err)}"
            )
        return out

    @contextlib.contextmanager
    def server(
        self,
        *argv: str | Path,
        port: int = 0,
        user: str | None = None,
        stop: signal.Signals = signal.SIGTERM,
        name: str = "",
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a server until the end of the `with`; its output goes to NAME.log in the directory.

        Args:
            port: where it will listen; waits until it does. 0: none.
            stop: the signal that ends it cleanly. Its whole process group is killed afterwards.
        """
        words = _as_user(argv, user)
        log = self.path(f"{name or Path(words[0]).name}.log")
        with log.open("ab") as output:
            process = subprocess.Popen(
                words,
                env=self.env,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            if port:
                _wait_for_listener(process, port, log)
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(stop)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_SECONDS)
            _signal_group(process, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    """Return a TCP port of the loopback that nobody has, outside the range of ephemeral ports."""
    for _ in range(100):
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port
    raise CommandFailed("no free port between 20000 and 32000")


def give_to(path: Path, user: str) -> None:
    """Give a directory to a user, if this is root."""
    if os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        os.chown(path, entry.pw_uid, entry.pw_gid)


def wait_until(condition: object, what: str, seconds: float = START_SECONDS) -> None:
    """Wait until a callable returns something true.

    Raises:
        CommandFailed: it does not within `seconds`.
    """
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise CommandFailed(f"waited in vain for {what}")
        time.sleep(0.05)


def _as_user(argv: Sequence[str | Path], user: str | None) -> list[str]:
    words = [str(word) for word in argv]
    if user is None or os.geteuid() != 0:
        return words
    setpriv = shutil.which("setpriv", path=SEARCH_PATH) or "setpriv"
    return [setpriv, f"--reuid={user}", f"--regid={user}", "--clear-groups", *words]


def _wait_for_listener(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _is_listening(port):
        if process.poll() is not None or time.monotonic() > deadline:
            said = _tail(log.read_bytes())
            raise CommandFailed(
                f"{process.args!r} does not listen on port {port} (code {process.poll()})\n{said}"
            )
        time.sleep(0.02)


def _is_listening(port: int) -> bool:
    """Look into the kernel's tables: a connection for a try would be one that the server has to serve."""
    wanted, listen = f":{port:04X}", "0A"
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == listen and fields[1].endswith(wanted):
                return True
    return False


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal the group that `start_new_session` made: the process and the children that stayed in it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _tail(text: bytes, size: int = 1500) -> str:
    return text[-size:].decode(errors="replace")
