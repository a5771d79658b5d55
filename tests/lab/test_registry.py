"""The registry: who may say what, what is decided, and what becomes of connections and guests."""

from __future__ import annotations

from pathlib import Path

import pytest
from registry_harness import ADDRESSES, PEER_IDS, RING, Bench

from guest_agent.messages import (
    Announce,
    Answer,
    Attached,
    Call,
    Counters,
    EndStats,
    FastPath,
    Fate,
    Gone,
    HeapDevice,
    Hello,
    Listen,
    Lookup,
    Message,
    Offer,
    PeerGone,
    Ping,
    Pong,
    Query,
    Ready,
    Reason,
    Refused,
    Release,
    Reset,
    Role,
    Settled,
    Stats,
    Unlisten,
    Verdict,
    Welcome,
    Withdraw,
)
from guest_agent.records import Endpoint
from lab.registry import connections, core
from lab.registry.core import LEASE_SECONDS
from lab.registry.decision import HeapMembership, Policy, Rules
from lab.registry.report import report_agents, report_connections
from lab.registry.tables import HISTORY, Presence, State

CLIENT, SERVER, OUTSIDER = (Endpoint(f"10.77.0.1{n}", 80) for n in (1, 2, 3))
BUFFER = 4096 + 2 * RING


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    for name in ADDRESSES:
        bench.connect(name)
    bench.sent.clear()
    return bench


# --- conversations ------------------------------------------------------------------------------------------


def test_nothing_is_heard_before_the_conversation_is_open(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.registry.port_opened("client")
    assert bench.take("client", Call)
    bench.say("client", Ping(1))
    bench.say("client", Hello("0.1.0", "b", 1, ()))
    assert not bench.sent["client"]
    bench.say("client", Reset(5))
    assert bench.take("client", Ready) == Ready(5)
    bench.say("client", Ping(1))
    assert not bench.sent["client"]
    assert bench.registry.tables.guests["client"].refused == 1
    bench.say("client", Hello("0.1.0", "b", 1, ()))
    welcome = bench.take("client", Welcome)
    assert welcome is not None
    assert (welcome.guest, welcome.lab, welcome.lease_seconds) == ("client", "lab", LEASE_SECONDS)
    bench.say("client", Ping(3))
    assert bench.take("client", Pong) == Pong(3)


def test_a_repeated_reset_is_answered_and_changes_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for _ in range(3):
        bench.say("client", Reset(5))
        assert bench.take("client", Ready) == Ready(5)
    bench.say("client", Hello("0.1.0", "b", 1, ()))
    assert bench.registry.tables.guests["client"].greeted


@pytest.mark.parametrize("message", [Welcome("g", "l", 1, 1, 1, 1), Ready(1), Call(), Hello("v", "b", 1, ())])
def test_messages_that_are_not_an_agents_to_say_are_counted(bench: Bench, message: Message) -> None:
    bench.say("client", message)
    assert bench.registry.tables.guests["client"].refused == 1
    assert not bench.sent["client"]


def test_a_garbled_port_is_asked_to_begin_again(bench: Bench) -> None:
    bench.registry.port_garbled("client", "nonsense")
    assert bench.take("client", Call)
    assert bench.registry.tables.guests["client"].presence is Presence.SILENT
    bench.connect("client")
    assert bench.registry.tables.guests["client"].presence is Presence.TALKING


def test_heaps_are_believed_only_of_members_and_with_a_peer_of_their_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.connect("client")
    for name, uuid, peer in (
        ("outsider", bench.uuid, 9),
        ("server", "ab" * 16, 9),
        ("server", bench.uuid, PEER_IDS["client"]),
    ):
        bench.say(name, Reset(hash(uuid) & 0xFFFF))
        bench.say(name, Hello("0.1.0", "b", 1, (HeapDevice(uuid, "shared", peer, 4, "/dev/x"),)))
        assert bench.registry.tables.guests[name].heaps == {}
        assert bench.registry.tables.guests[name].refused
    assert set(bench.registry.tables.guests["client"].heaps) == {"shared"}


# --- lookups ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asker", "address", "where"),
    [
        ("client", "10.77.0.12", FastPath.SHARED_HYPERVISOR),
        ("client", "fd77::12", FastPath.SHARED_HYPERVISOR),
        ("client", "10.77.0.11", FastPath.SHARED_VM),
        ("client", "127.0.0.1", FastPath.SHARED_VM),
        ("client", "::1", FastPath.SHARED_VM),
        ("client", "10.77.0.13", FastPath.EXTERNAL),
        ("outsider", "10.77.0.12", FastPath.EXTERNAL),
        ("client", "192.0.2.1", FastPath.EXTERNAL),
        ("client", "fe80::1", FastPath.EXTERNAL),
        ("client", "0.0.0.0", FastPath.EXTERNAL),
    ],
)
def test_where_an_address_is(bench: Bench, asker: str, address: str, where: FastPath) -> None:
    bench.say(asker, Lookup(4, Endpoint(address, 80)))
    assert bench.take(asker, Answer) == Answer(4, where, bench.registry.epoch)


