from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from lab import lock, process
from lab.paths import LabPaths


@pytest.fixture
def lab(monkeypatch, tmp_path):
    monkeypatch.setenv("HYPERHEAP_RUNTIME", str(tmp_path))
    return LabPaths("x")


def test_the_second_learns_who_is_first(lab):
    with (
        lock.hold(lab, "up"),
        pytest.raises(lock.BusyError, match=r"lab x is busy: `lab up` \(process \d+\)"),
        lock.hold(lab, "down"),
    ):
        pytest.fail("two hold the lock")


def test_nothing_is_left(lab, tmp_path):
    with lock.hold(lab, "up"):
        pass
    assert list(tmp_path.iterdir()) == []
    with lock.hold(lab, "down"):
        pass


def test_a_lock_that_was_removed_is_nobodys(lab):
    with lock.hold(lab, "up"):
        lab.lock.unlink()
        with lock.hold(lab, "down"):
            pass


def test_labs_do_not_hinder_each_other(lab):
    with lock.hold(lab, "up"), lock.hold(LabPaths("y"), "up"):
        pass


def test_what_a_killed_holder_was_running_is_waited_for(lab, tmp_path):
    script = f"""
import os
from lab import lock, process
from lab.paths import LabPaths
with lock.hold(LabPaths("x"), "up"):
    process.run(["sh", "-c", "kill -KILL $PPID; sleep 0.3; touch {tmp_path}/end"], what="x")
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "end").exists()
    with lock.hold(lab, "down"):
        assert (tmp_path / "end").exists()


def test_what_is_started_does_not_hold_the_lock(lab, tmp_path):
    with lock.hold(lab, "up"):
        started = process.start(["sleep", "60"], log=tmp_path / "log")
    try:
        assert started.is_alive()
        with lock.hold(lab, "down"):
            pass
    finally:
        assert process.kill([started]) == []
