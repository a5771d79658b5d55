# SPDX-License-Identifier: Apache-2.0
"""Runs tests of CPython's own suite, one JSON line for each; executed by Debian's /usr/bin/python3.

``python3 cpython_runner.py OUTPUT SECONDS SKIP RESOURCES LEAVE_OUT NAME...`` loads the tests that the NAMEs
mean ("test.test_socket" or one class or test of it), leaves out the first SKIP of them, and appends to OUTPUT

    {"begin": ID}                   before each test
    {"end": ID, "outcome": OUTCOME, "detail": TEXT}
    {"tests": COUNT}                at the end

A test that takes longer than SECONDS ends the process; whoever reads OUTPUT sees which one it was, and starts
the rest with a larger SKIP. RESOURCES are those of `test.support`, with commas, or "-" for none: "network"
lets some modules reach for the Internet, others need it for the loopback. Tests whose ids contain one of
LEAVE_OUT (with commas, or "-") are not run. Standard library only.
"""

# ruff: noqa: N802  (unittest's names)

from __future__ import annotations

import faulthandler
import json
import sys
import unittest
from collections.abc import Iterator
from types import TracebackType
from typing import IO, Any

from test import support  # type: ignore[import-not-found]

Problem = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

DETAIL = 2000
"""Characters of a failure that are kept: its end, which names the exception."""


class Recorder(unittest.TestResult):
    """Writes down what became of each test at once, so that a process that dies leaves what it knew."""

    def __init__(self, output: IO[str], seconds: float) -> None:
        super().__init__()
        self._output = output
        self._seconds = seconds
        self._outcome = "passed"
        self._detail = ""

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._outcome, self._detail = "passed", ""
        self.write({"begin": test.id()})
        faulthandler.dump_traceback_later(self._seconds, exit=True)

    def stopTest(self, test: unittest.TestCase) -> None:
        faulthandler.cancel_dump_traceback_later()
        super().stopTest(test)
        self.write({"end": test.id(), "outcome": self._outcome, "detail": self._detail})

    def addError(self, test: unittest.TestCase, err: Problem) -> None:
        self._fail(test, err)

    def addFailure(self, test: unittest.TestCase, err: Problem) -> None:
        self._fail(test, err)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Problem | None) -> None:
        if err is not None:
            self._fail(test, err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        if self._outcome == "passed":
            self._outcome, self._detail = "skipped", reason

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._outcome, self._detail = "failed", "unexpected success"

    def write(self, line: dict[str, Any]) -> None:
        self._output.write(json.dumps(line) + "\n")
        self._output.flush()

    def _fail(self, test: unittest.TestCase, err: Problem) -> None:
        text = self._exc_info_to_string(err, test)[-DETAIL:]  # type: ignore[attr-defined]
        if hasattr(test, "_testMethodName"):
            self._outcome, self._detail = "failed", text
        else:  # setUpClass, setUpModule and their opposites are no tests, but they can fail
            self.write({"end": test.id(), "outcome": "failed", "detail": text})


def flatten(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Yield the tests of a suite in their order."""
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


def main() -> None:
    """Run what the arguments say."""
    output, seconds, skip, names = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[6:]
    support.use_resources = [] if sys.argv[4] == "-" else sys.argv[4].split(",")
    support.verbose = 0
    unwanted = [] if sys.argv[5] == "-" else sys.argv[5].split(",")
    found = flatten(unittest.defaultTestLoader.loadTestsFromNames(names))
    tests = [test for test in found if not any(part in test.id() for part in unwanted)]
    with open(output, "a") as file:
        recorder = Recorder(file, seconds)
        # One suite again: it calls setUpModule and setUpClass where one class or module follows another.
        unittest.TestSuite(tests[skip:]).run(recorder)
        recorder.write({"tests": len(tests)})


if __name__ == "__main__":
    main()