def test_answers_are_withdrawn_from_who_asked_when_the_guest_is_gone(bench: Bench) -> None:
    bench.say("client", Lookup(1, SERVER))
    answer = bench.take("client", Answer)
    assert answer is not None
    bench.registry.guest_died("server", "test")
    withdrawn = [message for message in bench.sent["client"] if isinstance(message, Withdraw)]
    assert {message.address for message in withdrawn} == ADDRESSES["server"]
    assert all(message.epoch > answer.epoch for message in withdrawn)
    assert not bench.sent["outsider"]


def test_a_new_configuration_withdraws_everything(bench: Bench) -> None:
    bench.registry.configure(ADDRESSES, Rules())
    withdrawn = bench.take("client", Withdraw)
    assert withdrawn == Withdraw(None, 0, bench.registry.epoch)
    bench.say("client", Lookup(1, SERVER))
    assert bench.take("client", Answer) == Answer(1, FastPath.EXTERNAL, bench.registry.epoch)


# --- the life of a connection -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("client", "server"), ("server", "client")])
def test_two_announcements_become_a_channel(bench: Bench, order: tuple[str, str]) -> None:
    ends = {"client": (CLIENT, SERVER, Role.CONNECT), "server": (SERVER, CLIENT, Role.ACCEPT)}
    cookies = {}
    for name in order:
        assert not bench.sent[name]
        cookies[name] = bench.announce(name, *ends[name])
    offers = {name: bench.take(name, Offer) for name in order}
    one, other = offers["client"], offers["server"]
    assert one is not None
    assert other is not None
    assert (one.cookie, one.side, one.peer_id) == (cookies["client"], 0, PEER_IDS["server"])
    assert (other.cookie, other.side, other.peer_id) == (cookies["server"], 1, PEER_IDS["client"])
    assert one.buffer == other.buffer
    assert one.channel == other.channel
    assert (one.buffer.heap, one.buffer.length, one.buffer.ring) == (bench.uuid, BUFFER, RING)
    assert one.buffer.offset >= 4096
    assert one.fast_path is FastPath.SHARED_HYPERVISOR
    (connection,) = bench.connections()
    assert connection.state is State.OFFERED
    for name in order:
        bench.say(name, Attached(one.channel, cookies[name]))
    assert connection.state is State.SHARED


@pytest.mark.parametrize(
    ("roles", "side"),
    [
        ((Role.CONNECT, Role.ACCEPT), 0),
        ((Role.ACCEPT, Role.CONNECT), 1),
        ((Role.UNKNOWN, Role.CONNECT), 1),
        ((Role.UNKNOWN, Role.ACCEPT), 0),
        ((Role.ACCEPT, Role.UNKNOWN), 1),
        ((Role.UNKNOWN, Role.UNKNOWN), 0),
        ((Role.CONNECT, Role.CONNECT), 0),
    ],
)
def test_side_0_connected(bench: Bench, roles: tuple[Role, Role], side: int) -> None:
    bench.announce("client", CLIENT, SERVER, roles[0])
    bench.announce("server", SERVER, CLIENT, roles[1])
    offer = bench.take("client", Offer)
    assert offer is not None
    assert offer.side == side


def test_the_lease_is_free_when_both_ends_are_gone_and_not_before(bench: Bench) -> None:
    one, other = bench.establish()
    assert bench.leased() == BUFFER
    counters = Counters(shared_sent=10, shared_received=20)
    bench.say("client", Gone(one.cookie, "closed", counters))
    assert bench.take("server", PeerGone) == PeerGone(one.channel, Fate.CLOSED)
    assert bench.leased() == BUFFER
    bench.say("server", Gone(other.cookie, "closed", Counters(shared_sent=20, shared_received=10)))
    assert bench.leased() == 0
    assert bench.take("client", Release) == Release(one.channel)
    assert bench.take("server", Release) == Release(one.channel)
    (row,) = report_connections(bench.registry, bench.now)
    assert (row["state"], row["fast_path"]) == ("ended", "SharedHypervisor")
    assert row["to_server"]["shared"] == 10
    assert row["to_client"]["shared"] == 20
    assert not bench.registry.tables.channels
    assert not bench.registry.tables.guests["client"].ends


