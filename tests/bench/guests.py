# SPDX-License-Identifier: Apache-2.0
"""Measure a lab: `python tests/bench/guests.py [TOPOLOGY]`, as root, on a machine that does nothing else.

Brings the lab up, runs each program between client and server with the shim and without in turns, and prints
a table in Markdown: medians, the ratio of the pairs, and the goal. Nothing is asserted: it measures.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import guest, lifecycle, process
from lab.paths import LabPaths
from lab.progress import Progress
from lab.ssh_session import Session
from lab.topology import Topology
from lab.topology_file import load_topology

HERE = Path(__file__).resolve().parent
ROUNDS = 3
IPERF_SECONDS = 5
IDLE_SECONDS = 30
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Result:
    """One row: medians in `unit`, and the median ratio of the pairs; more is better."""

    what: str
    unit: str
    shared: float
    plain: float
    ratio: float
    goal: str

    def row(self) -> str:
        figures = f"{self.shared:.4g} {self.unit} | {self.plain:.4g} {self.unit} | {self.ratio:.2f}x"
        return f"| {self.what} | {figures} | {self.goal} |"


class Bench:
    """The running lab and its two sessions."""

    def __init__(self, topology: Topology, client: Session, server: Session) -> None:
        self.topology = topology
        self.sessions = {"client": client, "server": server}
        self.address = str(topology.guest("server").address)
        self.port = 7100

    def command(self, name: str, argv: Sequence[str], stdin: bytes = b"") -> str:
        done = guest.run_in(self.sessions[name], argv, stdin=stdin, timeout=300)
        if done.code:
            sys.exit(f"{name}: {' '.join(argv)} ended with {done.code}: {done.stderr.decode()}")
        return done.stdout.decode()

    @contextlib.contextmanager
    def serving(self, argv: Sequence[str]) -> Iterator[str]:
        """A server on a port of its own, which is the last word of its command."""
        self.port += 1
        port = str(self.port)
        words = " ".join([*argv, port])
        self.command("server", ["sh", "-c", f"{words} >/dev/null 2>&1 </dev/null & echo $! >/run/bench.pid"])
        while not self.command("server", ["ss", "-Hltn", f"sport = :{port}"]).strip():
            time.sleep(0.2)
        try:
            yield port
        finally:
            self.command("server", ["sh", "-c", "kill $(cat /run/bench.pid) || true"])

    def qemu_cpu(self) -> float:
        """CPU seconds that all QEMU processes of the lab have used."""
        total = 0
        for found in process.find(process.in_netns(LabPaths(self.topology.name).netns_file)):
            if b"qemu" in Path(f"/proc/{found.pid}/cmdline").read_bytes().split(b"\0")[0]:
                fields = Path(f"/proc/{found.pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / CLOCK_TICKS

    def iperf3(self, prefix: Sequence[str]) -> dict[str, float]:
        with self.serving([*prefix, "iperf3", "-s", "-p"]) as port:
            before = self.qemu_cpu()
            words = [*prefix, "iperf3", "-c", self.address, "-p", port, "-t", str(IPERF_SECONDS), "--json"]
            end = json.loads(self.command("client", words))["end"]["sum_received"]
            cpu = self.qemu_cpu() - before
        gib = end["bytes"] / 2**30
        return {"rate": gib / end["seconds"], "cpu": cpu / gib}

    def pingpong(self, pause: int) -> Callable[[Sequence[str]], dict[str, float]]:
        def run(prefix: Sequence[str]) -> dict[str, float]:
            with self.serving([*prefix, "/root/pingpong"]) as port:
                rounds = "500" if pause else "3000"
                words = [*prefix, "/root/pingpong", port, self.address, rounds, str(pause)]
                return dict(json.loads(self.command("client", words)))

        return run

    def redis(self, prefix: Sequence[str]) -> dict[str, float]:
        server = ["redis-server", "--save", "''", "--protected-mode", "no", "--port"]
        with self.serving([*prefix, *server]) as port:
            words = [
                "redis-benchmark",
                "-h",
                self.address,
                "-p",
                port,
                "-t",
                "get",
                "-n",
                "20000",
                "-c",
                "20",
            ]
            text = self.command("client", [*prefix, *words, "--csv"])
        row = next(csv.DictReader(io.StringIO(text[text.index('"test"') :])))
        return {"rps": float(row["rps"])}

    def idle_agent(self) -> tuple[float, float]:
        """(share of a core in percent, resident MiB) of the client's agent while nothing happens."""
        script = (
            "p=$(systemctl show --value -p MainPID hyperheap-agent.service);"
            f" a=$(cut -d' ' -f14,15 /proc/$p/stat); sleep {IDLE_SECONDS};"
            " b=$(cut -d' ' -f14,15 /proc/$p/stat); echo $a $b $(getconf CLK_TCK); grep VmRSS /proc/$p/status"
        )
        lines = self.command("client", ["sh", "-c", script]).splitlines()
        before_user, before_sys, user, system, ticks = map(int, lines[0].split())
        share = (user + system - before_user - before_sys) / ticks / IDLE_SECONDS * 100
        return share, int(lines[1].split()[1]) / 1024


