# SPDX-License-Identifier: Apache-2.0
"""What a suite is: something that runs in a `Place` and says what became of each of its tests."""

from __future__ import annotations

import shutil
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from functools import partial

from conformance.place import Place

DETAIL = 2000
"""Characters of a failure that are kept: the last ones."""


class Outcome(Enum):
    """What became of a test."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    ABSENT = "absent"
    """The other run had this test."""


@dataclass(frozen=True)
class Result:
    """An outcome, and the reason of a failure or a skip."""

    outcome: Outcome
    detail: str = ""


FROM_THE_FIRST_BYTE: Mapping[str, str | int] = {"upgrade": "after", "after_bytes": 1}
"""Sooner than "at-once", which lets the greetings of a protocol pass."""
AT_ONCE: Mapping[str, str | int] = {"upgrade": "at-once"}


class CannotRun(Exception):
    """The suite needs something that this machine lacks; says what, and how to get it."""


class Suite(ABC):
    """A suite of tests.

    Attributes:
        name: one word.
        origin: whose tests these are, for the report.
        has_streams: False where no test holds a TCP stream open long enough to be upgraded; the report then
            does not insist on channels.
        policy: of the lab, as in a topology.
        settles: after the first bytes of a connection there is a pause for the upgrade (fixtures/settle.c);
            for tests that would be over before.
    """

    name: str
    origin: str
    has_streams: bool = True
    policy: Mapping[str, str | int] = FROM_THE_FIRST_BYTE
    settles: bool = False

    @abstractmethod
    def run(self, place: Place) -> Mapping[str, Result]:
        """Run all tests and return what became of them, by id.

        Raises:
            CannotRun: something is missing.
        """


class Program(Suite):
    """A real program in real use: `start` brings it up, each method `check_...` is a test.

    An exception that a check raises is its failure; the next check runs all the same.
    """

    needs: tuple[str, ...] = ()
    """Executables."""
    origin = "a program, used"

    def run(self, place: Place) -> Mapping[str, Result]:
        """Start, check, stop."""
        missing = [name for name in self.needs if shutil.which(name, path=place.env["PATH"]) is None]
        if missing:
            raise CannotRun(f"not installed: {', '.join(missing)}; make conformance installs it on Debian")
        results: dict[str, Result] = {}
        with ExitStack() as stack:
            try:
                self.start(place, stack)
            except Exception:
                return {"start": failure()}
            results["start"] = Result(Outcome.PASSED)
            for check in self.checks():
                results[check.__name__.removeprefix("check_")] = attempt(partial(check, place))
        return results

    @abstractmethod
    def start(self, place: Place, stack: ExitStack) -> None:
        """Bring the program up; what has to be stopped goes on the stack."""

    def checks(self) -> list[Callable[[Place], None]]:
        """Return the methods `check_...` in the order of their definition."""
        return [getattr(self, name) for name in type(self).__dict__ if name.startswith("check_")]


def attempt(action: Callable[[], object]) -> Result:
    """Return the outcome of an action: failed if it raises."""
    try:
        action()
    except Exception:
        return failure()
    return Result(Outcome.PASSED)


def failure() -> Result:
    """Return the failure of the exception that is being handled."""
    return Result(Outcome.FAILED, traceback.format_exc()[-DETAIL:])