def test_generations_and_channels_differ_from_lease_to_lease(bench: Bench) -> None:
    seen = set()
    for port in range(5):
        one, other = bench.establish(5000 + port)
        seen.add((one.channel, one.buffer.generation))
        bench.say("client", Gone(one.cookie, "closed", Counters()))
        bench.say("server", Gone(other.cookie, "closed", Counters()))
    assert len({channel for channel, _ in seen}) == len({generation for _, generation in seen}) == 5


def test_ends_in_one_guest_share_its_own_memory(bench: Bench) -> None:
    near, far = Endpoint("127.0.0.1", 5000), Endpoint("127.0.0.1", 80)
    bench.announce("outsider", near, far, Role.CONNECT)
    bench.announce("outsider", far, near, Role.ACCEPT)
    offers = [message for message in bench.sent["outsider"] if isinstance(message, Offer)]
    assert [offer.side for offer in offers] == [0, 1]
    assert {offer.fast_path for offer in offers} == {FastPath.SHARED_VM}
    assert {offer.buffer for offer in offers} == {offers[0].buffer}
    assert (offers[0].buffer.heap, offers[0].buffer.offset, offers[0].buffer.length) == ("", 0, BUFFER)
    assert bench.leased() == 0
    for offer in offers:
        bench.say("outsider", Gone(offer.cookie, "closed", Counters()))
    assert bench.connections()[0].state is State.ENDED


def test_loopback_of_two_guests_does_not_meet(bench: Bench) -> None:
    near, far = Endpoint("127.0.0.1", 5000), Endpoint("127.0.0.1", 80)
    bench.announce("client", near, far)
    bench.announce("server", far, near)
    assert not bench.sent["client"]
    assert not bench.sent["server"]
    assert len(bench.connections()) == 2


def test_a_peer_outside_is_a_verdict_and_is_recorded(bench: Bench) -> None:
    cookie = bench.announce("client", CLIENT, Endpoint("192.0.2.1", 443), Role.CONNECT)
    verdict = bench.take("client", Verdict)
    assert verdict is not None
    assert (verdict.cookie, verdict.where, verdict.reason) == (cookie, FastPath.EXTERNAL, Reason.EXTERNAL)
    (row,) = report_connections(bench.registry, bench.now)
    assert (row["state"], row["server"]["address"], row["server"]["guest"]) == ("network", "192.0.2.1", "")
    bench.say("client", Gone(cookie, "closed", Counters(network_sent=5)))
    (row,) = report_connections(bench.registry, bench.now)
    assert (row["state"], row["to_server"]["network"]) == ("ended", 5)


def test_guests_without_a_common_heap_stay_on_the_network(bench: Bench) -> None:
    one = bench.announce("client", CLIENT, OUTSIDER, Role.CONNECT)
    other = bench.announce("outsider", OUTSIDER, CLIENT, Role.ACCEPT)
    for name, cookie in (("client", one), ("outsider", other)):
        verdict = bench.take(name, Verdict)
        assert verdict is not None
        assert (verdict.cookie, verdict.reason) == (cookie, Reason.EXTERNAL)
    (connection,) = bench.connections()
    assert len(connection.ends) == 2


def test_a_full_heap_means_the_network(tmp_path: Path) -> None:
    bench = Bench(tmp_path, size=32768)
    for name in ADDRESSES:
        bench.connect(name)
    bench.sent.clear()
    first, second = bench.establish(5000), bench.establish(5001)
    bench.announce("client", Endpoint("10.77.0.11", 5002), SERVER)
    bench.announce("server", SERVER, Endpoint("10.77.0.11", 5002))
    verdict = bench.take("server", Verdict)
    assert verdict is not None
    assert (verdict.where, verdict.reason) == (FastPath.SHARED_HYPERVISOR, Reason.NO_MEMORY)
    for name, offer in zip(("client", "server"), first, strict=True):
        bench.say(name, Gone(offer.cookie, "closed", Counters()))
    bench.establish(5003)
    assert second


def test_policy_never(tmp_path: Path) -> None:
    bench = Bench(tmp_path, policy=Policy(never=True))
    bench.connect("client")
    bench.announce("client", CLIENT, SERVER)
    verdict = bench.take("client", Verdict)
    assert verdict is not None
    assert verdict.reason is Reason.POLICY


def test_an_end_without_partner_waits_for_it_until_it_is_gone(bench: Bench) -> None:
    cookie = bench.announce("client", CLIENT, SERVER)
    assert not bench.sent["client"]
    bench.say("client", Gone(cookie, "closed", Counters()))
    assert bench.connections()[0].state is State.ENDED
    assert bench.leased() == 0


