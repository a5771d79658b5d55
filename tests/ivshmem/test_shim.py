# SPDX-License-Identifier: Apache-2.0
"""The shim against a real agent and registry on this host: each scenario behaves as plain TCP, and moves."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_agent import LocalAgent
from shim_regressions import REGRESSIONS
from shim_scenarios import SCENARIOS

from ivshmem import artifacts

TESTS = Path(__file__).resolve().parents[1]
PROGRAMS = dict.fromkeys(SCENARIOS, "shim_scenarios.py") | dict.fromkeys(REGRESSIONS, "shim_regressions.py")
CLOSED_PEER = """
import sys
from shim_scenarios import upgraded_pair
left, right = upgraded_pair()
print("ready", flush=True)
sys.stdin.readline()
right.close()
try:
    for _ in range(400):
        left.sendall(b"y" * 65536)
except OSError as error:
    print(type(error).__name__, flush=True)
"""
SLEEPER = """
import os, sys, time
from shim_scenarios import upgraded_pair
left, right = upgraded_pair()
pid = os.fork()
if pid == 0:
    left.close()
    print("child got", right.recv(10).decode(), flush=True)
    os._exit(0)
right.close()
time.sleep(0.5)
print("ready", flush=True)
sys.stdin.readline()
left.send(b"hello")
os.waitpid(pid, 0)
"""


@pytest.fixture(scope="module")
def agent() -> Iterator[LocalAgent]:
    # Not pytest's tmp_path: the path of a UNIX socket must be short.
    with tempfile.TemporaryDirectory(prefix="hh-") as directory, LocalAgent(Path(directory)) as running:
        yield running


def _shim(agent: LocalAgent, family: str = "4") -> dict[str, str]:
    shim = {"LD_PRELOAD": str(artifacts.shim_library()), "EXPECT_SHARED": "1", "FAMILY": family}
    return agent.env | shim


def _run(name: str, env: dict[str, str]) -> None:
    command = [sys.executable, str(TESTS / PROGRAMS[name]), name]
    env = env | {"PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, f"{name}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("name", PROGRAMS)
def test_scenario_over_tcp(name: str, agent: LocalAgent) -> None:
    """The scenarios are right: plain TCP passes them."""
    _run(name, agent.env)


@pytest.mark.parametrize("family", ["4", "6"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_scenario_with_the_shim(name: str, family: str, agent: LocalAgent) -> None:
    if family == "6" and name in REGRESSIONS:
        pytest.skip("nothing in it depends on the family")
    _run(name, _shim(agent, family))


def test_without_an_agent_everything_stays_on_tcp(tmp_path: Path, agent: LocalAgent) -> None:
    env = agent.env | {"LD_PRELOAD": str(artifacts.shim_library()), "HYPERHEAP_RUN": str(tmp_path)}
    for name in ("echo_both_ways", "epoll", "fork_takes_over", "exec_keeps_the_socket"):
        _run(name, env)


@contextlib.contextmanager
def _program(script: str, agent: LocalAgent) -> Iterator[subprocess.Popen[str]]:
    """A program that has said "ready" and waits for a line."""
    env = _shim(agent) | {"PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def _go_on(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate("go\n", timeout=20)
    return output


@pytest.mark.parametrize("victim", ["agent", "daemon"])
def test_a_closed_peer_is_noticed_without(victim: str, local_agent: LocalAgent) -> None:
    with _program(CLOSED_PEER, local_agent) as process:
        getattr(local_agent, f"kill_{victim}")()
        assert _go_on(process).strip() in ("BrokenPipeError", "ConnectionResetError")


@pytest.mark.parametrize("back", [True, False], ids=["agent-back", "agent-gone"])
def test_a_sleeper_is_woken_after_the_agent_died(back: bool, local_agent: LocalAgent) -> None:
    with _program(SLEEPER, local_agent) as process:
        local_agent.kill_agent()
        if back:
            local_agent.start_agent()
        assert _go_on(process) == "child got hello\n"


def test_a_signal_handler_on_the_same_socket(agent: LocalAgent, tmp_path: Path) -> None:
    binary = tmp_path / "handler"
    source = TESTS / "ivshmem" / "c" / "handler.c"
    subprocess.run(
        ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(binary), "-lpthread"], check=True
    )
    done = subprocess.run([str(binary)], env=_shim(agent), capture_output=True, text=True, timeout=40)
    assert done.returncode == 0, done.stderr
