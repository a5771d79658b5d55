from __future__ import annotations

import struct

from lab.capture import format_record
from lab.packet_socket import put_tag_back

FRAME = bytes(range(12)) + b"\x08\x00payload"
VALID, WITH_PROTOCOL = 1 << 4, 1 << 6


def auxdata(status, tci=0, protocol=0):
    return struct.pack("=IIIHHHH", status, 0, 0, 0, 0, tci, protocol)


def test_a_frame_without_a_tag_stays_as_it_is():
    assert put_tag_back(b"", FRAME, auxdata(0, 5)) == (b"", FRAME)
    assert put_tag_back(b"", b"short", auxdata(VALID, 5)) == (b"", b"short")


def test_a_tag_goes_behind_the_addresses():
    tagged = FRAME[:12] + b"\x81\x00\x20\x05" + FRAME[12:]
    assert put_tag_back(b"", FRAME, auxdata(VALID, 0x2005)) == (b"", tagged)
    tagged = FRAME[:12] + b"\x88\xa8\x20\x05" + FRAME[12:]
    assert put_tag_back(b"", FRAME, auxdata(VALID | WITH_PROTOCOL, 0x2005, 0x88A8)) == (b"", tagged)


def test_a_tag_moves_the_checksum_that_is_to_be_filled_in():
    header = struct.pack("=BBHHHH", 1, 1, 54, 1448, 34, 16)
    moved, _ = put_tag_back(header, FRAME, auxdata(VALID, 5))
    assert struct.unpack("=BBHHHH", moved) == (1, 1, 58, 1448, 38, 16)


def test_a_record_of_a_capture():
    record = format_record(3_000_001_500, FRAME)
    assert record == struct.pack("=IIII", 3, 1, len(FRAME), len(FRAME)) + FRAME
