# SPDX-License-Identifier: Apache-2.0
"""The shim against a real agent and registry on this host: each scenario behaves as plain TCP, and moves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_agent import LocalAgent
from shim_scenarios import SCENARIOS

from ivshmem import artifacts

PROGRAM = Path(__file__).resolve().parents[1] / "shim_scenarios.py"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAgent]:
    with LocalAgent(tmp_path_factory.mktemp("shim")) as running:
        yield running


def _run(name: str, env: dict[str, str]) -> None:
    command = [sys.executable, str(PROGRAM), name]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, f"{name}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_over_tcp(name: str, agent: LocalAgent) -> None:
    """The scenarios are right: plain TCP passes them."""
    _run(name, agent.env)


@pytest.mark.parametrize("family", ["4", "6"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_with_the_shim(name: str, family: str, agent: LocalAgent) -> None:
    shim = {"LD_PRELOAD": str(artifacts.shim_library()), "EXPECT_SHARED": "1", "FAMILY": family}
    _run(name, agent.env | shim)


def test_without_an_agent_everything_stays_on_tcp(tmp_path: Path, agent: LocalAgent) -> None:
    env = agent.env | {"LD_PRELOAD": str(artifacts.shim_library()), "HYPERHEAP_RUN": str(tmp_path)}
    for name in ("echo_both_ways", "epoll", "fork_takes_over", "exec_keeps_the_socket"):
        _run(name, env)
