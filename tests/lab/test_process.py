from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lab import process
from lab.errors import LabError, MissingError


def test_run_gives_the_output():
    assert process.run(["cat"], what="copying", data=b"hello") == b"hello"


def test_run_says_what_failed_with_the_last_words():
    with pytest.raises(LabError, match=r"counting: sh ended with 3: last words"):
        process.run(["sh", "-c", "echo last words >&2; exit 3"], what="counting")


def test_run_of_an_absent_program():
    with pytest.raises(MissingError, match=r"counting: no program 'no-such-program'"):
        process.run(["no-such-program"], what="counting")


def test_run_has_a_time_limit():
    with pytest.raises(LabError, match=r"more than 0.1 s"):
        process.run(["sleep", "60"], what="waiting", timeout=0.1)


def test_run_hands_on_lines_as_they_come():
    lines: list[str] = []
    process.run(["sh", "-c", "echo one >&2; echo two >&2"], what="talking", on_line=lines.append)
    assert lines == ["one", "two"]


@pytest.fixture
def sleeper(tmp_path):
    argv = [sys.executable, "-c", "import sys; sys.stdin.read()", f"{tmp_path}/lab/x"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def test_find_and_kill_only_what_works_in_the_directory(sleeper, tmp_path):
    other = process.find(process.works_in(tmp_path / "la", ("python",)))
    assert other == []
    assert process.find(process.works_in(tmp_path / "lab", ("qemu",))) == []
    (found,) = process.find(process.works_in(tmp_path / "lab", ("python",)))
    assert found.pid == sleeper.pid
    assert process.kill([found]) == []
    assert sleeper.wait() == -9
    assert not found.is_alive()


def test_a_process_of_the_same_number_is_not_the_same(sleeper):
    impostor = process.Found(sleeper.pid, started=1)
    assert not impostor.is_alive()
    impostor.kill()
    assert sleeper.poll() is None


def test_find_leaves_out_its_own_line_of_ancestors():
    assert os.getpid() not in {found.pid for found in process.find(lambda _: True)}
    assert os.getppid() not in {found.pid for found in process.find(lambda _: True)}
