# SPDX-License-Identifier: Apache-2.0
"""The command line of the conformance run."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from local_agent import LocalAgent

from conformance import cpython, databases, redis_suite, report, transfers, web_programs, web_servers
from conformance.compare import (
    BadExceptions,
    Comparison,
    Explained,
    Run,
    compare,
    read_exceptions,
    skipped,
)
from conformance.place import CommandFailed, Place
from conformance.suites import CannotRun, Outcome, Suite, failure
from conformance.traffic import Observer
from ivshmem import artifacts

ALL: tuple[Suite, ...] = (
    *cpython.SUITES,
    *redis_suite.SUITES,
    *web_servers.SUITES,
    *web_programs.SUITES,
    *databases.SUITES,
    *transfers.SUITES,
)
EQUAL, DIFFERENT, USAGE, TERMINATED = 0, 1, 2, 143


def run_once(suite: Suite, shim: Path | None) -> Run:
    """Run a suite with an agent and a registry of its own.

    Raises:
        CannotRun: something is missing.
    """
    # Not below a long path: the names of UNIX sockets are short.
    with (
        tempfile.TemporaryDirectory(prefix="hh-") as agent_directory,
        tempfile.TemporaryDirectory(prefix="hh-", ignore_cleanup_errors=True) as directory,
        LocalAgent(Path(agent_directory), policy=dict(suite.policy)) as agent,
    ):
        # A copy: servers that drop root may not be able to reach the project's directory.
        preload = [] if shim is None else [Path(shutil.copy(shim, agent_directory))]
        if suite.settles:
            preload.insert(0, make_settle(Path(agent_directory)))
        place = Place(Path(directory), preload, agent.run)
        Path(agent_directory).chmod(0o755)  # servers that drop root announce too
        begin = time.monotonic()
        with Observer(agent) as observer:
            try:
                results = suite.run(place)
            except CommandFailed:
                results = {"run": failure()}
        return Run(results, time.monotonic() - begin, observer.total())


def make_settle(directory: Path) -> Path:
    """Compile fixtures/settle.c.

    Raises:
        CannotRun: there is no compiler.
    """
    library, source = directory / "settle.so", Path(__file__).with_name("fixtures") / "settle.c"
    words = ["gcc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(library), str(source)]
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise CannotRun("not installed: gcc; make setup installs it on Debian") from error
    return library


def run_suite(suite: Suite, explained: tuple[Explained, ...]) -> Comparison:
    """Run a suite without the shim and with it, and compare."""
    _say(f"{suite.name}: without the shim")
    try:
        plain = run_once(suite, None)
        _say(f"{suite.name}: {plain.count(Outcome.PASSED)} passed in {plain.seconds:.0f} s; with the shim")
        shim = run_once(suite, artifacts.shim_library().resolve())
    except CannotRun as reason:
        _say(f"{suite.name}: skipped: {reason}")
        return skipped(suite.name, suite.origin, str(reason))
    comparison = compare(suite.name, suite.origin, plain, shim, explained, has_streams=suite.has_streams)
    verdict = "equal" if comparison.is_good else "DIFFERENT"
    _say(f"{suite.name}: {shim.count(Outcome.PASSED)} passed in {shim.seconds:.0f} s; {verdict}")
    return comparison


def parse_arguments() -> argparse.Namespace:
    """Return the command's words."""
    parser = argparse.ArgumentParser(
        prog="conformance",
        description="Run other people's tests and programs on the loopback, without the shim and with it; "
        "the outcomes must be the same, and the streams must have been in shared memory.",
        epilog="Exit codes: 0 equal, 1 different, 2 wrong usage. Everything is told as it happens on stderr.",
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="which ones; all by default")
    parser.add_argument("--json", action="store_true", help="the report for programs, with every test")
    parser.add_argument("--list", action="store_true", help="name the suites and end")
    arguments = parser.parse_args()
    unknown = set(arguments.suites) - {suite.name for suite in ALL}
    if unknown:
        names = ", ".join(suite.name for suite in ALL)
        parser.error(f"no such suite: {', '.join(sorted(unknown))}; there are {names}")
    return arguments


def main() -> int:
    """Run, report, and return the exit code."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # through all `with` and `finally`
    if arguments.list:
        sys.stdout.writelines(f"{suite.name}\t{suite.origin}\n" for suite in ALL)
        return EQUAL
    try:
        explained = read_exceptions()
        stray = {each.suite for each in explained} - {suite.name for suite in ALL}
        if stray:
            raise BadExceptions(f"exceptions.toml: no such suite: {', '.join(sorted(stray))}")
        chosen = [suite for suite in ALL if not arguments.suites or suite.name in arguments.suites]
        comparisons = [run_suite(suite, explained) for suite in chosen]
    except (BadExceptions, artifacts.ArtifactMissing) as error:
        _say(str(error))
        return USAGE
    if arguments.json:
        sys.stdout.write(json.dumps(report.to_json(comparisons), indent=1) + "\n")
    else:
        sys.stdout.write(report.to_text(comparisons) + "\n")
    return EQUAL if all(each.is_good for each in comparisons) else DIFFERENT


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
