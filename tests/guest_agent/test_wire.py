"""The wire format: what is written is read back, what is not well-formed is a WireError and nothing else."""

from __future__ import annotations

import contextlib
import json
import typing
from dataclasses import fields, replace
from enum import Enum

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest_agent import records as record_types
from guest_agent import wire
from guest_agent.messages import (
    MESSAGES,
    Announce,
    Buffer,
    Counters,
    EndStats,
    FastPath,
    Lookup,
    Message,
    Offer,
    Path,
    Ping,
    Pong,
    Reset,
    Role,
    Stats,
    Verdict,
)
from guest_agent.records import Endpoint, Record, WireError, canonical_address
from guest_agent.wire import MARKER, MAX_FRAME, FrameReader, decode, encode

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
PRINTABLE = st.sampled_from('aZ09 .-/:"\\ü€𝄞')
ADDRESS = st.ip_addresses().map(lambda address: canonical_address(str(address)))
ENDPOINT = st.builds(Endpoint, ADDRESS, U16)


def strategy_for(hint: object) -> st.SearchStrategy[typing.Any]:
    """Return a strategy of valid values for a field annotated with `hint`."""
    text = st.text(PRINTABLE, max_size=255)
    known: dict[object, st.SearchStrategy[typing.Any]] = {
        record_types.U16: U16,
        record_types.U32: U32,
        record_types.U64: U64,
        record_types.Side: st.integers(0, 1),
        record_types.Address: ADDRESS,
        record_types.Name: text.map(lambda value: value[:64]),
        record_types.Text: text,
        Endpoint: ENDPOINT,
        bool: st.booleans(),
        record_types.Address | None: st.none() | ADDRESS,
    }
    if hint in known:
        return known[hint]
    if typing.get_origin(hint) is tuple:
        return st.lists(strategy_for(typing.get_args(hint)[0]), max_size=4).map(tuple)
    assert isinstance(hint, type)
    if issubclass(hint, Enum):
        return st.sampled_from(hint)
    return records(hint)


def records(kind: type[typing.Any]) -> st.SearchStrategy[typing.Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{field.name: strategy_for(hints[field.name]) for field in fields(kind)})


MESSAGE = st.sampled_from(sorted(MESSAGES)).flatmap(lambda code: records(MESSAGES[code]))


def drain(reader: FrameReader) -> tuple[list[Message], int]:
    """Pop all that there is: the messages and the number of errors."""
    messages, errors = [], 0
    while True:
        try:
            message = reader.pop()
        except WireError:
            errors += 1
            continue
        if message is None:
            return messages, errors
        messages.append(message)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(MESSAGE)
def test_every_message_survives_the_wire(message: Message) -> None:
    frame = encode(message).removeprefix(MARKER)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    assert b"\xff" * 8 not in frame
    assert decode(frame[4:]) == message


@given(st.lists(MESSAGE, max_size=6), st.data())
def test_reader_does_not_care_how_the_stream_is_cut(messages: list[Message], data: st.DataObject) -> None:
    stream = MARKER + b"".join(map(encode, messages))
    reader = FrameReader()
    got: list[Message] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        reader.feed(stream[:cut])
        stream = stream[cut:]
        popped, errors = drain(reader)
        assert not errors
        got += popped
    assert got == messages


@given(MESSAGE, MESSAGE, st.data())
def test_marker_mends_a_stream_that_starts_or_breaks_in_a_frame(
    lost: Message, kept: Message, data: st.DataObject
) -> None:
    frame = encode(lost).removeprefix(MARKER)
    head = frame[: data.draw(st.integers(0, len(frame) - 1), label="cut at")]
    tail = frame[data.draw(st.integers(1, len(frame)), label="starts at") :]
    reader = FrameReader()
    for piece in (tail, MARKER, head, MARKER, encode(kept)):
        reader.feed(piece)
    assert drain(reader) == ([kept], 0)


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=300) | st.just(MARKER) | MESSAGE.map(encode), max_size=20))
def test_any_stream_gives_messages_or_wire_errors_in_bounded_memory(pieces: list[bytes]) -> None:
    reader = FrameReader()
    for piece in pieces:
        reader.feed(piece)
        drain(reader)
        assert len(reader._buffer) <= MAX_FRAME + 4
    reader.feed(MARKER + encode(Ping(7)))
    assert drain(reader)[0][-1] == Ping(7)


