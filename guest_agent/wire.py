"""The conversation between an agent and the registry: frames and resynchronisation.

A conversation runs over one byte stream per guest: a virtio-serial port in the guest, a UNIX socket on the
host. `messages` has what is said.

Frame
    ``u32 length`` (big endian, of all that follows, 3..65536), ``u8 version``, ``u8 type``, then a UTF-8 JSON
    object. Unknown keys, missing keys, wrong types and values out of range are refused. Both sides treat what
    they read as hostile.

Marker and resynchronisation
    Either side may vanish and come back at any time, and the port in between may keep or drop bytes: QEMU
    drops what a guest writes while nobody is connected, a closing guest drops what it had not read, and what
    was half written goes to whoever connects next. So a reader may find itself in the middle of a frame.
    Eight 0xff bytes cannot occur in a well-formed frame (UTF-8 has no 0xff, and a length has at most two),
    therefore ``MARKER``, which starts with eight of them, is found wherever it stands, even in what looks
    like the body of a frame that was cut short.

    * A reader starts unsynchronised: it discards everything up to and including a MARKER. After a `WireError`
      it is unsynchronised again.
    * The agent opens a conversation: MARKER, ``Reset(session)`` with a random session, repeated with growing
      pauses until MARKER, ``Ready(session)`` with the same session arrives. Until then it ignores every other
      message. Then it says `Hello`, tells what it still has (`Listen`, `Announce`, `Hold`), and ends with
      `Settled`.
    * The registry answers each ``Reset(session)`` with MARKER, ``Ready(session)``. A session that it did not
      know ends the conversation before. Whenever it connects, or read nonsense, or heard nothing for a lease,
      it sends MARKER, ``Call()``, which asks the agent to open a new conversation.
    * An agent that reads nonsense, finds its port hung up, or gets no `Pong` within the lease opens a new
      conversation.
"""

from __future__ import annotations

import json
import typing
from typing import Any, Final

from .messages import MESSAGES, Call, Message, Ready, Reset
from .records import WireError

VERSION: Final = 1
MAX_FRAME: Final = 65536
MARKER: Final = b"\xff" * 8 + b"HYPRHEAP"

_HEADER: Final = 4

_dump = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, check_circular=False).encode


def encode(message: Message) -> bytes:
    """Return the frame of `message`, with a MARKER in front if it opens a conversation. WireError if it is
    too long or cannot be written.
    """
    try:
        body = _dump(message.to_json()).encode()
    except (UnicodeEncodeError, TypeError, ValueError) as error:
        raise WireError(f"cannot be written: {error}", type_name=type(message).__name__) from None
    length = len(body) + 2
    if length > MAX_FRAME:
        raise WireError(f"frame of {length} bytes, limit {MAX_FRAME}", type_name=type(message).__name__)
    frame = length.to_bytes(_HEADER, "big") + bytes((VERSION, message.code)) + body
    return MARKER + frame if isinstance(message, Reset | Ready | Call) else frame


def decode(frame: bytes | bytearray | memoryview) -> Message:
    """Return the message in `frame`, which is what follows the length: version, type, body. WireError if none
    is.
    """
    if len(frame) < 3:
        raise WireError("frame too short")
    if frame[0] != VERSION:
        raise WireError(f"protocol version {frame[0]}, this side speaks {VERSION}")
    kind = MESSAGES.get(frame[1])
    if kind is None:
        raise WireError(f"unknown message type {frame[1]:#04x}")
    try:
        body = json.loads(str(frame[2:], "utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise WireError("body is not JSON", type_name=kind.__name__) from None
    return typing.cast(Message, kind.from_json(body))


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


class FrameReader:
    """Takes a stream of bytes in pieces of any size and gives messages; see the module's rule of
    resynchronisation.

    Holds at most one frame and the last piece fed, provided that the caller pops until None after each
    `feed`. `skipped` counts bytes that were thrown away on the way to a MARKER.
    """

    def __init__(self) -> None:
        self.synchronised = False
        self.skipped = 0
        self._buffer = bytearray()
        self._scanned = 0  # no MARKER starts before this index of the buffer

    def feed(self, data: bytes) -> None:
        """Append what was read from the stream."""
        self._buffer += data

    def lose(self) -> None:
        """Forget everything: what comes next belongs to another stream, or is not to be trusted."""
        self.synchronised = False
        self.skipped += len(self._buffer)
        self._drop(len(self._buffer))

    def pop(self) -> Message | None:
        """Return the next message, or None when more bytes are needed. WireError unsynchronises the
        reader.
        """
        self._skip_to_marker()
        if not self.synchronised or len(self._buffer) < _HEADER:
            return None
        length = int.from_bytes(self._buffer[:_HEADER], "big")
        if length > MAX_FRAME or length < 3:
            if MARKER.startswith(self._buffer):
                return None
            self._fail(f"frame of {length} bytes, limit 3..{MAX_FRAME}")
        end = _HEADER + length
        if len(self._buffer) < end:
            return None
        frame = bytes(self._buffer[_HEADER:end])
        self._drop(end)
        try:
            return decode(frame)
        except WireError:
            self.synchronised = False
            raise

    def _fail(self, what: str) -> typing.NoReturn:
        self.synchronised = False
        raise WireError(what)

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._scanned = max(0, self._scanned - count)

    def _skip_to_marker(self) -> None:
        """Take away MARKERs at the front, and all in front of a MARKER that interrupts a frame or ends a
        search.
        """
        while True:
            at = self._find_marker()
            if at < 0:
                break
            self.skipped += at
            self._drop(at + len(MARKER))
            self.synchronised = True
        if not self.synchronised:
            keep = min(len(self._buffer), len(MARKER) - 1)
            self.skipped += len(self._buffer) - keep
            self._drop(len(self._buffer) - keep)

    def _find_marker(self) -> int:
        """Return the index of a MARKER that stands before the end of the first whole frame, or -1."""
        limit = len(self._buffer)
        if self.synchronised and limit >= _HEADER:
            length = int.from_bytes(self._buffer[:_HEADER], "big")
            if length <= MAX_FRAME:
                limit = min(limit, _HEADER + length + len(MARKER) - 1)
        at = self._buffer.find(MARKER, self._scanned, limit)
        if at < 0:
            self._scanned = max(self._scanned, limit - len(MARKER) + 1)
        return at
