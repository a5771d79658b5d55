"""Impairs a link where the host's kernel has no netem: a process that carries the frames between a tap and
its bridge, late, less or slower.

    python -m lab.link_relay TAP PEER FILE

Runs in the lab's network namespace, with the tap out of the bridge and PEER's other end in it. FILE holds the
impairment (`lab.impairment`); SIGHUP reads it again, with no frame lost. SIGTERM ends it, and so does the end
of the tap. It knows large frames only as a whole, as netem does: loss takes all of one.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lab.impairment import Impairment, LinkImpairment
from lab.packet_socket import PacketSocket

#: Bytes that wait in a direction before more are thrown away: netem's 1000 frames.
LIMIT = 1000 * 1514

#: Frames that are taken from one side before the other gets its turn.
_BATCH = 64

Frame = tuple[bytes, bytes]


class Direction:
    """The frames under way in one direction: which are dropped, and when each of the others is due."""

    def __init__(self, impairment: Impairment, *, chance: Callable[[], float] = random.random) -> None:
        self.impairment = impairment
        self.dropped = 0
        self._chance = chance
        self._queue: list[tuple[float, int, Frame]] = []
        self._bytes = 0
        self._numbers = itertools.count()
        self._line_free = 0.0
        self._last_due = 0.0

    def change(self, impairment: Impairment, now: float) -> None:
        """Treat what comes from now on like this. What is under way arrives at once: it may be waiting for a
        line that was slow.
        """
        self.impairment = impairment
        self._queue = [(now, number, frame) for _, number, frame in self._queue]
        heapq.heapify(self._queue)
        self._line_free = self._last_due = now

    def put(self, frame: Frame, now: float) -> None:
        """Take in a frame that was sent at `now`."""
        impairment = self.impairment
        size = len(frame[1])
        if self._bytes + size > LIMIT or (impairment.loss and self._chance() < impairment.loss):
            self.dropped += 1
            return
        due = now
        if impairment.rate:
            self._line_free = max(now, self._line_free) + size * 8 / impairment.rate
            due = self._line_free
        due += impairment.delay
        if impairment.jitter:
            due += impairment.jitter * (2 * self._chance() - 1)
        # A wire does not reorder.
        self._last_due = due = max(due, self._last_due, now)
        heapq.heappush(self._queue, (due, next(self._numbers), frame))
        self._bytes += size

    def take(self, now: float) -> Frame | None:
        """The next frame that has arrived by `now`, or None."""
        if not self._queue or self._queue[0][0] > now:
            return None
        frame = heapq.heappop(self._queue)[2]
        self._bytes -= len(frame[1])
        return frame

    def next_due(self) -> float | None:
        """When the next frame arrives; None if there is none."""
        return self._queue[0][0] if self._queue else None


class Relay:
    """Two interfaces and what is under way between them."""

    def __init__(self, tap: PacketSocket, peer: PacketSocket, impairment: LinkImpairment) -> None:
        self._directions = {tap: Direction(impairment.from_guest), peer: Direction(impairment.to_guest)}
        self._sinks = {tap: peer, peer: tap}
        self._tap = tap

    def change(self, impairment: LinkImpairment) -> None:
        """Treat the frames that come from now on like this."""
        for source, direction in self._directions.items():
            wanted = impairment.from_guest if source is self._tap else impairment.to_guest
            if direction.impairment != wanted:
                direction.change(wanted, time.monotonic())

    def receive(self, source: PacketSocket) -> None:
        """Take in what an interface has. Raises OSError if it is gone."""
        direction = self._directions[source]
        for _ in range(_BATCH):
            frame = source.receive()
            if frame is None:
                break
            direction.put(frame, time.monotonic())

    def deliver(self) -> None:
        """Send what has arrived. Raises OSError if an interface is gone."""
        now = time.monotonic()
        for source, direction in self._directions.items():
            while (frame := direction.take(now)) is not None:
                self._sinks[source].send(*frame)

    def wait_seconds(self) -> float | None:
        """How long nothing will arrive of what is under way."""
        dues = [due for each in self._directions.values() if (due := each.next_due()) is not None]
        return max(0.0, min(dues) - time.monotonic()) if dues else None


def read(file: Path) -> LinkImpairment:
    """The impairment that a file of `lab.link` holds."""
    return LinkImpairment.from_json(json.loads(file.read_text())["impairment"])


def run(tap_name: str, peer_name: str, file: Path) -> None:
    """Carry frames until SIGTERM. Raises OSError if an interface is or goes away."""
    wake, woken = socket.socketpair()
    for end in (wake, woken):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    with (
        wake,
        woken,
        selectors.DefaultSelector() as selector,
        PacketSocket(tap_name, offloads=True, incoming_only=True) as tap,
        PacketSocket(peer_name, offloads=True, incoming_only=True) as peer,
    ):
        relay = Relay(tap, peer, read(file))
        for source in (tap, peer, woken):
            selector.register(source, selectors.EVENT_READ)
        sys.stderr.write(f"link relay {tap_name}: ready\n")
        sys.stderr.flush()
        while True:
            for key, _ in selector.select(relay.wait_seconds()):
                if key.fileobj is woken:
                    if set(woken.recv(64)) - {signal.SIGHUP}:
                        return
                    relay.change(read(file))
                else:
                    assert isinstance(key.fileobj, PacketSocket)
                    relay.receive(key.fileobj)
            relay.deliver()


def main(argv: list[str]) -> int:
    """Run the relay; returns the exit code."""
    try:
        run(argv[0], argv[1], Path(argv[2]))
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"link relay {argv[0]}: ends: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
