# SPDX-License-Identifier: Apache-2.0
"""The conformance run itself: what it compares, what it insists on, and how it runs programs."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from conformance import __main__ as command
from conformance import cpython, report
from conformance.compare import BadExceptions, Explained, Run, compare, read_exceptions, skipped
from conformance.place import CommandFailed, Place, free_port
from conformance.suites import CannotRun, Outcome, Program, Result
from conformance.traffic import Traffic

PASSED, FAILED, SKIPPED = Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED
MOVED = Traffic(connections=3, channels=2, shared=1000, network=10)
KNOWN = Explained("suite", "b", PASSED, FAILED, "because")


def run_of(traffic: Traffic, **outcomes: Outcome) -> Run:
    return Run({test: Result(outcome) for test, outcome in outcomes.items()}, 1.5, traffic)


def compared(plain: Run, shim: Run, *explained: Explained, has_streams: bool = True):
    return compare("suite", "somebody", plain, shim, explained, has_streams=has_streams)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, [], tmp_path / "run")


def test_equal_runs_are_good():
    plain, shim = run_of(Traffic(), a=PASSED, b=FAILED), run_of(MOVED, a=PASSED, b=FAILED)
    comparison = compared(plain, shim)
    assert comparison.is_good
    assert not comparison.differences


@pytest.mark.parametrize(
    ("plain", "shim"),
    [
        ({"a": PASSED}, {"a": FAILED}),
        ({"a": FAILED}, {"a": PASSED}),
        ({"a": PASSED}, {"a": SKIPPED}),
        ({"a": PASSED, "b": PASSED}, {"a": PASSED}),
        ({"a": PASSED}, {"a": PASSED, "b": PASSED}),
    ],
)
def test_every_difference_counts(plain, shim):
    comparison = compared(run_of(Traffic(), **plain), run_of(MOVED, **shim))
    assert not comparison.is_good
    assert len(comparison.differences) == 1


def test_an_explained_difference_is_good():
    plain, shim = run_of(Traffic(), a=PASSED, b=PASSED), run_of(MOVED, a=PASSED, b=FAILED)
    comparison = compared(plain, shim, KNOWN)
    assert comparison.is_good
    assert comparison.differences[0].reason == "because"


def test_another_difference_than_the_explained_one_is_not():
    plain, shim = run_of(Traffic(), b=PASSED), run_of(MOVED, b=SKIPPED)
    assert not compared(plain, shim, KNOWN).is_good


def test_an_exception_that_is_not_needed_is_a_fault():
    plain, shim = run_of(Traffic(), b=PASSED), run_of(MOVED, b=PASSED)
    comparison = compared(plain, shim, KNOWN)
    assert not comparison.is_good
    assert "remove or correct the entry" in comparison.complaints[0]


def test_an_exception_of_another_suite_is_none_of_ours():
    other = Explained("other", "b", PASSED, FAILED, "because")
    assert compared(run_of(Traffic(), b=PASSED), run_of(MOVED, b=PASSED), other).is_good


def test_streams_must_have_been_moved():
    plain, shim = run_of(Traffic(), a=PASSED), run_of(Traffic(connections=5, network=99), a=PASSED)
    assert "proves nothing" in compared(plain, shim).complaints[0]
    assert compared(plain, shim, has_streams=False).is_good


def test_the_run_without_the_shim_must_be_without_it():
    run = run_of(MOVED, a=PASSED)
    assert "was not without it" in compared(run, run).complaints[0]


def test_a_suite_without_tests_is_a_fault():
    assert not compared(run_of(Traffic()), run_of(MOVED)).is_good


def test_the_checked_in_exceptions_are_valid():
    names = {suite.name for suite in command.ALL}
    assert all(each.suite in names for each in read_exceptions())


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('[[exception]]\nsuite="s"\ntest="t"\nplain="passed"\nshim="failed"\n', "needs exactly"),
        ('[[exception]]\nsuite="s"\ntest="t"\nplain="passed"\nshim="failed"\nreason=" "\n', "needs exactly"),
        ('[[exception]]\nsuite="s"\ntest="t"\nplain="good"\nshim="failed"\nreason="r"\n', "valid: passed"),
        ('[[exception]]\nsuite="s"\ntest="t"\nplain="passed"\nshim="failed"\nreason="r"\n' * 2, "twice"),
        ("[[exception", "exceptions.toml"),
    ],
)
def test_bad_exceptions_are_told(tmp_path, text, wrong):
    path = tmp_path / "exceptions.toml"
    path.write_text(text)
    with pytest.raises(BadExceptions, match=wrong):
        read_exceptions(path)


def test_the_report_names_what_differs():
    good = compared(run_of(Traffic(), a=PASSED), run_of(MOVED, a=PASSED))
    bad = compared(run_of(Traffic(), a=PASSED), run_of(MOVED, a=FAILED))
    none = skipped("absent", "nobody", "not installed")
    text = report.to_text([good, bad, none])
    assert "| suite | somebody | 1/0/0 | 1/0/0 | 2 of 3 | 1000 B | 10 B | 2 + 2 | equal |" in text
    assert "suite: a: passed without the shim, failed with it" in text
    assert "skipped: not installed" in text
    data = json.loads(json.dumps(report.to_json([good, bad, none])))
    assert not data["equal"]
    assert data["suites"][1]["differences"][0]["with_shim"] == "failed"
    assert data["suites"][0]["with_shim"]["shared_bytes"] == 1000


class Example(Program):
    name = "example"
    needs = ("sh",)

    def start(self, place: Place, stack: ExitStack) -> None:
        self.port = free_port()
        code = f"import socket; s = socket.create_server(('127.0.0.1', {self.port})); s.accept()"
        self.process = stack.enter_context(place.server(sys.executable, "-c", code, port=self.port))

    def check_output(self, place: Place) -> None:
        assert place.run("cat", stdin=b"bytes") == b"bytes"

    def check_that_fails(self, place: Place) -> None:
        place.run("sh", "-c", "echo words; exit 3")


def test_a_program_is_started_checked_and_stopped(place):
    example = Example()
    results = example.run(place)
    assert {test: result.outcome for test, result in results.items()} == {
        "start": PASSED,
        "output": PASSED,
        "that_fails": FAILED,
    }
    assert "ended with 3\nwords" in results["that_fails"].detail
    assert example.process.returncode is not None


def test_a_program_that_does_not_start_has_failed(place):
    class Broken(Example):
        def start(self, place: Place, stack: ExitStack) -> None:
            stack.enter_context(place.server("sh", "-c", "echo no; exit 1", port=free_port()))

    results = Broken().run(place)
    assert results["start"].outcome is FAILED
    assert "does not listen" in results["start"].detail


def test_a_missing_program_is_a_reason_to_skip(place):
    example = Example()
    example.needs = ("no-such-program",)
    with pytest.raises(CannotRun, match="no-such-program"):
        example.run(place)


def test_a_command_that_hangs_is_ended(place):
    with pytest.raises(CommandFailed, match="not done in"):
        place.run("sh", "-c", "sleep 60 & wait", seconds=0.2)


def test_tests_that_kill_or_block_the_process_have_failed(place, monkeypatch):
    (place.directory / "victims.py").write_text(
        "import os, time, unittest\n"
        "class T(unittest.TestCase):\n"
        "    def test_1(self): pass\n"
        "    def test_2(self): os._exit(3)\n"
        "    def test_3(self): time.sleep(60)\n"
        "    def test_4(self): self.skipTest('why')\n"
        "    def test_5(self): self.fail('so')\n"
        "    def test_6(self): self.fail('not run')\n"
        "    def test_7(self):\n"
        "        with self.subTest(1): self.fail('inner')\n"
    )
    support = place.directory / "test"
    support.mkdir()
    (support / "__init__.py").touch()
    (support / "support.py").touch()
    (support / "test_socket.py").touch()
    place.env["PYTHONPATH"] = str(place.directory)
    monkeypatch.setattr(cpython, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(cpython, "TEST_SECONDS", 1)
    suite = cpython.CPython("victims", ["victims"], leave_out={"test_6": "not wanted"})
    outcomes = {test[-1]: result.outcome for test, result in suite.run(place).items()}
    assert outcomes == {"1": PASSED, "2": FAILED, "3": FAILED, "4": SKIPPED, "5": FAILED, "7": FAILED}


def test_unknown_suites_are_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["conformance", "nonsense"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert "no such suite: nonsense" in capsys.readouterr().err


def test_the_suites_can_be_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["conformance", "--list"])
    assert command.main() == 0
    names = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert len(names) == len(set(names)) == len(command.ALL)
