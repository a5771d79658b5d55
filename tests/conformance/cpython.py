# SPDX-License-Identifier: Apache-2.0
"""CPython's own tests from Debian's libpython3.11-testsuite, run by Debian's python3."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conformance.place import CommandFailed, Place
from conformance.suites import CannotRun, Outcome, Result, Suite

PYTHON = Path("/usr/bin/python3")
RUNNER = Path(__file__).with_name("cpython_runner.py")
TEST_SECONDS = 60
"""No test takes a tenth of that."""
SUITE_SECONDS = 900.0
MAX_DEATHS = 10
"""Tests that may end the whole process before the rest is given up."""


class CPython(Suite):
    """Modules of CPython's test package.

    Args:
        name: of the suite.
        modules: dotted names; the module of the name by default.
        leave_out: parts of test ids that are not run, with or without the shim, and why not.
        resources: of `test.support`; "network" may mean the Internet.
        has_streams: see `Suite`.
    """

    origin = "CPython 3.11 (Debian)"
    settles = True

    def __init__(
        self,
        name: str,
        modules: Sequence[str] = (),
        *,
        leave_out: Mapping[str, str] | None = None,
        resources: str = "-",
        has_streams: bool = True,
    ) -> None:
        self.name = name
        self.has_streams = has_streams
        self._modules = list(modules) or [f"test.{name}"]
        self._leave_out = dict(leave_out or {})
        self._resources = resources

    def run(self, place: Place) -> Mapping[str, Result]:
        """Run the modules; a test that kills or blocks the process has failed, and the rest goes on."""
        probe = place.run(PYTHON, "-c", "import importlib.util as u; print(u.find_spec('test.test_socket'))")
        if b"None" in probe.split():
            raise CannotRun("not installed: libpython3.11-testsuite; make conformance installs it on Debian")
        results: dict[str, Result] = {}
        output, done = place.path("results.jsonl"), 0
        for _ in range(MAX_DEATHS):
            output.write_text("")
            why = self._start(place, output, done)
            lines = [json.loads(line) for line in output.read_text().splitlines()]
            results |= {line["end"]: _result(line) for line in lines if "end" in line}
            if lines and "tests" in lines[-1]:
                return results
            begun = [line["begin"] for line in lines if "begin" in line]
            if not begun:
                raise CommandFailed(f"{self.name}: {why}")
            results[begun[-1]] = Result(Outcome.FAILED, f"ended the process: {why}")
            done += len(begun)
        results["the rest"] = Result(Outcome.FAILED, f"given up after {MAX_DEATHS} deaths")
        return results

    def _start(self, place: Place, output: Path, skip: int) -> str:
        out = ",".join(self._leave_out) or "-"
        words: tuple[str | Path, ...]
        words = (PYTHON, RUNNER, output, str(TEST_SECONDS), str(skip), self._resources, out, *self._modules)
        try:
            place.run(*words, seconds=SUITE_SECONDS)
        except CommandFailed as error:
            return str(error)
        return "ended too early with code 0"


def _result(line: dict[str, Any]) -> Result:
    return Result(Outcome(line["outcome"]), line["detail"])


# All of test_asyncio takes four minutes, most of it in tests of tasks and futures, which open no socket. The
# whole was compared once: 2304 passed, 48 skipped, both ways.
ASYNCIO = (
    "test_base_events",
    "test_buffered_proto",
    "test_events",
    "test_selector_events",
    "test_sendfile",
    "test_server",
    "test_sock_lowlevel",
    "test_ssl",
    "test_sslproto",
    "test_streams",
    "test_subprocess",
    "test_transports",
    "test_unix_events",
)

# More modules that have something to do with streams, readiness or interrupted calls.
OTHERS = (
    "test_asynchat",
    "test_asyncore",
    "test_docxmlrpc",
    "test_eintr",
    "test_httpservers",
    "test_logging",
    "test_nntplib",
    "test_os",
    "test_poll",
    "test_select",
    "test_smtpd",
    "test_telnetlib",
    "test_urllib2_localnet",
    "test_wsgiref",
    "test_xmlrpc",
)

NO_TCP = "no TCP: nothing of it could be moved"

SUITES: tuple[Suite, ...] = (
    CPython(
        "test_socket",
        leave_out={
            "VSOCK": f"{NO_TCP}; hangs where vsock has no loopback",
        },
    ),
    CPython("test_selectors", has_streams=False),
    CPython("test_epoll", has_streams=False),
    CPython("test_asyncio", [f"test.test_asyncio.{name}" for name in ASYNCIO]),
    CPython("test_socketserver", resources="network"),
    CPython("test_ssl"),
    CPython("test_httplib"),
    CPython("test_ftplib"),
    CPython("test_smtplib"),
    CPython("test_poplib"),
    CPython("test_imaplib"),
    CPython("test_multiprocessing_fork"),
    CPython("python_others", [f"test.{name}" for name in OTHERS]),
)