@given(st.binary(max_size=200))
def test_any_frame_is_a_message_or_a_wire_error(body: bytes) -> None:
    for code in MESSAGES:
        with contextlib.suppress(WireError):
            decode(bytes((wire.VERSION, code)) + body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@given(MESSAGE, JSON, st.data())
def test_a_message_with_one_strange_value_is_read_or_refused(
    message: Message, value: object, data: st.DataObject
) -> None:
    body = message.to_json()
    if not body:
        return
    body[data.draw(st.sampled_from(sorted(body)))] = value
    with contextlib.suppress(WireError):
        assert type(decode(bytes((wire.VERSION, message.code)) + json.dumps(body).encode())) is type(message)


def frame_of(code: int, body: object) -> bytes:
    return bytes((wire.VERSION, code)) + json.dumps(body).encode()


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        (b"\x01", "frame too short"),
        (b"\x02\x12{}", "protocol version 2, this side speaks 1"),
        (b"\x01\xfe{}", "unknown message type 0xfe"),
        (b"\x01\x12[1", "Ping: body is not JSON"),
        (b"\x01\x12\xff{}", "Ping: body is not JSON"),
        (b'\x01\x12{"sequence":NaN}', "Ping: body is not JSON"),
        (b"\x01\x12" + b"[" * 60000, "Ping: body is not JSON"),
        (b'\x01\x12{"sequence":' + b"9" * 5000 + b"}", "Ping: body is not JSON"),
        (frame_of(Ping.code, []), "Ping: not an object"),
        (frame_of(Ping.code, {}), "Ping: key 'sequence' is missing"),
        (frame_of(Ping.code, {"sequence": 1, "x": 2}), "Ping: unknown key 'x'"),
        (frame_of(Ping.code, {"sequence": True}), "Ping.sequence: not an integer of 0..4294967295"),
        (frame_of(Ping.code, {"sequence": 1.0}), "Ping.sequence: not an integer of 0..4294967295"),
        (frame_of(Ping.code, {"sequence": 2**32}), "Ping.sequence: not an integer of 0..4294967295"),
        (
            frame_of(Lookup.code, {"id": 1, "endpoint": ["10.0.0.1"]}),
            "Lookup.endpoint: not an [address, port] pair",
        ),
        (
            frame_of(Lookup.code, {"id": 1, "endpoint": ["10.0.0.01", 1]}),
            "Lookup.endpoint: not an IP address in canonical form",
        ),
        (
            frame_of(Lookup.code, {"id": 1, "endpoint": ["::ffff:10.0.0.1", 1]}),
            "Lookup.endpoint: not an IP address in canonical form",
        ),
        (
            frame_of(Lookup.code, {"id": 1, "endpoint": ["fe80::1%eth0", 1]}),
            "Lookup.endpoint: not an IP address in canonical form",
        ),
        (
            frame_of(Verdict.code, {"cookie": 1, "where": "Nowhere", "reason": "policy", "detail": ""}),
            "Verdict.where: not one of External, SharedHypervisor, SharedOS, SharedVM",
        ),
        (
            frame_of(Verdict.code, {"cookie": 1, "where": "External", "reason": "policy", "detail": "a\nb"}),
            "Verdict.detail: not printable text of at most 255 characters",
        ),
        (frame_of(Stats.code, {"id": 1, "last": 1, "ends": []}), "Stats.last: not a truth value"),
        (
            frame_of(Stats.code, {"id": 1, "last": True, "ends": [{}] * 513}),
            "Stats.ends: not a list of at most 512",
        ),
        (
            frame_of(Stats.code, {"id": 1, "last": True, "ends": [{"cookie": -1, "counters": {}}]}),
            "Stats.ends.cookie: not an integer of 0..18446744073709551615",
        ),
    ],
)
def test_what_is_refused_and_why(frame: bytes, what: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(frame)
    assert str(caught.value) == what


def test_a_length_over_the_limit_is_refused_at_once() -> None:
    reader = FrameReader()
    reader.feed(MARKER + (MAX_FRAME + 1).to_bytes(4, "big"))
    with pytest.raises(WireError, match=r"limit 3\.\.65536"):
        reader.pop()
    assert not reader.synchronised


def test_a_message_that_does_not_fit_is_refused_by_the_writer() -> None:
    ends = tuple(
        EndStats(2**64 - 1, Counters(2**64 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 1)) for _ in range(500)
    )
    with pytest.raises(WireError, match="limit 65536"):
        encode(Stats(1, ends, True))


def test_a_full_list_of_counters_of_ordinary_size_fits() -> None:
    end = EndStats(2**40, Counters(2**40, 2**40, 2**40, 2**40, Path.SHARED, Path.SHARED, 2**40, 2**40))
    assert len(encode(Stats(1, (end,) * 200, True))) < MAX_FRAME


def test_nothing_is_read_before_the_first_marker() -> None:
    reader = FrameReader()
    reader.feed(encode(Pong(1)))
    assert reader.pop() is None
    reader.feed(MARKER + encode(Reset(5)))
    assert drain(reader) == ([Reset(5)], 0)
    assert reader.skipped == len(encode(Pong(1)))


def test_lose_forgets_the_half_read_frame() -> None:
    reader = FrameReader()
    reader.feed(MARKER + encode(Pong(1))[:-1])
    assert reader.pop() is None
    reader.lose()
    reader.feed(encode(Pong(1))[-1:] + encode(Pong(2)))
    assert drain(reader) == ([], 0)


def test_type_numbers_are_unique_and_every_message_is_a_record() -> None:
    assert len({kind.__name__ for kind in MESSAGES.values()}) == len(MESSAGES)
    assert all(issubclass(kind, Record) and kind.code == code for code, kind in MESSAGES.items())


def test_records_in_messages_are_read_as_records() -> None:
    offer = Offer(9, 4, 1, FastPath.SHARED_HYPERVISOR, Buffer("u-u", 4096, 12288, 4096, 3), 2)
    assert decode(encode(offer)[4:]) == offer
    announce = Announce(1, Endpoint("fd77::1", 80), Endpoint("fd77::2", 90), Role.ACCEPT, "a b", 3)
    assert decode(encode(announce)[4:]) == announce
    assert decode(encode(replace(announce, program="ünï"))[4:]) == replace(announce, program="ünï")
