# SPDX-License-Identifier: Apache-2.0
"""What the guests of hello.yaml use and do, as `lab stats`, `top`, `metrics` and `events` tell it."""

from __future__ import annotations

import json
import time

from prometheus_client.parser import text_string_to_metric_families

from lab import stats

MIB = 1 << 20
SERVE = ["iperf3", "--server", "--one-off", "--port", "5299"]
CLIENT = ["iperf3", "--client", "server", "--port", "5299", "--bytes", "256M", "--json"]


def test_what_guests_use_and_do(hello_lab):
    """One transfer through memory, seen by every verb."""
    before = stats.collect(hello_lab.topology)
    assert all(guest.running for guest in before.guests)
    served = hello_lab.start("server", "lab-run", *SERVE)
    while not hello_lab.run("server", "ss", "-Hltn", "sport = :5299").stdout.strip():
        time.sleep(0.1)
    hello_lab.run("client", "lab-run", *CLIENT)
    served.result(60)
    after = stats.collect(hello_lab.topology)
    used = {
        name: counters.per(1 / (after.time - before.time)) for name, counters in after.rates(before).items()
    }
    assert used["client"].cpu_seconds > 0.05
    assert used["client"].shared_sent + used["client"].network_sent >= 20 * MIB
    assert used["client"].shared_sent > 10 * MIB
    assert used["server"].shared_received == used["client"].shared_sent
    assert used["outsider"].shared_received == 0
    assert used["client"].sent > 1000, "its NIC, by ssh at least"
    resident = {guest.name: guest.resident for guest in after.guests}
    assert all(50 * MIB < each < 2048 * MIB for each in resident.values())

    told = json.loads(hello_lab.cli("stats", "--json", "--interval", "0.3").stdout)
    assert [guest["name"] for guest in told["guests"]] == ["client", "server", "outsider"]
    assert told["guests"][0]["counters"]["shared_sent"] >= used["client"].shared_sent
    assert told["guests"][0]["rates"]["shared_sent"] == 0
    assert hello_lab.cli("top", "-d", "0.3", "-n", "2").stdout.count(b"outsider") == 2

    families = {
        each.name: each for each in text_string_to_metric_families(hello_lab.cli("metrics").stdout.decode())
    }
    up = {each.labels["guest"]: each.value for each in families["hyperheap_guest_up"].samples}
    assert up == {"client": 1, "server": 1, "outsider": 1}

    lines = [json.loads(line) for line in hello_lab.cli("events").stdout.splitlines()]
    kinds = {line["event"] for line in lines}
    assert kinds >= {"daemon", "guest", "agent", "connection", "ended"}
    transfer = [line for line in lines if line["event"] == "ended" and ":5299" in line["server"]]
    assert max(line["shared"] for line in transfer) > 10 * MIB
