"""A registry that begins again finds its leases in the broker's books, and the rest at its agents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from registry_harness import ADDRESSES, RING, Bench

from guest_agent.messages import (
    Announce,
    Buffer,
    Counters,
    FastPath,
    Fate,
    Gone,
    Hold,
    Offer,
    PeerGone,
    Role,
    Settled,
)
from guest_agent.records import Endpoint
from lab.registry.tables import State

CLIENT, SERVER = Endpoint("10.77.0.11", 5000), Endpoint("10.77.0.12", 80)
BUFFER = 4096 + 2 * RING
ENDS = {"client": (CLIENT, SERVER, Role.CONNECT), "server": (SERVER, CLIENT, Role.ACCEPT)}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    for name in ADDRESSES:
        bench.connect(name)
    bench.sent.clear()
    return bench


def come_back(bench: Bench, name: str, offer: Offer, *, hold: bool = True) -> None:
    """Let an agent open a conversation and tell of its end of the channel."""
    bench.connect(name, settle=False)
    bench.say(name, Announce(offer.cookie, *ENDS[name], "p", 1))
    if hold:
        bench.say(name, Hold(offer.cookie, offer.channel, offer.side, offer.fast_path, offer.buffer))
    bench.say(name, Settled())


def test_channels_go_on_and_are_freed_as_ever(bench: Bench) -> None:
    one, other = bench.establish()
    bench.restart()
    assert bench.leased() == BUFFER
    come_back(bench, "client", one)
    come_back(bench, "server", other)
    assert not bench.sent["client"]
    assert not bench.sent["server"]
    (connection,) = bench.connections()
    assert (connection.state, connection.channel) == (State.SHARED, one.channel)
    assert connection.where is FastPath.SHARED_HYPERVISOR
    bench.say("client", Gone(one.cookie, "closed", Counters()))
    bench.say("server", Gone(other.cookie, "closed", Counters()))
    assert bench.leased() == 0


def test_new_leases_do_not_touch_old_ones_nor_repeat_their_numbers(bench: Bench) -> None:
    one, _ = bench.establish()
    bench.restart()
    for name in ADDRESSES:
        bench.connect(name, settle=False)
    new, _ = bench.establish(6000)
    assert new.channel > one.channel
    assert new.buffer.generation != one.buffer.generation
    assert abs(new.buffer.offset - one.buffer.offset) >= BUFFER


def test_an_agent_that_returns_without_its_end_lets_go(bench: Bench) -> None:
    one, _ = bench.establish()
    bench.restart()
    come_back(bench, "client", one)
    bench.connect("server")
    assert bench.take("client", PeerGone) == PeerGone(one.channel, Fate.CLOSED)
    bench.say("client", Gone(one.cookie, "closed", Counters()))
    assert bench.leased() == 0


@pytest.mark.parametrize("death_first", [True, False])
def test_a_guest_that_died_meanwhile_is_a_vanished_peer(bench: Bench, death_first: bool) -> None:
    one, _ = bench.establish()
    bench.restart()
    if death_first:
        bench.registry.guest_died("server", "nobody listens")
    come_back(bench, "client", one)
    if not death_first:
        bench.registry.guest_died("server", "nobody listens")
    gone = bench.take("client", PeerGone)
    assert gone is not None
    assert gone.channel == one.channel
    bench.say("client", Gone(one.cookie, "closed", Counters()))
    assert bench.leased() == 0


def test_ends_that_ended_while_nobody_listened_are_let_go(bench: Bench) -> None:
    bench.establish()
    bench.restart()
    for name in ("client", "server"):
        bench.connect(name)
    assert bench.leased() == 0


def test_an_offer_that_was_lost_is_made_again(bench: Bench) -> None:
    _, other = bench.establish()
    bench.registry.port_closed("server")
    come_back(bench, "server", other, hold=False)
    again = bench.take("server", Offer)
    assert again == other


def test_a_hold_that_the_books_do_not_have_is_answered_with_a_vanished_peer(bench: Bench) -> None:
    one, _ = bench.establish()
    forged = [
        Hold(one.cookie, one.channel + 5, 0, FastPath.SHARED_HYPERVISOR, one.buffer),
        Hold(one.cookie, one.channel, 1, FastPath.SHARED_HYPERVISOR, one.buffer),
        Hold(one.cookie, one.channel, 0, FastPath.SHARED_HYPERVISOR, replace(one.buffer, heap="ab" * 16)),
        Hold(one.cookie, one.channel, 0, FastPath.SHARED_VM, Buffer("", 0, BUFFER, RING, 1)),
        Hold(one.cookie, 0, 0, FastPath.SHARED_HYPERVISOR, one.buffer),
    ]
    for hold in forged:
        bench.restart()
        bench.connect("client", settle=False)
        bench.say("client", Announce(one.cookie, *ENDS["client"], "p", 1))
        bench.say("client", hold)
        assert bench.take("client", PeerGone) == PeerGone(hold.channel, Fate.VANISHED)
        assert bench.connections()[0].channel == 0


def test_a_stranger_cannot_hold_the_channel_of_others(bench: Bench) -> None:
    one, _ = bench.establish()
    bench.restart()
    bench.connect("outsider", settle=False)
    bench.say("outsider", Announce(9, Endpoint("10.77.0.13", 1), SERVER, Role.CONNECT, "p", 1))
    for side in (0, 1):
        bench.say("outsider", Hold(9, one.channel, side, FastPath.SHARED_HYPERVISOR, one.buffer))
        assert bench.take("outsider", PeerGone) == PeerGone(one.channel, Fate.VANISHED)
    come_back(bench, "client", one)
    assert bench.registry.tables.channels[one.channel].ends[0].guest == "client"


def test_memory_of_a_guest_itself_is_held_again(bench: Bench) -> None:
    near, far = Endpoint("127.0.0.1", 5000), Endpoint("127.0.0.1", 80)
    bench.announce("client", near, far, Role.CONNECT)
    bench.announce("client", far, near, Role.ACCEPT)
    offers = [message for message in bench.sent["client"] if isinstance(message, Offer)]
    bench.restart()
    bench.connect("client", settle=False)
    for offer, (local, remote) in zip(offers, ((near, far), (far, near)), strict=True):
        bench.say("client", Announce(offer.cookie, local, remote, Role.UNKNOWN, "p", 1))
        bench.say("client", Hold(offer.cookie, offer.channel, offer.side, offer.fast_path, offer.buffer))
    bench.say("client", Settled())
    (connection,) = bench.connections()
    assert (connection.state, connection.channel) == (State.SHARED, offers[0].channel)
    assert not bench.sent["client"]


def test_a_number_that_a_guest_holds_is_not_given_out_again(bench: Bench) -> None:
    near, far = Endpoint("127.0.0.1", 5000), Endpoint("127.0.0.1", 80)
    squatted = bench.broker.next_channel() + 1
    bench.announce("client", near, far)
    cookie = bench.cookies
    bench.say("client", Hold(cookie, squatted, 0, FastPath.SHARED_VM, Buffer("", 0, BUFFER, RING, 1)))
    one, _ = bench.establish()
    assert one.channel > squatted
