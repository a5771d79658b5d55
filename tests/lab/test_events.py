from __future__ import annotations

import itertools

from lab import events
from lab.events import Look, differences
from lab.topology_file import parse_topology

ENDS = {
    f"{end}_{key}": value
    for end, guest, port in (("client", "a", 40000), ("server", "b", 80))
    for key, value in (("guest", guest), ("address", "10.0.0.1"), ("port", port))
}


def row(state, path="network", channel=0, shared=0, network=0):
    return {
        "number": 7,
        "state": state,
        "fast_path": "SharedHypervisor",
        "detail": "",
        "heap": "h" if channel else "",
        "channel": channel,
        "ring": 4096,
        **ENDS,
        "to_server_path": path,
        "to_client_path": "network",
        "to_server_shared": shared,
        "to_server_network": network,
        "to_client_shared": 0,
        "to_client_network": 1,
    }


def lab(connection=None, agent="connected", pid=1):
    return Look({"a": "running"}, {"a": agent}, "running", pid, {7: connection} if connection else {})


def kinds(before, now):
    return [event["event"] for event in differences(before, now)]


def test_nothing_happens_between_equal_looks():
    assert kinds(lab(row("shared", "shared", 3)), lab(row("shared", "shared", 3))) == []


def test_a_lab_comes_up_and_goes():
    assert kinds(Look(), lab()) == ["daemon", "guest", "agent"]
    gone = Look({"a": "absent"}, {"a": "absent"})
    assert list(differences(lab(), gone)) == [
        {"event": "daemon", "state": "not running", "was": "running", "pid": None},
        {"event": "guest", "guest": "a", "state": "absent", "was": "running"},
        {"event": "agent", "guest": "a", "state": "absent", "was": "connected"},
    ]
    assert kinds(Look(), gone) == []


def test_the_life_of_a_connection():
    steps = [
        lab(),
        lab(row("announced")),
        lab(row("offered", channel=3)),
        lab(row("shared", "shared", 3)),
        lab(row("ended", "shared", 3, shared=10, network=5)),
    ]
    told = [list(differences(before, now)) for before, now in itertools.pairwise(steps)]
    assert [[event["event"] for event in each] for each in told] == [
        ["connection"],
        ["connection", "channel"],
        ["connection", "path"],
        ["connection", "ended"],
    ]
    assert told[0][0]["client"] == "a 10.0.0.1:40000"
    assert told[1][1]["heap"] == "h"
    assert (told[2][1]["direction"], told[2][1]["path"], told[2][1]["was"]) == (
        "to_server",
        "shared",
        "network",
    )
    assert (told[3][1]["shared"], told[3][1]["network"]) == (10, 6)


def test_a_new_daemon_counts_anew():
    assert kinds(lab(row("shared")), lab(row("announced"), pid=2)) == ["daemon", "connection"]


def test_a_lab_that_is_not_there_has_no_events():
    topology = parse_topology("name: no-such-lab-is-up\nguests: [a]\n", "t.yaml")
    assert next(events.follow(topology, interval=0)) == []
