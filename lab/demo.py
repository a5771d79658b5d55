"""The demo: unmodified programs between the guests of a running lab, and what carried their bytes.

Each program runs between the same pair twice, with the shim and without, so that a ratio of one run stands
beside the absolute figure. What the registry saw decides whether the demo succeeded, not the figures.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from lab import guest, sockets
from lab.errors import LabError
from lab.progress import Progress
from lab.ssh_session import Session
from lab.topology import Topology

DOWNLOAD_MIB = 256
_IPERF_SECONDS = 5
_REDIS_REQUESTS = 20_000
_PORTS = iter(range(7001, 7999))
_START_TIMEOUT = 30.0
_RUN_TIMEOUT = 240.0
_SETTLE_TIMEOUT = 10.0


@dataclass(frozen=True)
class Measurement:
    """What a program said of one run: throughput in `unit` per second, median latency in ms if it has one."""

    throughput: float
    unit: str
    p50_ms: float | None = None


@dataclass(frozen=True)
class Outcome:
    """One row of the demo. `shared` and `network` are bytes of both directions as the registry counted them.

    `plain` is the same program between the same pair without the shim, None where nothing is to compare.
    `faults` says what was not as it should be.
    """

    program: str
    client: str
    server: str
    fast_path: str
    path: str
    shared: int
    network: int
    measured: Measurement
    plain: Measurement | None
    faults: tuple[str, ...] = field(default=())

    @property
    def ratio(self) -> float | None:
        """Throughput with the shim over throughput without it."""
        return self.measured.throughput / self.plain.throughput if self.plain else None


class _Demo:
    def __init__(self, topology: Topology, sessions: dict[str, Session], progress: Progress) -> None:
        self.topology = topology
        self.sessions = sessions
        self.progress = progress

    def address(self, name: str) -> str:
        return str(self.topology.guest(name).address)

    def command(self, name: str, argv: Sequence[str]) -> str:
        """Standard output of a command that must succeed."""
        done = guest.run_in(self.sessions[name], argv, timeout=_RUN_TIMEOUT)
        if done.code:
            errors = done.stderr.decode(errors="replace")
            raise LabError(f"guest {name}: {' '.join(argv)} ended with {done.code}: {errors}")
        return done.stdout.decode(errors="replace")

    @contextlib.contextmanager
    def serving(self, name: str, port: int, argv: Sequence[str]) -> Iterator[None]:
        """A server in a guest, listening before the body runs and gone after it."""
        session, pid_file = self.sessions[name], f"/run/demo-{port}.pid"
        starter = ["sh", "-c", f'echo $$ >{pid_file}; exec "$@" >/run/demo-{port}.log 2>&1', "sh", *argv]
        thread = threading.Thread(target=guest.run_in, args=(session, starter), daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + _START_TIMEOUT
            while not guest.run_in(session, ["ss", "-Hltn", f"sport = :{port}"]).stdout.strip():
                if time.monotonic() > deadline or not thread.is_alive():
                    log = guest.run_in(session, ["tail", f"/run/demo-{port}.log"]).stdout.decode(
                        errors="replace"
                    )
                    raise LabError(f"guest {name}: {argv[0]} did not listen on port {port}\n{log}")
                time.sleep(0.2)
            yield
        finally:
            guest.run_in(session, ["sh", "-c", f"kill $(cat {pid_file}) 2>/dev/null; rm -f {pid_file}"])
            thread.join(timeout=10)

    def iperf3(self, client: str, server: str, prefix: Sequence[str]) -> tuple[Measurement, int, list[str]]:
        port = next(_PORTS)
        with self.serving(server, port, [*prefix, "iperf3", "--server", "--port", str(port)]):
            argv = [*prefix, "iperf3", "--client", self.address(server), "--port", str(port), "--json"]
            report = json.loads(self.command(client, [*argv, "--time", str(_IPERF_SECONDS)]))
        rate = report["end"]["sum_received"]["bits_per_second"] / 8
        return Measurement(rate, "B"), port, []

    def download(self, client: str, server: str, prefix: Sequence[str]) -> tuple[Measurement, int, list[str]]:
        port = next(_PORTS)
        folder = "/var/tmp/demo"
        self.command(server, ["sh", "-c", f"mkdir -p {folder} && cd {folder} && test -e data ||"
                              f" head -c {DOWNLOAD_MIB}M /dev/urandom >{folder}/data"])  # fmt: skip
        expected = self.command(server, ["sha256sum", f"{folder}/data"]).split()[0]
        web = [*prefix, "python3", "-m", "http.server", "--directory", folder, str(port)]
        url = f"http://{self.address(server)}:{port}/data"
        with self.serving(server, port, web):
            timed = self.command(
                client, [*prefix, "curl", "-sS", "-o", "/dev/null", "-w", "%{speed_download}", url]
            )
            fetch = ["sh", "-c", '"$@" | sha256sum', "sh", *prefix, "curl", "-sS", url]
            found = self.command(client, fetch).split()[0]
        faults = [] if found == expected else [f"sha256 is {found}, not {expected}"]
        return Measurement(float(timed), "B"), port, faults

    def redis(self, client: str, server: str, prefix: Sequence[str]) -> tuple[Measurement, int, list[str]]:
        port = next(_PORTS)
        daemon = ["redis-server", "--port", str(port), "--save", "", "--protected-mode", "no"]
        with self.serving(server, port, [*prefix, *daemon]):
            argv = ["redis-benchmark", "-h", self.address(server), "-p", str(port), "-t", "get", "--csv"]
            text = self.command(client, [*prefix, *argv, "-n", str(_REDIS_REQUESTS), "-c", "20"])
        row = next(csv.DictReader(io.StringIO(text[text.index('"test"') :])))
        return Measurement(float(row["rps"]), "req", float(row["p50_latency_ms"])), port, []

    def seen(self, client: str, server: str, port: int) -> list[sockets.Row]:
        """The connections to this port as the registry has them, once all have ended."""
        deadline = time.monotonic() + _SETTLE_TIMEOUT
        while True:
            rows = [
                row
                for row in sockets.collect(self.topology.name)
                if row["server_port"] == port
                and row["client_guest"] == client
                and row["server_guest"] == server
            ]
            if time.monotonic() > deadline or (rows and all(row["ended"] is not None for row in rows)):
                return rows
            time.sleep(0.2)

    def run(
        self,
        program: str,
        client: str,
        server: str,
        action: Callable[[str, str, Sequence[str]], tuple[Measurement, int, list[str]]],
        expected: str,
    ) -> Outcome:
        with self.progress.task(f"{client} -> {server}", program):
            measured, port, faults = action(client, server, ["lab-run"])
            rows = self.seen(client, server, port)
        plain = None
        if expected == "shared":
            with self.progress.task(f"{client} -> {server}", f"{program} (shim off)"):
                plain, _, more = action(client, server, [])
                faults += more
        shared = sum(int(row[f"{way}_shared"] or 0) for row in rows for way in ("to_server", "to_client"))
        network = sum(int(row[f"{way}_network"] or 0) for row in rows for way in ("to_server", "to_client"))
        fast_paths = sorted({str(row["fast_path"]) for row in rows})
        path = "shared" if shared > network else "network"
        if not rows:
            faults.append("the registry saw no connection")
        elif path != expected:
            faults.append(f"went by {path} ({', '.join(fast_paths)}), should have gone by {expected}")
        names = ", ".join(fast_paths)
        return Outcome(program, client, server, names, path, shared, network, measured, plain, tuple(faults))


def run(topology: Topology, progress: Progress) -> list[Outcome]:
    """Run the demo's programs in the running lab `hello` (guests client, server, outsider).

    Raises `LabError` if a program cannot be run at all; a wrong path or byte is a fault in its `Outcome`.
    """
    with contextlib.ExitStack() as stack:
        names = ("client", "server", "outsider")
        sessions = {name: stack.enter_context(guest.open_session(topology, name)) for name in names}
        demo = _Demo(topology, sessions, progress)
        return [
            demo.run("iperf3", "client", "server", demo.iperf3, "shared"),
            demo.run("iperf3", "client", "outsider", demo.iperf3, "network"),
            demo.run(f"curl {DOWNLOAD_MIB} MiB", "client", "server", demo.download, "shared"),
            demo.run("redis-benchmark GET", "client", "server", demo.redis, "shared"),
        ]
