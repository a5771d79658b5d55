"""A guest that is a directory of this host: sessions to it run their commands here, with no real guest."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

from lab.errors import LabError
from lab.ssh_session import PIPE, CommandTimeoutError


class LocalSession:
    """Has what `lab.ssh_session.Session` has; commands see `home` as their working directory."""

    def __init__(self, guest: str, home: Path) -> None:
        self.guest = guest
        self.home = home
        self.is_alive = True
        self.is_lost = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.is_alive = False

    def execute(self, argv, *, stdin, stdout, stderr, timeout=None):
        with self.start(argv, stdin=stdin, stdout=stdout, stderr=stderr) as command:
            return command.wait(timeout)

    def start(self, argv, *, stdin=None, stdout, stderr):
        if self.is_lost:
            raise LabError(f"guest {self.guest}: the ssh connection is lost")
        return LocalCommand(self.guest, list(argv), self.home, stdin, stdout, stderr)


class LocalCommand:
    """Has what `lab.ssh_session.Command` has."""

    def __init__(self, guest, argv, home, stdin, stdout, stderr):
        self.guest = guest
        try:
            self._process = subprocess.Popen(
                argv,
                cwd=home,
                env={**os.environ, "GUEST": guest},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            self._process = subprocess.Popen(
                ["sh", "-c", f"echo {error.filename}: not found >&2; exit 127"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        self.stdin, self.stdout = self._process.stdin, self._process.stdout
        self.stdin.finish = self.stdin.close
        self.signals = []
        self._threads = [_thread(_pump, self._process.stderr, stderr)]
        if stdout != PIPE:
            self._threads.append(_thread(_pump, self.stdout, stdout))
        if stdin != PIPE:
            _thread(_feed, stdin, self.stdin)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is not None and not isinstance(error, Exception):
            self.send_signal("INT" if isinstance(error, KeyboardInterrupt) else "TERM")
        self.close()

    def close(self):
        try:
            # What is at the end of an ssh channel notices that it is closed, in its own time.
            self._process.wait(0 if not self.signals else 5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self._process.stdout, self._process.stderr, self._process.stdin.raw):
            stream.close()

    def wait(self, timeout=None):
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.send_signal("KILL")
            raise CommandTimeoutError(f"guest {self.guest}: took more than {timeout:g} s") from None
        for thread in self._threads:
            thread.join()
        return code if code >= 0 else 128 - code

    def send_signal(self, name):
        self.signals.append(name)
        if self._process.poll() is None:
            os.killpg(self._process.pid, getattr(signal, f"SIG{name}"))


def _thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def _pump(source, sink):
    while chunk := source.read1(65536):
        sink.write(chunk)
        sink.flush()


def _feed(source, pipe):
    try:
        while source is not None and (chunk := source.read(65536)):
            pipe.write(chunk)
            pipe.flush()
        pipe.close()
    except OSError:
        # What close() would write, too, nobody reads any more.
        pipe.raw.close()
