# SPDX-License-Identifier: Apache-2.0
"""The models of the sleep and switch protocols, checked exhaustively; broken on purpose, they fail."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).resolve().parents[2] / "ivshmem" / "model"


def _check(model: str, defines: list[str], directory: Path) -> str:
    if shutil.which("spin") is None:
        pytest.fail("spin is not installed; `make setup` installs it")
    for command in (
        ["spin", "-a", *defines, str(MODELS / model)],
        ["gcc", "-O2", "-w", "-DSAFETY", "-DNOREDUCE", "-o", "pan", "pan.c"],
    ):
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(["./pan", "-m100000"], cwd=directory, capture_output=True, text=True, timeout=120)
    assert "max search depth too small" not in done.stdout
    return done.stdout


@pytest.mark.parametrize("model", ["sleep.pml", "switch.pml"])
def test_protocol_holds(model: str, tmp_path: Path) -> None:
    assert "errors: 0" in _check(model, [], tmp_path)


@pytest.mark.parametrize(
    ("model", "without"),
    [("sleep.pml", "-DNO_BARRIER"), ("switch.pml", "-DNO_TURNS"), ("switch.pml", "-DBELIEVE_TCP")],
)
def test_protocol_needs_what_it_has(model: str, without: str, tmp_path: Path) -> None:
    assert "errors: 1" in _check(model, [without], tmp_path)
