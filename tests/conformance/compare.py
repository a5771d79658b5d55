# SPDX-License-Identifier: Apache-2.0
"""The two runs of a suite against each other, and against the list of differences that are explained."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from conformance.suites import Outcome, Result
from conformance.traffic import Traffic

EXCEPTIONS = Path(__file__).with_name("exceptions.toml")


class BadExceptions(Exception):
    """The file of exceptions is not valid; says where."""


@dataclass(frozen=True)
class Explained:
    """A difference that is known: the outcomes of one test in the two runs, and why."""

    suite: str
    test: str
    plain: Outcome
    shim: Outcome
    reason: str


@dataclass(frozen=True)
class Difference:
    """A test whose outcomes differ; `reason` is "" if nobody has explained it."""

    suite: str
    test: str
    plain: Result
    shim: Result
    reason: str = ""


@dataclass(frozen=True)
class Run:
    """One run of a suite: results by test id, seconds, and what the registry saw."""

    results: Mapping[str, Result]
    seconds: float
    traffic: Traffic

    def count(self, outcome: Outcome) -> int:
        """Return how many tests had this outcome."""
        return Counter(result.outcome for result in self.results.values())[outcome]


@dataclass(frozen=True)
class Comparison:
    """Both runs of a suite, or why there are none.

    Attributes:
        skipped: why the suite could not run; "" if it did.
        complaints: what is wrong besides unexplained differences.
    """

    suite: str
    origin: str
    plain: Run | None
    shim: Run | None
    skipped: str
    differences: Sequence[Difference]
    complaints: Sequence[str]

    @property
    def is_good(self) -> bool:
        """Whether there is nothing to explain."""
        return not self.complaints and all(difference.reason for difference in self.differences)


def read_exceptions(path: Path = EXCEPTIONS) -> tuple[Explained, ...]:
    """Read the differences that are explained.

    Raises:
        BadExceptions: the file is not valid.
    """
    try:
        entries = tomllib.loads(path.read_text()).get("exception", [])
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BadExceptions(f"{path}: {error}") from error
    found = tuple(_explained(path, number, entry) for number, entry in enumerate(entries, 1))
    twice = [key for key, count in Counter((each.suite, each.test) for each in found).items() if count > 1]
    if twice:
        raise BadExceptions(f"{path}: {' '.join(twice[0])}: explained twice")
    return found


def _explained(path: Path, number: int, entry: Mapping[str, object]) -> Explained:
    keys = ("suite", "test", "plain", "shim", "reason")
    values = {key: entry.get(key) for key in keys}
    wrong = [key for key, value in values.items() if not isinstance(value, str) or not value.strip()]
    if wrong or set(entry) - set(keys):
        raise BadExceptions(f"{path}: exception {number}: needs exactly {', '.join(keys)}, each a text")
    text = {key: str(value) for key, value in values.items()}
    try:
        plain, shim = Outcome(text["plain"]), Outcome(text["shim"])
    except ValueError as error:
        valid = ", ".join(outcome.value for outcome in Outcome)
        raise BadExceptions(f"{path}: exception {number}: {error}; valid: {valid}") from error
    return Explained(text["suite"], text["test"], plain, shim, " ".join(text["reason"].split()))


def compare(
    suite: str, origin: str, plain: Run, shim: Run, explained: Sequence[Explained], *, has_streams: bool
) -> Comparison:
    """Compare two runs.

    Args:
        explained: those of all suites.
        has_streams: the run with the shim must have moved bytes through channels.
    """
    ours = {each.test: each for each in explained if each.suite == suite}
    differences = []
    absent = Result(Outcome.ABSENT)
    for test in sorted(plain.results.keys() | shim.results.keys()):
        one, two = plain.results.get(test, absent), shim.results.get(test, absent)
        if one.outcome is two.outcome:
            continue
        known = ours.get(test)
        if known is not None and (known.plain, known.shim) == (one.outcome, two.outcome):
            del ours[test]
            differences.append(Difference(suite, test, one, two, known.reason))
        else:
            differences.append(Difference(suite, test, one, two))
    complaints = [
        f"{EXCEPTIONS.name}: {test}: {each.plain.value} without the shim and {each.shim.value} with it "
        "is not what happened; remove or correct the entry"
        for test, each in ours.items()
    ]
    if not plain.results:
        complaints.append("no tests were found")
    if plain.traffic.connections:
        complaints.append("the run without the shim announced connections: it was not without it")
    if has_streams and not (shim.traffic.channels and shim.traffic.shared):
        complaints.append("nothing was upgraded with the shim: the comparison proves nothing")
    return Comparison(suite, origin, plain, shim, "", differences, complaints)


def skipped(suite: str, origin: str, why: str) -> Comparison:
    """Return the comparison of a suite that could not run."""
    return Comparison(suite, origin, None, None, why, (), ())