def test_a_socket_connected_to_itself_stays_on_the_network(bench: Bench) -> None:
    bench.announce("client", CLIENT, CLIENT)
    assert bench.take("client", Verdict)


def test_endpoints_that_are_used_again_are_a_new_connection(bench: Bench) -> None:
    old_client, old_server = bench.establish()
    near, far = Endpoint("10.77.0.11", 5000), Endpoint("10.77.0.12", 80)
    bench.announce("client", near, far, Role.CONNECT)
    assert bench.take("server", PeerGone) == PeerGone(old_client.channel, Fate.CLOSED)
    bench.announce("server", far, near, Role.ACCEPT)
    offer = bench.take("server", Offer)
    assert offer is not None
    assert offer.channel != old_client.channel
    # What is said of the old sockets now concerns nobody else.
    bench.say("client", Gone(old_client.cookie, "closed", Counters()))
    bench.say("server", Gone(old_server.cookie, "closed", Counters()))
    assert bench.leased() == BUFFER
    assert bench.registry.tables.channels[offer.channel].state is State.OFFERED


def test_a_refused_offer_keeps_its_buffer_until_both_ends_are_gone(bench: Bench) -> None:
    one, other = bench.establish()
    bench.say("client", Refused(one.channel, one.cookie, "no vector"))
    assert bench.leased() == BUFFER
    bench.say("server", Attached(other.channel, other.cookie))
    assert bench.connections()[0].state is State.OFFERED
    assert "no vector" in bench.connections()[0].detail
    bench.say("client", Gone(one.cookie, "closed", Counters()))
    bench.say("server", Gone(other.cookie, "closed", Counters()))
    assert bench.leased() == 0


def test_history_is_limited(bench: Bench) -> None:
    for _ in range(HISTORY + 10):
        bench.say("client", Gone(bench.announce("client", CLIENT, SERVER), "closed", Counters()))
    assert len(bench.connections()) == HISTORY


# --- what a guest may not -----------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["10.77.0.12", "192.0.2.1", "0.0.0.0", "fd77::12"])
def test_an_address_of_somebody_else_cannot_be_announced(bench: Bench, address: str) -> None:
    cookie = bench.announce("outsider", Endpoint(address, 80), CLIENT)
    verdict = bench.take("outsider", Verdict)
    assert verdict is not None
    assert verdict.cookie == cookie
    assert not bench.connections()
    bench.announce("client", CLIENT, Endpoint(address, 80))
    assert not any(isinstance(message, Offer) for message in bench.sent["client"])


def test_a_listener_can_be_at_own_addresses_and_wildcards_only(bench: Bench) -> None:
    for cookie, address in enumerate(("10.77.0.11", "fd77::11", "0.0.0.0", "::", "127.0.0.1", "10.77.0.12")):
        bench.say("client", Listen(cookie, Endpoint(address, 80), "p", 1))
    guest = bench.registry.tables.guests["client"]
    assert len(guest.listeners) == 5
    assert guest.refused == 1
    agent = report_agents(bench.registry, bench.now)["client"]
    assert {"address": "::", "port": 80, "program": "p", "pid": 1} in agent["listeners"]
    bench.say("client", Unlisten(0))
    bench.say("client", Unlisten(77))
    assert len(guest.listeners) == 4


