"""The counters of a lab for Prometheus: as text, or served on the loopback address or a UNIX socket."""

from __future__ import annotations

import contextlib
import os
import socketserver
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from lab import stats
from lab.errors import LabError
from lab.stats import LabStats
from lab.topology import Topology

LOOPBACK = "127.0.0.1"

_LABELS = ("lab", "guest")

#: Counters of a guest: name, the attribute of `stats.Counters`, what it is.
_COUNTERS = (
    ("cpu_seconds", "cpu_seconds", "Processor time of the host that the guest has used."),
    ("disk_read_bytes", "disk_read", "Bytes read from its disks."),
    ("disk_written_bytes", "disk_written", "Bytes written to its disks."),
    ("disk_reads", "disk_reads", "Read requests to its disks."),
    ("disk_writes", "disk_writes", "Write requests to its disks."),
    ("network_received_bytes", "received", "Bytes received by its NICs."),
    ("network_sent_bytes", "sent", "Bytes sent by its NICs."),
    ("network_received_packets", "received_packets", "Packets received by its NICs."),
    ("network_sent_packets", "sent_packets", "Packets sent by its NICs."),
    ("network_dropped_packets", "dropped_packets", "Packets that its NICs dropped."),
)

#: Of its connections: gauges, since the daemon forgets connections that ended long ago.
_CONNECTION_BYTES = (
    ("shared", "received", "shared_received"),
    ("shared", "sent", "shared_sent"),
    ("network", "received", "network_received"),
    ("network", "sent", "network_sent"),
)


def describe(sample: LabStats | None, lab: str) -> Iterator[Metric]:
    """The metrics of a sample; None if the lab does not run."""
    running = GaugeMetricFamily("hyperheap_lab_up", "Whether the lab runs.", labels=["lab"])
    running.add_metric([lab], float(sample is not None))
    yield running
    if sample is None:
        return
    daemon = GaugeMetricFamily("hyperheap_daemon_up", "Whether the lab's daemon answers.", labels=["lab"])
    daemon.add_metric([lab], float(sample.daemon))
    yield daemon
    yield from _describe_guests(sample)


def _describe_guests(sample: LabStats) -> Iterator[Metric]:
    gauges: dict[str, tuple[str, list[tuple[str, float]]]] = {
        "up": ("Whether the guest runs.", [(each.name, each.running) for each in sample.guests]),
        "vcpus": ("Its virtual CPUs.", [(each.name, each.vcpus) for each in sample.guests]),
        "memory_bytes": ("Memory that it may have.", [(each.name, each.memory) for each in sample.guests]),
        "resident_bytes": (
            "Memory of the host that its QEMU has.",
            [(each.name, each.resident) for each in sample.guests],
        ),
    }
    for name, (help_text, values) in gauges.items():
        family = GaugeMetricFamily(f"hyperheap_guest_{name}", help_text, labels=_LABELS)
        for guest, value in values:
            family.add_metric([sample.lab, guest], float(value))
        yield family
    for name, attribute, help_text in _COUNTERS:
        counter = CounterMetricFamily(f"hyperheap_guest_{name}", help_text, labels=_LABELS)
        for each in sample.guests:
            if each.running:
                counter.add_metric([sample.lab, each.name], getattr(each.counters, attribute))
        yield counter
    if sample.daemon:
        yield from _describe_connections(sample)


def _describe_connections(sample: LabStats) -> Iterator[Metric]:
    moved = GaugeMetricFamily(
        "hyperheap_connection_bytes",
        "Bytes of the guest's connections that the registry remembers, by what carried them.",
        labels=(*_LABELS, "path", "direction"),
    )
    count = GaugeMetricFamily(
        "hyperheap_connections", "Open connections of the guest that the registry knows.", labels=_LABELS
    )
    for each in sample.guests:
        count.add_metric([sample.lab, each.name], each.connections)
        for path, direction, attribute in _CONNECTION_BYTES:
            value = getattr(each.counters, attribute)
            moved.add_metric([sample.lab, each.name, path, direction], value)
    yield moved
    yield count


class LabCollector(Collector):
    """Looks at the lab whenever it is asked."""

    def __init__(self, topology: Topology, connect: str | None = None) -> None:
        self._topology = topology
        self._connect = connect

    def collect(self) -> Iterable[Metric]:
        """The metrics now; of a lab that does not run, that it does not."""
        try:
            sample = stats.collect(self._topology, connect=self._connect)
        except LabError:
            sample = None
        return describe(sample, self._topology.name)


def text(topology: Topology, connect: str | None = None) -> bytes:
    """The metrics now, as Prometheus reads them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(LabCollector(topology, connect))
    return generate_latest(registry)


class _UnixServer(socketserver.UnixStreamServer):
    place: str

    def get_request(self) -> tuple[Any, Any]:
        request, _ = super().get_request()
        return request, ("local", 0)  # What the handler expects of an address.


class _TcpServer(HTTPServer):
    place: str


@contextlib.contextmanager
def serving(
    topology: Topology, where: int | Path, connect: str | None = None
) -> Iterator[_UnixServer | _TcpServer]:
    """A server of the metrics at a loopback port (0: any) or a UNIX socket, which only its owner may
    use; call its `serve_forever`. `place` says where it is. Raises `LabError` if the place is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = text(topology, connect) if self.path.split("?")[0] == "/metrics" else None
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST if body else "text/plain; charset=utf-8")
            self.end_headers()
            self.wfile.write(b"see /metrics\n" if body is None else body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

    server: _UnixServer | _TcpServer
    try:
        if isinstance(where, Path):
            mask = os.umask(0o177)
            try:
                server = _UnixServer(str(where), Handler)
                server.place = str(where)
            finally:
                os.umask(mask)
        else:
            server = _TcpServer((LOOPBACK, where), Handler)
            server.place = f"http://{LOOPBACK}:{server.server_port}/metrics"
    except OSError as error:
        raise LabError(f"cannot listen at {where}: {error.strerror or error}") from error
    try:
        with server:
            yield server
    finally:
        if isinstance(where, Path):
            where.unlink(missing_ok=True)
