# SPDX-License-Identifier: Apache-2.0
"""Redis's own tests: Debian's source package, run against Debian's redis-server.

Debian ships no package with them, so the source is fetched once by apt from the mirrors that this machine
uses anyway, and kept. Server, command line tools and the Tcl client all have the shim.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from conformance.place import SEARCH_PATH, CommandFailed, Place, free_port
from conformance.suites import CannotRun, Outcome, Result, Suite

CACHE = Path(
    os.environ.get("XDG_CACHE_HOME", "/var/cache/hyperheap" if os.geteuid() == 0 else "~/.cache/hyperheap")
)
SOURCE = "HYPERHEAP_REDIS_SOURCE"
"""Variable that names an unpacked source tree, for machines that reach no mirror."""
UNIT_SECONDS = 300.0

# Those that are about connections, pipelines, replication and the tools. The others test data structures,
# take many minutes (replication, replication-psync), name their tests by chance (psync2-*), or fail here
# without the shim (client-eviction).
UNITS = (
    "unit/protocol",
    "unit/auth",
    "unit/keyspace",
    "unit/scan",
    "unit/info",
    "unit/type/string",
    "unit/type/list",
    "unit/type/stream-cgroups",
    "unit/multi",
    "unit/quit",
    "unit/pubsub",
    "unit/pubsubshard",
    "unit/introspection",
    "unit/introspection-2",
    "unit/limits",
    "unit/obuf-limits",
    "unit/wait",
    "unit/pause",
    "unit/querybuf",
    "unit/pendingquerybuf",
    "unit/tracking",
    "unit/networking",
    "unit/replybufsize",
    "integration/block-repl",
    "integration/replication-2",
    "integration/replication-3",
    "integration/replication-buffer",
    "integration/failover",
    "integration/shutdown",
    "integration/redis-cli",
    "integration/redis-benchmark",
)

SOURCES = """Types: deb-src
URIs: http://deb.debian.org/debian
Suites: {suite}
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb-src
URIs: http://deb.debian.org/debian-security
Suites: {suite}-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""

OUTCOMES = {
    "ok": Outcome.PASSED,
    "err": Outcome.FAILED,
    "exception": Outcome.FAILED,
    "timeout": Outcome.FAILED,
    "skip": Outcome.SKIPPED,
    "ignore": Outcome.SKIPPED,
}
_LINE = re.compile(r"^\[(ok|err|exception|timeout|skip|ignore)\]: (.*)$")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SOCKET = re.compile(r"\bsock[0-9a-f]{8,}")
_TAKEN = re.compile(r" \(\d+ ms\)$")


class Redis(Suite):
    """Units of Redis's own suite, one after the other."""

    name = "redis"
    origin = "Redis (Debian's source)"

    def run(self, place: Place) -> Mapping[str, Result]:
        """Run all units."""
        source = find_source()
        tree = place.path("redis/x").parent
        place.run("cp", "-r", source / "tests", tree)
        for program in ("server", "cli", "benchmark", "check-aof", "check-rdb"):
            target = tree / "src" / f"redis-{program}"
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(f"/usr/bin/redis-{program}")
        results: dict[str, Result] = {}
        for unit in UNITS:
            for test, result in _run_unit(place, tree, unit):
                results[f"{unit}: {test}"] = result
        return results


def _run_unit(place: Place, tree: Path, unit: str) -> Iterator[tuple[str, Result]]:
    words = ("tests/test_helper.tcl", "--clients", "1", "--single", unit, "--baseport", str(free_port()))
    command = f'cd "{tree}" && exec tclsh "$@"'
    failure = ""
    try:
        out = place.run("sh", "-c", command, "tclsh", *words, seconds=UNIT_SECONDS, code=None)
    except CommandFailed as error:
        out, failure = b"", str(error)
    seen: dict[str, int] = {}
    done = False
    for line in _COLOUR.sub("", out.decode(errors="replace")).splitlines():
        done = done or line.startswith("[1/1 done]")
        match = _LINE.match(line)
        if match is None:
            continue
        outcome, text = OUTCOMES[match[1]], match[2]
        test, _, detail = text.partition(" in tests/") if outcome is Outcome.FAILED else (text, "", "")
        test = _SOCKET.sub("sock", _TAKEN.sub("", test))
        seen[test] = seen.get(test, 0) + 1
        if seen[test] > 1:
            test = f"{test} #{seen[test]}"
        yield test, Result(outcome, detail)
    detail = failure or out.decode(errors="replace")[-1500:]
    yield "to the end", Result(Outcome.PASSED if done else Outcome.FAILED, "" if done else detail)


def find_source() -> Path:
    """Return Redis's source tree, of the version that is installed; fetched with apt if need be.

    Raises:
        CannotRun: it is not here and cannot be had.
    """
    given = os.environ.get(SOURCE)
    if given:
        return Path(given)
    try:
        version = _output("dpkg-query", "-W", "-f", "${source:Version}", "redis-server").strip()
        suite = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
        kept = CACHE.expanduser() / "conformance" / f"redis-{version.replace(':', '_')}"
        if not kept.is_dir():
            _fetch(kept, version, suite[1] if suite else "stable")
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or error
        raise CannotRun(
            f"Redis's source is not here and apt did not bring it ({said}); {SOURCE}=DIR names a copy"
        ) from error
    return kept


def _fetch(kept: Path, version: str, suite: str) -> None:
    """Unpack the source of a version at `kept`, through an apt configuration of our own."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as name:
        scratch = Path(name)
        (scratch / "lists" / "partial").mkdir(parents=True)
        (scratch / "cache" / "archives" / "partial").mkdir(parents=True)
        (scratch / "src.sources").write_text(SOURCES.format(suite=suite))
        options = (
            *("-o", f"Dir::Etc::sourcelist={scratch}/src.sources", "-o", "Dir::Etc::sourceparts=/dev/null"),
            *("-o", f"Dir::State::lists={scratch}/lists", "-o", f"Dir::Cache={scratch}/cache"),
            *("-o", "APT::Sandbox::User=root", "-q"),
        )
        _output("apt-get", *options, "update")
        _output("apt-get", *options, "source", "--download-only", f"redis={version}", cwd=scratch)
        (scratch / "tree").mkdir()
        original = next(scratch.glob("redis_*.orig.tar.*"))
        _output("tar", "-xf", str(original), "-C", str(scratch / "tree"), "--strip-components=1")
        (scratch / "tree").rename(kept)


def _output(*argv: str, cwd: Path | None = None) -> str:
    env = {"PATH": SEARCH_PATH, "LANG": "C.UTF-8", "HOME": "/root"}
    done = subprocess.run(argv, cwd=cwd, env=env, check=True, capture_output=True, text=True, timeout=300)
    return done.stdout


SUITES = (Redis(),)
