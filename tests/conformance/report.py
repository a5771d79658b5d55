# SPDX-License-Identifier: Apache-2.0
"""The report: a table for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from conformance.compare import Comparison, Difference, Run
from conformance.suites import Outcome

COLUMNS = ("suite", "tests of", "without", "with", "channels", "shared", "network", "seconds", "")
COUNTED = (Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED)


def to_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return all that is known, as plain values."""
    return {
        "equal": all(each.is_good for each in comparisons),
        "suites": [_suite_to_json(each) for each in comparisons],
    }


def _suite_to_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "suite": comparison.suite,
        "origin": comparison.origin,
        "skipped": comparison.skipped,
        "equal": comparison.is_good,
        "without_shim": _run_to_json(comparison.plain),
        "with_shim": _run_to_json(comparison.shim),
        "differences": [
            {
                "test": each.test,
                "without_shim": each.plain.outcome.value,
                "with_shim": each.shim.outcome.value,
                "detail": each.shim.detail or each.plain.detail,
                "reason": each.reason,
            }
            for each in comparison.differences
        ],
        "complaints": list(comparison.complaints),
    }


def _run_to_json(run: Run | None) -> dict[str, Any] | None:
    if run is None:
        return None
    return {
        **{outcome.value: run.count(outcome) for outcome in COUNTED},
        "seconds": round(run.seconds, 1),
        "connections_announced": run.traffic.connections,
        "channels": run.traffic.channels,
        "shared_bytes": run.traffic.shared,
        "network_bytes": run.traffic.network,
        "tests": {test: result.outcome.value for test, result in sorted(run.results.items())},
    }


def to_text(comparisons: Sequence[Comparison]) -> str:
    """Return the table in Markdown, then what has to be said about single tests."""
    lines = [
        "Tests passed/failed/skipped; connections with a channel of all announced; bytes per path.",
        "",
        _row(COLUMNS),
        _row(["---"] * len(COLUMNS)),
        *(_row(_cells(each)) for each in comparisons),
        _row(_totals(comparisons)),
        *_remarks(comparisons),
    ]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(comparison: Comparison) -> list[str]:
    plain, shim = comparison.plain, comparison.shim
    if plain is None or shim is None:
        return [comparison.suite, comparison.origin, *["-"] * 6, f"skipped: {comparison.skipped}"]
    traffic = shim.traffic
    return [
        comparison.suite,
        comparison.origin,
        "/".join(str(plain.count(outcome)) for outcome in COUNTED),
        "/".join(str(shim.count(outcome)) for outcome in COUNTED),
        f"{traffic.channels} of {traffic.connections}",
        _size(traffic.shared),
        _size(traffic.network),
        f"{plain.seconds:.0f} + {shim.seconds:.0f}",
        _verdict(comparison),
    ]


def _verdict(comparison: Comparison) -> str:
    if not comparison.is_good:
        return "DIFFERS" if comparison.differences else "FAULT"
    return f"equal but {len(comparison.differences)} explained" if comparison.differences else "equal"


def _totals(comparisons: Sequence[Comparison]) -> list[str]:
    plain = [each.plain for each in comparisons if each.plain is not None]
    shim = [each.shim for each in comparisons if each.shim is not None]
    return [
        "all",
        "",
        "/".join(str(sum(run.count(outcome) for run in plain)) for outcome in COUNTED),
        "/".join(str(sum(run.count(outcome) for run in shim)) for outcome in COUNTED),
        f"{sum(run.traffic.channels for run in shim)} of {sum(run.traffic.connections for run in shim)}",
        _size(sum(run.traffic.shared for run in shim)),
        _size(sum(run.traffic.network for run in shim)),
        f"{sum(run.seconds for run in plain):.0f} + {sum(run.seconds for run in shim):.0f}",
        "equal" if all(each.is_good for each in comparisons) else "DIFFERS",
    ]


def _remarks(comparisons: Sequence[Comparison]) -> Iterator[str]:
    differences = [each for comparison in comparisons for each in comparison.differences]
    explained = [each for each in differences if each.reason]
    if explained:
        yield "\nDifferences that are explained:"
        yield from (f"- {_sentence(each)}: {each.reason}" for each in explained)
    unexplained = [each for each in differences if not each.reason]
    if unexplained:
        yield "\nDifferences:"
        for each in unexplained:
            yield f"- {_sentence(each)}"
            yield from (
                f"      {line}" for line in (each.shim.detail or each.plain.detail).splitlines()[-25:]
            )
    complaints = [(comparison.suite, text) for comparison in comparisons for text in comparison.complaints]
    if complaints:
        yield "\nFaults:"
        yield from (f"- {suite}: {text}" for suite, text in complaints)
    failures = [
        (comparison.suite, test)
        for comparison in comparisons
        if comparison.plain is not None
        for test, result in sorted(comparison.plain.results.items())
        if result.outcome is Outcome.FAILED
    ]
    if failures:
        yield "\nFail on this machine without the shim:"
        yield from (f"- {suite}: {test}" for suite, test in failures)


def _sentence(difference: Difference) -> str:
    return (
        f"{difference.suite}: {difference.test}: {difference.plain.outcome.value} without the shim, "
        f"{difference.shim.outcome.value} with it"
    )


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