def test_what_one_guest_can_take_is_limited(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MAX_LISTENERS", 3)
    monkeypatch.setattr(connections, "MAX_ENDS", 3)
    for number in range(5):
        bench.say("client", Listen(number, CLIENT, "p", 1))
        bench.announce("client", Endpoint("10.77.0.11", number), SERVER)
    guest = bench.registry.tables.guests["client"]
    assert (len(guest.listeners), len(guest.ends), guest.refused) == (3, 3, 4)
    verdict = bench.take("client", Verdict)
    assert verdict is not None
    assert verdict.reason is Reason.LIMIT


def test_words_about_other_guests_connections_are_ignored(bench: Bench) -> None:
    one, other = bench.establish()
    for message in (
        Gone(one.cookie, "forged", Counters()),
        Attached(one.channel, one.cookie),
        Refused(one.channel, other.cookie, "forged"),
        Stats(1, (EndStats(one.cookie, Counters(shared_sent=99)),), True),
    ):
        bench.say("outsider", message)
    (connection,) = bench.connections()
    assert (connection.state, connection.detail) == (State.OFFERED, "")
    assert all(not end.gone and end.counters == Counters() for end in connection.ends)
    assert bench.leased() == BUFFER


def test_a_cookie_cannot_change_its_connection(bench: Bench) -> None:
    cookie = bench.announce("client", CLIENT, SERVER)
    bench.say("client", Announce(cookie, CLIENT, OUTSIDER, Role.CONNECT, "p", 1))
    assert bench.registry.tables.guests["client"].refused == 1
    (connection,) = bench.connections()
    assert connection.ends[0].remote == SERVER


# --- counters -----------------------------------------------------------------------------------------------


def test_a_query_is_done_when_all_agents_have_answered_or_cannot(bench: Bench) -> None:
    one, other = bench.establish()
    done: list[bool] = []
    number = bench.registry.query(lambda: done.append(True))
    for name in ADDRESSES:
        assert bench.take(name, Query) == Query(number)
    bench.say("client", Stats(number, (EndStats(one.cookie, Counters(shared_sent=7)),), False))
    bench.say("client", Stats(number, (), True))
    bench.say("server", Stats(number, (EndStats(other.cookie, Counters(shared_sent=8)),), True))
    assert not done
    bench.registry.port_closed("outsider")
    assert done == [True]
    (row,) = report_connections(bench.registry, bench.now)
    assert (row["to_server"]["shared"], row["to_client"]["shared"]) == (7, 8)


def test_a_query_of_nobody_is_done_at_once(tmp_path: Path) -> None:
    done: list[bool] = []
    Bench(tmp_path).registry.query(lambda: done.append(True))
    assert done == [True]


# --- guests that go and come --------------------------------------------------------------------------------


def test_a_dead_guests_partner_hears_so_and_the_lease_returns(bench: Bench) -> None:
    one, _ = bench.establish()
    bench.registry.guest_died("server", "nobody listens at its port")
    assert bench.take("client", PeerGone) == PeerGone(one.channel, Fate.VANISHED)
    assert bench.leased() == BUFFER
    bench.say("client", Gone(one.cookie, "closed", Counters()))
    assert bench.leased() == 0


def test_a_rebooted_guest_has_lost_everything(bench: Bench) -> None:
    one, _ = bench.establish()
    bench.boot_ids["server"] = "another boot"
    bench.connect("server")
    assert bench.take("client", PeerGone) == PeerGone(one.channel, Fate.VANISHED)
    assert bench.registry.tables.guests["server"].presence is Presence.TALKING
    bench.say("client", Gone(one.cookie, "closed", Counters()))
    bench.establish(5001)


def test_a_silent_agents_channels_go_on_and_its_listeners_do_not(bench: Bench) -> None:
    one, _ = bench.establish()
    bench.say("server", Listen(1, SERVER, "p", 1))
    for name in ADDRESSES:
        bench.say(name, Ping(1))
    bench.now += LEASE_SECONDS - 1
    bench.registry.tick()
    bench.say("client", Ping(2))
    bench.sent.clear()
    bench.now += 2
    bench.registry.tick()
    guest = bench.registry.tables.guests["server"]
    assert (guest.presence, guest.listeners) == (Presence.SILENT, {})
    assert bench.take("server", Call)
    assert not bench.sent["client"]
    assert bench.leased() == BUFFER
    assert bench.registry.tables.channels[one.channel].state is State.OFFERED


def test_an_end_of_a_silent_agent_is_offered_when_it_is_back(bench: Bench) -> None:
    cookie = bench.announce("server", SERVER, CLIENT)
    bench.registry.port_closed("server")
    bench.announce("client", CLIENT, SERVER)
    assert not any(isinstance(message, Offer) for message in bench.sent["client"])
    bench.connect("server", settle=False)
    bench.say("server", Announce(cookie, SERVER, CLIENT, Role.UNKNOWN, "p", 1))
    bench.say("server", Settled())
    assert bench.take("server", Offer)
    assert bench.take("client", Offer)


def test_what_a_returned_agent_does_not_name_is_gone(bench: Bench) -> None:
    one, _ = bench.establish()
    bench.say("server", Listen(1, SERVER, "p", 1))
    bench.registry.port_closed("server")
    bench.connect("server")
    assert bench.take("client", PeerGone) == PeerGone(one.channel, Fate.CLOSED)
    assert not bench.registry.tables.guests["server"].listeners


def test_removed_guests_are_dead(bench: Bench) -> None:
    one, _ = bench.establish()
    rest = {name: addresses for name, addresses in ADDRESSES.items() if name != "server"}
    bench.registry.configure(rest, Rules({"shared": HeapMembership("shared", frozenset(rest), RING)}))
    assert PeerGone(one.channel, Fate.VANISHED) in bench.sent["client"]
    assert "server" not in bench.registry.tables.guests
