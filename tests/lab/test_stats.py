from __future__ import annotations

import http.client
import socket
import threading
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lab import metrics, stats
from lab.errors import LabError
from lab.stats import Counters, GuestStats, LabStats, read_record, sum_connections
from lab.stats_table import COLUMNS, format_bytes, format_rows
from lab.topology_file import parse_topology

RECORD = {
    "cpu.time": 12_500_000_000,
    "vcpu.current": 2,
    "balloon.current": 393216,
    "balloon.rss": 262144,
    "net.count": 2,
    "net.0.rx.bytes": 1000,
    "net.0.tx.bytes": 2000,
    "net.0.rx.pkts": 10,
    "net.0.tx.pkts": 20,
    "net.0.rx.drop": 1,
    "net.1.rx.bytes": 1,
    "net.1.tx.bytes": 2,
    "block.count": 2,
    "block.0.rd.bytes": 4096,
    "block.0.rd.reqs": 1,
    "block.0.wr.bytes": 8192,
    "block.1.rd.bytes": 1,
}


def connection(client, server, to_server, to_client, ended=None):
    def direction(shared, network):
        return {"shared": shared, "network": network}

    return {
        "client": {"guest": client},
        "server": {"guest": server},
        "to_server": direction(*to_server),
        "to_client": direction(*to_client),
        "ended": ended,
    }


def test_a_guests_record_is_summed_over_its_devices():
    guest = read_record("a", 1, 1, RECORD, {"shared_sent": 7, "open": 3})
    assert (guest.running, guest.vcpus, guest.memory, guest.resident) == (True, 2, 384 << 20, 256 << 20)
    assert guest.connections == 3
    assert guest.counters == Counters(
        cpu_seconds=12.5,
        disk_read=4097,
        disk_written=8192,
        disk_reads=1,
        received=1001,
        sent=2002,
        received_packets=10,
        sent_packets=20,
        dropped_packets=1,
        shared_sent=7,
    )
    assert read_record("a", 1, 5, None, {}) == GuestStats("a", False, 1, 5, 0, 0, Counters())


def test_connections_are_summed_by_guest_and_direction():
    moved = sum_connections(
        [
            connection("a", "b", (100, 10), (1, 2)),
            connection("b", "a", (5, 0), (0, 0), ended=3.0),
            connection("", "b", (0, 50), (0, 60)),
        ]
    )
    assert moved["a"] == {
        "shared_sent": 100,
        "network_sent": 12 - 2,
        "shared_received": 6,
        "network_received": 2,
        "open": 1,
    }
    assert moved["b"]["shared_received"] == 100
    assert moved["b"]["network_received"] == 60
    assert moved["b"]["network_sent"] == 62
    assert moved["b"]["open"] == 2
    assert "" not in moved


def sample(time, counters, running=True, daemon=True):
    return LabStats("x", time, daemon, (GuestStats("a", running, 1, 1 << 28, 1 << 27, 2, counters),))


def test_rates_are_per_second_and_never_negative():
    first = sample(10.0, Counters(cpu_seconds=1.0, sent=1000, received=500))
    second = sample(12.0, Counters(cpu_seconds=2.0, sent=3000, received=100))
    assert second.rates(first)["a"] == Counters(cpu_seconds=0.5, sent=1000, received=50)


def test_the_table():
    now = sample(2.0, Counters(cpu_seconds=1.5, shared_sent=3 << 20))
    row = dict(zip(COLUMNS, format_rows(now, None)[0], strict=True))
    assert row["cpu"] == "1.5 s"
    assert row["memory"] == "128 MiB of 256 MiB"
    assert row["shared in / out"] == "0 B / 3.0 MiB"
    row = dict(zip(COLUMNS, format_rows(now, now.rates(sample(1.0, Counters())))[0], strict=True))
    assert row["cpu"] == "150%"
    assert row["shared in / out"] == "0 B/s / 3.0 MiB/s"
    assert "unknown" in format_rows(sample(1.0, Counters(), daemon=False), None)[0]
    assert format_rows(sample(1.0, Counters(), running=False), None)[0][1] == "absent"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (150 << 10, "150 KiB"),
        (1 << 20, "1.0 MiB"),
        (5e15, "4547 TiB"),
    ],
)
def test_bytes_are_short(count, text):
    assert format_bytes(count) == text


# --- for Prometheus


@pytest.fixture
def topology():
    return parse_topology("name: x\nguests: [a]\n", "t.yaml")


def families(text):
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def test_metrics_of_a_lab(topology, monkeypatch):
    found = sample(1.0, Counters(cpu_seconds=1.5, shared_sent=99, received=7))
    monkeypatch.setattr(stats, "collect", lambda topology, connect=None: found)
    told = families(metrics.text(topology))
    assert told["hyperheap_lab_up"].samples[0].value == 1
    cpu = told["hyperheap_guest_cpu_seconds"]
    assert cpu.type == "counter"
    assert cpu.samples[0].labels == {"lab": "x", "guest": "a"}
    assert cpu.samples[0].value == 1.5
    moved = {
        (each.labels["path"], each.labels["direction"]): each.value
        for each in told["hyperheap_connection_bytes"].samples
    }
    assert moved["shared", "sent"] == 99
    assert moved["network", "sent"] == 0


def test_metrics_of_a_lab_that_is_down(topology, monkeypatch):
    def collect(topology, connect=None):
        raise LabError("down")

    monkeypatch.setattr(stats, "collect", collect)
    told = families(metrics.text(topology))
    assert told["hyperheap_lab_up"].samples[0].value == 0
    assert set(told) == {"hyperheap_lab_up"}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(stats, "collect", lambda topology, connect=None: sample(1.0, Counters()))


def test_served_on_a_port(topology, quiet):
    with metrics.serving(topology, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with urllib.request.urlopen(server.place, timeout=10) as answer:
            assert "hyperheap_guest_up" in families(answer.read())
        server.shutdown()
        thread.join()


def test_served_on_a_socket_that_goes_with_it(topology, quiet, tmp_path):
    path = tmp_path / "m.sock"
    with metrics.serving(topology, path) as server:
        assert path.stat().st_mode & 0o777 == 0o600
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        client = _UnixConnection(path)
        for place, status in (("/metrics", 200), ("/", 404)):
            client.request("GET", place)
            answer = client.getresponse()
            assert answer.status == status
            answer.read()
            client.close()
        server.shutdown()
        thread.join()
        with pytest.raises(LabError, match="in use"), metrics.serving(topology, path):
            pass
    assert not path.exists()
