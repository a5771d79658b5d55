# SPDX-License-Identifier: Apache-2.0
"""memcached and PostgreSQL with their own clients."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

from conformance.place import Place, free_port, give_to, wait_until
from conformance.suites import CannotRun, Program
from conformance.web_servers import same

MEMCACHED_TEST = Path(__file__).with_name("fixtures") / "memcached_client.py"


class Memcached(Program):
    """memcached: libmemcached's tools, and a client that pipelines."""

    name = "memcached"
    needs = ("memcached", "memccp", "memccat")

    def start(self, place: Place, stack: ExitStack) -> None:
        self.port = free_port()
        command = (
            "memcached",
            "-u",
            "nobody",
            "-l",
            "127.0.0.1",
            "-U",
            "0",
            "-I",
            "8m",
            "-p",
            str(self.port),
        )
        stack.enter_context(place.server(*command, port=self.port))

    def check_files(self, place: Place) -> None:
        """Files go in and come out."""
        for name, size in (("one", 1), ("page", 4096), ("odd", 100_003), ("large", 1_000_000)):
            path = place.noise(name, size)
            place.run("memccp", f"--servers=127.0.0.1:{self.port}", path)
            out = place.path(f"out-{name}")
            place.run("memccat", f"--servers=127.0.0.1:{self.port}", f"--file={out}", name)
            same(path, out)

    def check_pipelined(self, place: Place) -> None:
        place.run("/usr/bin/python3", MEMCACHED_TEST, str(self.port), "pipelined")

    def check_many_clients(self, place: Place) -> None:
        place.run("/usr/bin/python3", MEMCACHED_TEST, str(self.port), "many")


class Postgres(Program):
    """PostgreSQL over TCP: psql with COPY, cancel and NOTIFY, and pgbench with its books checked."""

    name = "postgresql"
    needs = ("psql",)
    user = "postgres"

    def start(self, place: Place, stack: ExitStack) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not found:
            raise CannotRun("not installed: postgresql; make conformance installs it on Debian")
        programs, self.port = found[-1].parent, free_port()
        self.pgbench = programs / "pgbench"
        home = place.path("pg/data").parent
        give_to(home, self.user)
        words = ("--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync", "-D", home / "data")
        place.run(programs / "initdb", *words, user=self.user)
        settings = (f"unix_socket_directories={home}", "fsync=off", "listen_addresses=127.0.0.1")
        options = [word for setting in settings for word in ("-c", setting)]
        command: tuple[str | Path, ...]
        command = (programs / "postgres", "-D", home / "data", "-p", str(self.port), *options)
        server = place.server(*command, port=self.port, user=self.user, stop=signal.SIGINT, name="postgres")
        stack.enter_context(server)
        wait_until(lambda: b"ready to accept" in place.path("postgres.log").read_bytes(), "PostgreSQL")

    def _client(self) -> tuple[str, ...]:
        return ("--host=127.0.0.1", f"--port={self.port}", "--username=postgres")

    def _sql(self, place: Place, *statements: str, stdin: bytes = b"") -> bytes:
        commands = [word for statement in statements for word in ("--command", statement)]
        options = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1")
        return place.run("psql", *self._client(), *options, *commands, "postgres", stdin=stdin)

    def check_copy(self, place: Place) -> None:
        """A table goes in and out by COPY."""
        rows = "".join(f"{number}\t{'x' * (number % 1500)}\n" for number in range(20_000)).encode()
        self._sql(place, "CREATE TABLE t (a int, b text)", "COPY t FROM STDIN", stdin=rows)
        assert self._sql(place, "COPY (SELECT * FROM t ORDER BY a) TO STDOUT") == rows
        assert self._sql(place, "SELECT count(*), sum(length(b)) FROM t").strip() == b"20000|14740000"

    def check_large_row(self, place: Place) -> None:
        assert len(self._sql(place, "SELECT repeat('0123456789', 3000000)").strip()) == 30_000_000

    def check_notify(self, place: Place) -> None:
        said = self._sql(place, "LISTEN bell", "NOTIFY bell, 'ding'", "SELECT 1")
        assert b'"bell" with payload "ding"' in said, said

    def check_timeout(self, place: Place) -> None:
        """A statement is interrupted by the server's timer and the connection goes on."""
        script = b"SET statement_timeout = '200ms';\nSELECT pg_sleep(20);\nSELECT 'alive';\n"
        options = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align")
        said = place.run("psql", *self._client(), *options, "postgres", stdin=script)
        assert said.strip().endswith(b"alive"), said

    def check_terminated(self, place: Place) -> None:
        """A session that the server ends is told why."""
        kill = "SELECT pg_terminate_backend(pg_backend_pid())"
        place.run("psql", *self._client(), "--no-psqlrc", "--command", kill, "postgres", code=2)

    def check_pgbench(self, place: Place) -> None:
        """What four clients book in four tables has to add up."""
        place.run(self.pgbench, *self._client(), "--initialize", "--quiet", "--scale=2", "postgres")
        load = ("--client=4", "--jobs=2", "--transactions=250", "--no-vacuum")
        for protocol in ("simple", "extended", "prepared"):
            said = place.run(self.pgbench, *self._client(), *load, f"--protocol={protocol}", "postgres")
            assert b"number of transactions actually processed: 1000/1000" in said, said
        sums = " , ".join(
            f"(SELECT sum({column}) FROM pgbench_{table})"
            for column, table in (("abalance", "accounts"), ("bbalance", "branches"), ("delta", "history"))
        )
        one, two, three = self._sql(place, f"SELECT {sums}").strip().split(b"|")
        assert one == two == three, (one, two, three)
        assert self._sql(place, "SELECT count(*) FROM pgbench_history").strip() == b"3000"

    def check_pgbench_reconnecting(self, place: Place) -> None:
        load = ("--client=2", "--transactions=50", "--connect", "--select-only", "--no-vacuum")
        said = place.run(self.pgbench, *self._client(), *load, "postgres")
        assert b"number of transactions actually processed: 100/100" in said, said


SUITES = (Memcached(), Postgres())
