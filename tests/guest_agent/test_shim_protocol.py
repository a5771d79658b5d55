"""The agent's view of the packets against the C header."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent import shim_protocol
from guest_agent.records import Endpoint
from guest_agent.shim_protocol import Packet, Type, unpack
from ivshmem import core

NUMBERS = {
    "pid": 4,
    "cookie": 8,
    "offset": 8,
    "length": 8,
    "channel": 8,
    "end": 4,
    "heap": 4,
    "slot": 4,
    "peer_id": 4,
    "side": 4,
    "generation": 4,
    "agent_epoch": 4,
    "reason": 4,
}


@pytest.fixture
def layout() -> dict[str, int]:
    return core.layout()["hh_message"]


def test_a_packet_is_as_long_as_the_struct(layout: dict[str, int]) -> None:
    assert len(Packet(Type.HELLO).pack()) == shim_protocol.SIZE == layout["size"]
    assert core.layout()["hh_address"]["size"] == 24


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_each_number_stands_where_the_struct_has_it(layout: dict[str, int], name: str) -> None:
    value = (1 << 8 * NUMBERS[name]) - 2
    data = Packet(Type.GRANT, **{name: value}).pack()  # type: ignore[arg-type]
    plain = Packet(Type.GRANT).pack()
    at = layout[name]
    assert int.from_bytes(data[at : at + NUMBERS[name]], "little") == value
    assert data[:at] == plain[:at]
    assert data[at + NUMBERS[name] :] == plain[at + NUMBERS[name] :]
    packet = unpack(data)
    assert packet is not None
    assert getattr(packet, name) == value


def test_addresses_stand_where_the_struct_has_them(layout: dict[str, int]) -> None:
    local, remote = Endpoint("10.0.0.1", 0x1234), Endpoint("fd77::1", 80)
    data = Packet(Type.ANNOUNCE, local=local, remote=remote).pack()
    at = layout["local"]
    assert data[at : at + 4] == b"\x02\x00\x34\x12"
    assert data[at + core.layout()["hh_address"]["addr"] :][:4] == bytes((10, 0, 0, 1))
    assert data[layout["remote"] : layout["remote"] + 2] == b"\x0a\x00"
    packet = unpack(data)
    assert packet is not None
    assert (packet.local, packet.remote) == (local, remote)


def test_program_names_are_made_printable_and_cut(layout: dict[str, int]) -> None:
    data = bytearray(Packet(Type.HELLO, program="x" * 40).pack())
    packet = unpack(bytes(data))
    assert packet is not None
    assert packet.program == "x" * 31
    data[layout["program"] : layout["program"] + 5] = b"a\n\xffb\0"
    packet = unpack(bytes(data))
    assert packet is not None
    assert packet.program == "a?\ufffdb"


@given(st.binary(min_size=shim_protocol.SIZE, max_size=shim_protocol.SIZE))
def test_any_bytes_are_a_packet_or_none(data: bytes) -> None:
    packet = unpack(data)
    assert (packet is not None) == (data[:2] == b"\x01\x00")
    packet = unpack(b"\x01\x00" + data[2:])
    assert packet is not None
    assert packet.program.isprintable()
    assert unpack(packet.pack()) is not None


def test_other_sizes_are_no_packets() -> None:
    data = Packet(Type.HELLO).pack()
    assert unpack(data[:-1]) is None
    assert unpack(data + b"x") is None
    assert unpack(b"") is None
