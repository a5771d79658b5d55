from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.errors import UserError
from lab.impairment import DIRECTIONS, FROM_GUEST, TO_GUEST, Impairment, LinkImpairment, parse
from lab.link_relay import LIMIT, Direction


def test_values_are_read_in_their_units():
    assert parse(["delay=20ms", "jitter=500us", "loss=1.5%", "rate=10mbit"]) == {
        "delay": pytest.approx(0.02),
        "jitter": pytest.approx(0.0005),
        "loss": 0.015,
        "rate": 10_000_000,
    }
    assert parse(["delay=0", "loss=0%", "rate=0"]) == {"delay": 0, "loss": 0, "rate": 0}


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("dely=20ms", "did you mean 'delay'"),
        ("corrupt=1%", "there are delay, jitter, loss, rate"),
        ("delay", "has no value"),
        ("delay=20", "such as 20ms"),
        ("delay=2m", "such as 20ms"),
        ("delay=61s", "up to 60s"),
        ("loss=101%", "a percentage"),
        ("loss=0.01", "such as 1%"),
        ("rate=10", "such as 10mbit"),
        ("rate=1kbit", "from 8kbit"),
        ("rate=-1mbit", "such as 10mbit"),
    ],
)
def test_what_is_wrong_is_said_with_what_is_valid(word, told):
    with pytest.raises(UserError, match=told):
        parse([word])


def test_more_jitter_than_delay():
    with pytest.raises(UserError, match="before it was sent"):
        LinkImpairment().changed(parse(["jitter=1ms"]), DIRECTIONS)


def test_what_is_not_named_stays():
    both = LinkImpairment().changed(parse(["delay=20ms", "loss=1%"]), DIRECTIONS)
    one = both.changed(parse(["loss=0", "rate=1gbit"]), [TO_GUEST])
    assert one.to_guest.words() == "delay=20ms rate=1gbit"
    assert one.from_guest.words() == "delay=20ms loss=1%"
    assert one.changed(parse(["delay=0", "rate=0"]), [TO_GUEST]).to_guest.is_none()
    assert not one.changed(parse(["delay=0", "rate=0"]), [TO_GUEST]).is_none()
    assert LinkImpairment.from_json(json.loads(json.dumps(asdict(one)))) == one


def test_words_for_netem():
    assert Impairment().qdisc() == ["netem", "limit", "1000"]
    asked = LinkImpairment().changed(
        parse(["delay=20ms", "jitter=2ms", "loss=1%", "rate=10mbit"]), [FROM_GUEST]
    )
    assert " ".join(asked.from_guest.qdisc()) == (
        "netem limit 1000 delay 20000us 2000us loss random 1.000000% rate 10000000bit"
    )


# --- one direction of the relay


def frame(size, label=b""):
    return b"", label.ljust(size, b"x")


def test_delay():
    direction = Direction(Impairment(delay=0.5))
    direction.put(frame(100), 10.0)
    assert direction.next_due() == 10.5
    assert direction.take(10.4) is None
    assert direction.take(10.5) == frame(100)
    assert direction.next_due() is None


def test_rate_spaces_frames_by_their_size():
    direction = Direction(Impairment(rate=8000, delay=1.0))
    for size in (1000, 500, 1):
        direction.put(frame(size), 0.0)
    dues = []
    while (due := direction.next_due()) is not None:
        dues.append(due)
        direction.take(due)
    assert dues == pytest.approx([2.0, 2.5, 2.501])
    direction.put(frame(1000), 100.0)
    assert direction.next_due() == 102.0, "a line that was idle has saved nothing"


def test_loss():
    draws = iter([0.2, 0.3, 0.29])
    direction = Direction(Impairment(loss=0.3), chance=lambda: next(draws))
    for _ in range(3):
        direction.put(frame(1), 0.0)
    assert direction.dropped == 2
    assert direction.take(0.0) is not None
    assert direction.take(0.0) is None


def test_a_full_queue_drops():
    direction = Direction(Impairment(delay=1.0))
    for _ in range(LIMIT // 1000 + 5):
        direction.put(frame(1000), 0.0)
    assert direction.dropped == 5


@given(
    st.lists(st.tuples(st.floats(0, 0.1), st.floats(0, 1)), max_size=40),
    st.floats(0, 1),
    st.integers(0, 10**6),
)
def test_frames_keep_their_order_and_are_never_early(steps, delay, rate):
    draws = iter([draw for _, draw in steps])
    direction = Direction(Impairment(delay=delay, jitter=delay, rate=rate), chance=lambda: next(draws))
    now = 0.0
    for number, (step, _) in enumerate(steps):
        now += step
        direction.put((str(number).encode(), b"frame"), now)
    taken = []
    while (due := direction.next_due()) is not None:
        arrived = direction.take(due)
        assert arrived is not None
        taken.append(int(arrived[0]))
    assert taken == list(range(len(steps)))


def test_a_change_frees_what_waits_for_a_slow_line():
    direction = Direction(Impairment(rate=8000, delay=60.0))
    for label in (b"1", b"2", b"3"):
        direction.put(frame(1000, label), 0.0)
    direction.change(Impairment(delay=0.1), 1.0)
    direction.put(frame(1000, b"4"), 1.0)
    order = []
    while (arrived := direction.take(1.1)) is not None:
        order.append(arrived[1][:1])
    assert order == [b"1", b"2", b"3", b"4"]
