"""Connections: from the first announcement to the history. The rules are in the package's docstring."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from guest_agent.messages import (
    Announce,
    Attached,
    Buffer,
    FastPath,
    Fate,
    Gone,
    Hold,
    Message,
    Offer,
    PeerGone,
    Reason,
    Refused,
    Release,
    Role,
    Verdict,
)
from lab.registry.broker_interface import Broker, Lease
from lab.registry.decision import Rules, locate, owns
from lab.registry.tables import Connection, End, Guest, Presence, State, Tables, key_of

MAX_ENDS: Final = 65536
"""Connections that one guest may have in the tables."""

CONTROL_PAGE: Final = 4096

log = logging.getLogger("registry")


class Connections:
    """Pairs announcements, decides, offers channels and takes them back.

    Args:
        tables: the registry's tables.
        broker: who leases buffers.
        clock: seconds that never go back.
        send: gives a message to a guest's agent.
        refuse: counts and logs a message that was not the guest's to say.
    """

    def __init__(
        self,
        tables: Tables,
        broker: Broker,
        *,
        clock: Callable[[], float],
        send: Callable[[Guest, Message], None],
        refuse: Callable[[Guest, Message, str], None],
    ) -> None:
        self.rules = Rules()
        self._tables = tables
        self._broker = broker
        self._clock = clock
        self._send = send
        self._refuse = refuse
        self._numbers = 0

    def announce(self, guest: Guest, message: Announce) -> None:
        """Take an end into the tables; offer a channel, give a verdict, or wait for the other end."""
        if message.cookie in guest.ends:
            self._confirm(guest, message)
            return
        if not owns(guest, message.local.address):
            self._refuse(guest, message, f"{message.local.address} is not its address")
            detail = "not an address of the lab"
            self._send(guest, Verdict(message.cookie, FastPath.EXTERNAL, Reason.EXTERNAL, detail))
            return
        if len(guest.ends) >= MAX_ENDS:
            self._refuse(guest, message, f"{MAX_ENDS} connections already")
            detail = "too many connections"
            self._send(guest, Verdict(message.cookie, FastPath.EXTERNAL, Reason.LIMIT, detail))
            return
        end = End(
            guest.name,
            message.cookie,
            message.local,
            message.remote,
            message.role,
            message.program,
            message.pid,
        )
        connection = self._connection_for(guest, end)
        connection.ends.append(end)
        guest.ends[end.cookie] = connection
        log.debug(
            "conn=%d guest=%s announce=%s remote=%s program=%r where=%s",
            *(connection.number, guest.name, end.local, end.remote, end.program, connection.where.value),
        )
        self.decide(connection)

    def _confirm(self, guest: Guest, message: Announce) -> None:
        """An agent tells again of an end that is known: one of the two was away, or a fork told it too."""
        connection = guest.ends[message.cookie]
        end = connection.end_at(guest.name, message.cookie)
        if end is None or (end.local, end.remote) != (message.local, message.remote):
            self._refuse(guest, message, "the cookie belongs to another connection")
            return
        end.confirmed = True
        if connection.reason is not None:
            verdict = Verdict(end.cookie, connection.where, connection.reason, connection.detail[:255])
            self._send(guest, verdict)

    def _connection_for(self, guest: Guest, end: End) -> Connection:
        """Return the connection that lacks this end, or a new one."""
        key = key_of(guest.name, end.local, end.remote)
        connection = self._tables.open_connection(key)
        if connection is not None:
            same = connection.end_with_local(end.local)
            if same is None and len(connection.ends) < 2:
                if connection.channel:
                    end.side = 1 - connection.ends[0].side
                return connection
            # The kernel gives a pair of endpoints to one socket at a time: whoever had it here is gone.
            if same is not None and same.guest == end.guest:
                self.end_gone(connection, same, "its endpoints were used again")
        self._numbers += 1
        where = locate(self._tables, self.rules, guest, end.remote.address)
        if end.local == end.remote:
            where = FastPath.EXTERNAL  # a socket that is connected to itself
        connection = Connection(self._numbers, key, where, self._clock())
        self._tables.put_connection(connection)
        return connection

    # --- deciding -------------------------------------------------------------------------------------------

    def decide(self, connection: Connection) -> None:
        """Offer a channel, or say why not, or wait for the other end."""
        if connection.channel:
            return
        if connection.where is FastPath.EXTERNAL:
            self._stay_on_network(connection, Reason.EXTERNAL, "the peer shares no heap")
        elif self.rules.policy.never:
            self._stay_on_network(connection, Reason.POLICY, "policy: never")
        elif connection.reason is not None:
            self._stay_on_network(connection, connection.reason, connection.detail)
        elif len(connection.ends) == 2 and self._are_ready(connection):
            self._offer(connection)

    def _are_ready(self, connection: Connection) -> bool:
        return all(not end.gone and self._tables.guests[end.guest].greeted for end in connection.ends)

    def _offer(self, connection: Connection) -> None:
        _assign_sides(connection)
        first, second = sorted(connection.ends, key=lambda end: end.side)
        channel = self._broker.next_channel()
        while channel in self._tables.channels:
            channel = self._broker.next_channel()
        if connection.where is FastPath.SHARED_HYPERVISOR:
            lease = self._lease(connection, channel, first, second)
            if lease is None:
                return
            connection.heap, connection.ring, connection.generation = lease.heap, lease.ring, lease.generation
        else:
            connection.ring, connection.generation = self.rules.policy.local_ring, channel % 2**32 or 1
        connection.channel = channel
        connection.state = State.OFFERED
        self._tables.channels[channel] = connection
        log.info(
            "conn=%d where=%s channel=%d heap=%s ring=%d ends=%s/%s,%s/%s programs=%r,%r",
            *(connection.number, connection.where.value, channel, connection.heap or "-", connection.ring),
            *(first.guest, first.local, second.guest, second.local, first.program, second.program),
        )
        self.send_offer(connection, first)
        self.send_offer(connection, second)

    def _lease(self, connection: Connection, channel: int, first: End, second: End) -> Lease | None:
        """Lease a buffer of the first heap that has room; None when the verdict is said instead."""
        guests = (first.guest, second.guest)
        one, other = (self._tables.guests[name] for name in guests)
        mapped = self.rules.usable_heaps(one, other)
        heaps = [
            heap
            for heap in mapped
            if self._broker.can_ring(heap.name, one.heaps[heap.name].peer_id, other.heaps[heap.name].peer_id)
        ]
        for heap in heaps:
            lease = self._broker.lease(heap.name, channel, guests, heap.ring)
            if lease is not None:
                return lease
        if heaps:
            self._stay_on_network(connection, Reason.NO_MEMORY, "heap full")
        elif mapped:
            detail = "one guest was started before, the other after a restart of the daemon"
            self._stay_on_network(connection, Reason.NO_MEMORY, detail)
        else:
            self._stay_on_network(connection, Reason.EXTERNAL, "no common heap is mapped")
        return None

    def send_offer(self, connection: Connection, end: End) -> None:
        """Offer the connection's channel to the agent of one end."""
        other = connection.other(end)
        peer_id = 0
        if connection.heap:
            lease = self._broker.find(connection.channel)
            if lease is None or other is None:
                return
            device = self._tables.guests[other.guest].heaps.get(connection.heap)
            peer_id = 0 if device is None else device.peer_id
            buffer = Buffer(lease.uuid, lease.offset, lease.length, lease.ring, lease.generation)
        else:
            length = CONTROL_PAGE + 2 * connection.ring
            buffer = Buffer("", 0, length, connection.ring, connection.generation)
        end.held = True
        offer = Offer(connection.channel, end.cookie, end.side, connection.where, buffer, peer_id)
        self._send(self._tables.guests[end.guest], offer)

    def _stay_on_network(self, connection: Connection, reason: Reason, detail: str) -> None:
        connection.state = State.NETWORK
        connection.reason, connection.detail = reason, detail
        ends = ",".join(f"{end.guest}/{end.local}->{end.remote}" for end in connection.ends)
        log.info(
            "conn=%d where=%s channel=- reason=%r ends=%s",
            *(connection.number, connection.where.value, detail, ends),
        )
        for end in connection.ends:
            if not end.gone:
                verdict = Verdict(end.cookie, connection.where, reason, detail[:255])
                self._send(self._tables.guests[end.guest], verdict)

    # --- channels -------------------------------------------------------------------------------------------

    def hold(self, guest: Guest, message: Hold) -> None:
        """An agent that returned, or met a registry that did, has this channel."""
        connection, end = self._end_of(guest, message.cookie)
        if connection is None or end is None:
            self._refuse(guest, message, "the end was not announced")
            return
        if connection.channel:
            if connection.channel != message.channel or end.side != message.side:
                self._refuse(guest, message, f"the connection has channel {connection.channel}")
                self._send(guest, PeerGone(message.channel, Fate.VANISHED))
                return
        elif not self._adopt(guest, connection, end, message):
            # Its memory may be another channel's by now: whoever still has it must not believe in it.
            self._refuse(guest, message, "the books have no such lease")
            self._send(guest, PeerGone(message.channel, Fate.VANISHED))
            return
        end.held = True
        end.attached = True
        self._advance(connection)
        if connection.heap and not self._broker.is_held(connection.channel, 1 - end.side):
            self._send(guest, PeerGone(connection.channel, self._fate_of_other(connection, end)))

    def _fate_of_other(self, connection: Connection, end: End) -> Fate:
        lease = self._broker.find(connection.channel)
        other = None if lease is None else self._tables.guests.get(lease.guests[1 - end.side])
        return Fate.VANISHED if other is None or other.presence is Presence.DEAD else Fate.CLOSED

    def _adopt(self, guest: Guest, connection: Connection, end: End, message: Hold) -> bool:
        """After a restart of the registry: believe in a channel if the broker's books have it for this
        guest.
        """
        if message.channel in self._tables.channels or message.channel == 0:
            return False
        lease = self._broker.find(message.channel)
        if message.buffer.heap:
            if lease is None or lease.uuid != message.buffer.heap or lease.guests[message.side] != guest.name:
                return False
            if not self._broker.is_held(message.channel, message.side):
                return False
            connection.where = FastPath.SHARED_HYPERVISOR
            connection.heap, connection.ring, connection.generation = lease.heap, lease.ring, lease.generation
        else:
            if lease is not None or connection.where not in (FastPath.SHARED_VM, FastPath.SHARED_OS):
                return False
            connection.ring, connection.generation = message.buffer.ring, message.buffer.generation
        connection.channel = message.channel
        connection.state = State.OFFERED
        self._tables.channels[message.channel] = connection
        end.side = message.side
        other = connection.other(end)
        if other is not None:
            other.side = 1 - message.side
        return True

    def attached(self, guest: Guest, message: Attached) -> None:
        """A program has the memory."""
        connection, end = self._end_of(guest, message.cookie)
        if connection is not None and end is not None and connection.channel == message.channel:
            end.attached = True
            self._advance(connection)

    def _advance(self, connection: Connection) -> None:
        both = len(connection.ends) == 2 and all(end.attached for end in connection.ends)
        if connection.state is State.OFFERED and both:
            connection.state = State.SHARED

    def refused(self, guest: Guest, message: Refused) -> None:
        """An agent could not give the offer to its program.

        The buffer stays leased until both sockets are gone: the other end may have it already, and never
        meets a consumer there.
        """
        connection, end = self._end_of(guest, message.cookie)
        if connection is not None and end is not None and connection.channel == message.channel:
            connection.detail = f"{guest.name}: {message.reason}"
            log.info(
                "conn=%d channel=%d guest=%s refused=offer reason=%r",
                *(connection.number, connection.channel, guest.name, message.reason),
            )

    def gone(self, guest: Guest, message: Gone) -> None:
        """An agent says that a socket is destroyed."""
        connection, end = self._end_of(guest, message.cookie)
        if connection is not None and end is not None:
            end.counters = message.counters
            self.end_gone(connection, end, message.reason)

    def end_gone(self, connection: Connection, end: End, why: str, fate: Fate = Fate.CLOSED) -> None:
        """Note that an end is no more; tell the other; close the books when both are."""
        if end.gone:
            return
        end.gone = True
        self._tables.guests[end.guest].ends.pop(end.cookie, None)
        log.debug("conn=%d guest=%s end=gone reason=%r", connection.number, end.guest, why)
        if connection.heap:
            self._broker.let_go(connection.channel, end.side)
        other = connection.other(end)
        if other is None or other.gone:
            self._close(connection, why)
            return
        if connection.channel:
            connection.state = State.CLOSING
            self._send(self._tables.guests[other.guest], PeerGone(connection.channel, fate))

    def _close(self, connection: Connection, why: str) -> None:
        connection.state = State.ENDED
        connection.ended = self._clock()
        connection.detail = connection.detail or why
        if connection.channel:
            for name in {end.guest for end in connection.ends}:
                self._send(self._tables.guests[name], Release(connection.channel))
        self._tables.retire(connection)
        age = connection.ended - connection.since
        log.info("conn=%d ended after=%.3f reason=%r", connection.number, age, why)

    # --- guests that come back or do not
    # ----------------------------------------------------------------------

    def settle(self, guest: Guest) -> None:
        """The guest's agent has told all that it has: what it did not name is gone, what it lacks is
        offered.
        """
        for cookie, connection in list(guest.ends.items()):
            end = connection.end_at(guest.name, cookie)
            if end is None:
                continue
            if not end.confirmed:
                self.end_gone(connection, end, "not there after its agent returned")
            elif connection.channel and not end.held:
                self.send_offer(connection, end)
            elif not connection.channel and connection.state is State.ANNOUNCED:
                self.decide(connection)
        for channel, side in list(self._broker.held_by(guest.name)):
            owner = self._tables.channels.get(channel)
            if owner is None or not any(end.guest == guest.name and end.side == side for end in owner.ends):
                self._let_go_unknown(guest, channel, side, Fate.CLOSED)

    def forget_guest(self, guest: Guest, why: str) -> None:
        """The guest is dead: all its ends are gone, also those that only the broker's books know."""
        for cookie, connection in list(guest.ends.items()):
            end = connection.end_at(guest.name, cookie)
            if end is not None:
                self.end_gone(connection, end, why, Fate.VANISHED)
        for channel, side in list(self._broker.held_by(guest.name)):
            self._let_go_unknown(guest, channel, side, Fate.VANISHED)

    def _let_go_unknown(self, guest: Guest, channel: int, side: int, fate: Fate) -> None:
        """Let go of a lease of before a restart whose end at this guest nobody claimed; tell the other
        end.
        """
        log.info(
            "guest=%s channel=%d side=%d released reason=%r", guest.name, channel, side, "nobody holds it"
        )
        self._broker.let_go(channel, side)
        connection = self._tables.channels.get(channel)
        for end in connection.ends if connection is not None else ():
            if end.side != side and not end.gone:
                self._send(self._tables.guests[end.guest], PeerGone(channel, fate))

    def _end_of(self, guest: Guest, cookie: int) -> tuple[Connection | None, End | None]:
        connection = guest.ends.get(cookie)
        return connection, None if connection is None else connection.end_at(guest.name, cookie)


def _assign_sides(connection: Connection) -> None:
    """Side 0 is the connecting end. Where the roles do not tell, it is the end with the lower endpoint."""
    first, second = connection.ends
    if first.role is second.role:
        swap = second.local < first.local
    else:
        swap = first.role is Role.ACCEPT or second.role is Role.CONNECT
    first.side, second.side = (1, 0) if swap else (0, 1)