def compare(
    action: Callable[[Sequence[str]], dict[str, float]],
) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Pairs of (with the shim, without), in turns."""
    return [(action(["lab-run"]), action([])) for _ in range(ROUNDS)]


def result(
    what: str,
    unit: str,
    pairs: list[tuple[dict[str, float], dict[str, float]]],
    key: str,
    goal: str,
    less: bool = False,
) -> Result:
    """The row of one figure; `less`: smaller is better."""
    shared = statistics.median(pair[0][key] for pair in pairs)
    plain = statistics.median(pair[1][key] for pair in pairs)
    ratio = statistics.median(p[1][key] / p[0][key] if less else p[0][key] / p[1][key] for p in pairs)
    return Result(what, unit, shared, plain, ratio, goal)


def measure(bench: Bench) -> list[Result]:
    with tempfile.TemporaryDirectory() as directory:
        binary = Path(directory) / "pingpong"
        subprocess.run(["gcc", "-O2", str(HERE / "pingpong.c"), "-o", str(binary)], check=True)
        for name in bench.sessions:
            bench.command(
                name, ["sh", "-c", "cat >/root/pingpong; chmod +x /root/pingpong"], binary.read_bytes()
            )
    iperf3 = compare(bench.iperf3)
    busy, asleep = compare(bench.pingpong(0)), compare(bench.pingpong(5000))
    redis = compare(bench.redis)
    return [
        result("iperf3, one stream", "GiB/s", iperf3, "rate", ">= 4x"),
        result(
            "CPU of all QEMUs per GiB (iperf3)", "s", iperf3, "cpu", "(>= 4x less, next issue)", less=True
        ),
        result(
            "14-byte ping-pong p50, back to back", "us", busy, "p50_us", "(>= 50x, next issue)", less=True
        ),
        result("14-byte ping-pong p50, both asleep", "us", asleep, "p50_us", ">= 2x", less=True),
        result("redis-benchmark GET, 20 clients", "req/s", redis, "rps", ""),
    ]


def main() -> None:
    topology = load_topology(Path(sys.argv[1] if len(sys.argv) > 1 else "examples/hello.yaml"))
    up = lifecycle.up(topology, Progress("up"))
    try:
        with (
            guest.open_session(topology, "client") as client,
            guest.open_session(topology, "server") as server,
        ):
            bench = Bench(topology, client, server)
            share, resident = bench.idle_agent()
            rows = measure(bench)
    finally:
        down = lifecycle.down(topology.name, Progress.silent())
    cores = f"{os.cpu_count()} cores, Linux {platform.release()}, {up.accelerator}"
    print(f"Machine: {cores}; median of {ROUNDS} pairs, shim on and off in turns.\n")
    print("| what | shared heap | virtio-net | ratio | goal |\n|---|---|---|---|---|")
    print("\n".join(row.row() for row in rows))
    print("\n| what | figure | goal |\n|---|---|---|")
    print(f"| `lab up {topology.name}`, image cached | {up.seconds:.1f} s | <= 45 s |")
    print(f"| `lab down` | {down.seconds:.1f} s | <= 5 s |")
    print(f"| idle agent, share of a core | {share:.2f} % | < 0.5 % |")
    print(f"| idle agent, resident | {resident:.1f} MiB | < 30 MiB |")


if __name__ == "__main__":
    main()
