"""A lab without guests: a daemon and an agent on this host, whose loopback is the only guest there is.

Connections within the host are then SharedVM. No root is needed, no device, no network. Tests of the shim and
of the agent use the fixture `local_agent`; `python tests/local_agent.py` runs one to play with.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from port_relay import PortRelay

from lab import control
from lab.sockets import Row, make_row

START_SECONDS = 20.0
GUEST = "local"


class LocalAgent:
    """The daemon, the agent and the port between them; a context manager.

    `run` is the agent's runtime directory and `env` the environment in which a shim finds it.
    """

    def __init__(self, directory: Path, *, policy: dict[str, Any] | None = None) -> None:
        self.directory = directory
        self.run = directory / "run"
        self.env = {**os.environ, "HYPERHEAP_RUN": str(self.run)}
        self.agent: subprocess.Popen[bytes] | None = None
        self.daemon: subprocess.Popen[bytes] | None = None
        self._lab_dir = directory / "lab"
        self._host_port = directory / "registry.sock"
        self._guest_port = directory / "port.sock"
        self._policy = policy
        self._relay: PortRelay | None = None

    def __enter__(self) -> LocalAgent:
        self._lab_dir.mkdir(parents=True)
        self.run.mkdir()
        guest = {"name": GUEST, "port": str(self._host_port), "addresses": []}
        description = {"version": 1, "lab": "local", "heaps": [], "guests": [guest]}
        if self._policy is not None:
            description["policy"] = self._policy
        (self._lab_dir / "daemon.json").write_text(json.dumps(description))
        self._relay = PortRelay(self._host_port, self._guest_port)
        try:
            self.start_daemon()
            self.start_agent()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self.agent, self.daemon):
            if process is not None:
                _end(process, signal.SIGTERM)
        if self._relay is not None:
            self._relay.close()

    # --- parts ----------------------------------------------------------------------------------------------

    def start_agent(self) -> None:
        """Start the agent; returns when the registry knows it."""
        arguments = ["-m", "guest_agent", "--port", str(self._guest_port), "--run", str(self.run), "--debug"]
        self.agent = self._start("agent", arguments)
        self.wait_until(lambda: self._is_connected(), "the agent to register")

    def kill_agent(self) -> None:
        """Kill the agent as the kernel would."""
        assert self.agent is not None
        _end(self.agent, signal.SIGKILL)

    def start_daemon(self) -> None:
        """Start the daemon; returns when it answers."""
        self.daemon = self._start("daemon", ["-m", "lab.daemon", "--lab-dir", str(self._lab_dir), "--debug"])
        self.wait_until(lambda: bool(self.ask("ping")), "the daemon to answer")

    def kill_daemon(self) -> None:
        """Kill the daemon as the kernel would."""
        assert self.daemon is not None
        _end(self.daemon, signal.SIGKILL)

    def kill_guest(self) -> None:
        """End the port as a dying QEMU would."""
        assert self._relay is not None
        self._relay.close()
        self._relay = None

    # --- questions ------------------------------------------------------------------------------------------

    def ask(self, operation: str) -> dict[str, Any]:
        """Return the daemon's answer."""
        return control.ask(self._lab_dir / "daemon.sock", operation)

    def sockets(self) -> list[Row]:
        """Return the rows of `lab sockets`, with the agent's counters of now."""
        return [make_row(connection) for connection in self.ask("sockets")["connections"]]

    def status(self) -> dict[str, Any]:
        """Return what the daemon knows of the agent."""
        agents = self.ask("status")["agents"]
        return dict(agents[GUEST])

    def log(self, name: str) -> str:
        """Return what `agent` or `daemon` has logged."""
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def wait_until(self, condition: Any, what: str, seconds: float = START_SECONDS) -> None:
        """Wait until a condition holds; an AssertionError with both logs otherwise."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if condition():
                    return
            except control.ControlError:
                pass
            for process in (self.agent, self.daemon):
                if process is not None and process.poll() not in (None, -signal.SIGKILL):
                    raise AssertionError(f"a process ended while waiting for {what}\n{self._logs()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"waited in vain for {what}\n{self._logs()}")
            time.sleep(0.01)

    def _is_connected(self) -> bool:
        assert self.agent is not None
        status = self.status()
        return bool(status["connected"]) and status["pid"] == self.agent.pid

    def _logs(self) -> str:
        logs = (
            f"--- {path.name}\n{path.read_text(errors='replace')}" for path in self.directory.glob("*.log")
        )
        return "\n".join(logs)

    def _start(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        # The packages are found where this process found them, wherever it was started.
        path = os.pathsep.join(entry for entry in sys.path if entry)
        with (self.directory / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", *arguments],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


def _end(process: subprocess.Popen[bytes], number: int) -> None:
    process.send_signal(number)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture
def local_agent() -> Iterator[LocalAgent]:
    """A daemon and an agent on this host; see `LocalAgent`."""
    # Not pytest's tmp_path: the path of a UNIX socket must be short.
    with tempfile.TemporaryDirectory(prefix="hh-") as directory, LocalAgent(Path(directory)) as agent:
        yield agent


def main() -> None:
    """Run a local agent, and a command with the shim if one is given."""
    with tempfile.TemporaryDirectory(prefix="hh-") as directory, LocalAgent(Path(directory)) as agent:
        command = sys.argv[1:] or ["sh", "-c", "echo HYPERHEAP_RUN=$HYPERHEAP_RUN; sleep 86400"]
        subprocess.run(command, env=agent.env, check=False)
        sys.stdout.write(json.dumps(agent.sockets(), indent=1) + "\n")


if __name__ == "__main__":
    main()
