"""The registry without its input and output: messages of guests go in, messages to guests come out.

Nothing here waits, reads a clock by itself or touches a socket; `link` and the tests drive it. What a guest
says is believed only as far as it concerns that guest: a guest is the port on which it speaks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from guest_agent.messages import (
    Announce,
    Answer,
    Attached,
    Call,
    Gone,
    HeapDevice,
    Hello,
    Hold,
    Listen,
    Lookup,
    Message,
    Ping,
    Pong,
    Query,
    Ready,
    Refused,
    Reset,
    Settled,
    Stats,
    Unlisten,
    Welcome,
    Withdraw,
)
from lab.registry.broker_interface import Broker
from lab.registry.connections import Connections
from lab.registry.decision import Rules, locate, owns
from lab.registry.tables import WILDCARDS, Guest, Listener, Presence, Tables

LEASE_SECONDS: Final = 15
"""An agent that is not heard for so long is silent."""
MAX_LISTENERS: Final = 4096
"""Listening sockets that one guest may have in the tables."""
_LOGGED_REFUSALS: Final = 20
"""Of each guest; afterwards one in a thousand, so that no guest can fill the host's disk."""

log = logging.getLogger("registry")


class Registry:
    """The global socket registry of one lab.

    Args:
        lab: its name, for the agents.
        broker: who leases buffers.
        clock: seconds that never go back.
        send: called with a guest's name and each message to its agent; must not call back.
    """

    def __init__(
        self, lab: str, broker: Broker, *, clock: Callable[[], float], send: Callable[[str, Message], None]
    ) -> None:
        self.lab = lab
        self.tables = Tables()
        self.epoch = 1
        self._broker = broker
        self._clock = clock
        self._send_to = send
        self._connections = Connections(
            self.tables, broker, clock=clock, send=self._send, refuse=self._refuse
        )
        self._queries = 0
        self._waiting: dict[int, tuple[set[str], Callable[[], None]]] = {}
        self._handlers: Final[Mapping[type[Message], Callable[[Guest, Any], None]]] = {
            Ping: self._on_ping,
            Listen: self._on_listen,
            Unlisten: self._on_unlisten,
            Lookup: self._on_lookup,
            Settled: self._on_settled,
            Stats: self._on_stats,
            Gone: self._on_gone,
            Announce: self._connections.announce,
            Hold: self._connections.hold,
            Attached: self._connections.attached,
            Refused: self._connections.refused,
        }

    @property
    def rules(self) -> Rules:
        """What decisions are made from besides the tables."""
        return self._connections.rules

    # --- what the lab says ----------------------------------------------------------------------------------

    def configure(self, guests: Mapping[str, frozenset[str]], rules: Rules) -> None:
        """Take over a configuration: addresses by guest name, heaps and policy. Connections go on."""
        for name in [name for name in self.tables.guests if name not in guests]:
            self.guest_died(name, "removed from the lab")
            self.tables.drop_guest(name)
        for name, addresses in guests.items():
            self.tables.put_guest(name, addresses)
        self._connections.rules = rules
        self.epoch += 1
        for guest in self.tables.guests.values():
            guest.askers.clear()
            if guest.greeted:
                self._send(guest, Withdraw(None, 0, self.epoch))

    # --- what the ports say ---------------------------------------------------------------------------------

    def port_opened(self, name: str) -> None:
        """The registry is connected to a guest's port; what comes from it may start anywhere."""
        self._send(self.tables.guests[name], Call())

    def port_closed(self, name: str) -> None:
        """The port's connection ended, for a reason that is not known yet; the guest may live."""
        self._fall_silent(self.tables.guests[name], "port closed")

    def port_garbled(self, name: str, why: str) -> None:
        """What was read is not the protocol. The conversation has to start again."""
        guest = self.tables.guests[name]
        self._count_refusal(guest, "frame", why)
        self._fall_silent(guest, "garbled")
        self._send(guest, Call())

    def guest_died(self, name: str, why: str) -> None:
        """The guest is gone: all its ends are, and its partners hear so at once."""
        guest = self.tables.guests[name]
        if guest.presence is Presence.DEAD:
            return
        if guest.presence is Presence.ABSENT:
            self._connections.forget_guest(guest, why)  # what it had is known from the broker's books
            return
        log.info("guest=%s presence=dead reason=%r ends=%d", name, why, len(guest.ends))
        guest.presence = Presence.DEAD
        guest.session, guest.greeted = None, False
        guest.listeners.clear()
        guest.heaps = {}
        self._connections.forget_guest(guest, why)
        self._withdraw(guest)
        self._answered(guest)

    def tick(self) -> None:
        """Call about once a second: agents that were not heard for a lease are silent."""
        deadline = self._clock() - LEASE_SECONDS
        for guest in self.tables.guests.values():
            if guest.greeted and guest.last_heard < deadline:
                self._fall_silent(guest, "lease over")
                self._send(guest, Call())

    def query(self, done: Callable[[], None]) -> int:
        """Ask all agents for their counters; `done` is called when all answered or cannot. Returns the id."""
        self._queries += 1
        asked = {guest.name for guest in self.tables.guests.values() if guest.greeted}
        if not asked:
            done()
            return self._queries
        self._waiting[self._queries] = (asked, done)
        for name in sorted(asked):
            self._send(self.tables.guests[name], Query(self._queries))
        return self._queries

    def forget_query(self, query: int) -> None:
        """Whoever asked does not wait any longer."""
        self._waiting.pop(query, None)

    # --- what the agents say --------------------------------------------------------------------------------

    def receive(self, name: str, message: Message) -> None:
        """Take a message that was read from a guest's port."""
        guest = self.tables.guests[name]
        guest.last_heard = self._clock()
        if isinstance(message, Reset):
            self._on_reset(guest, message)
            return
        if guest.session is None:
            return
        if isinstance(message, Hello):
            self._on_hello(guest, message)
            return
        handler = self._handlers.get(type(message))
        if handler is None or not guest.greeted:
            self._refuse(guest, message, "not a message for now" if handler else "not a message of an agent")
            return
        handler(guest, message)

    def _on_reset(self, guest: Guest, message: Reset) -> None:
        if guest.session != message.session or guest.greeted:
            self._answered(guest)
            guest.session = message.session
            guest.greeted = False
            for listener in guest.listeners.values():
                listener.confirmed = False
            for cookie, connection in guest.ends.items():
                end = connection.end_at(guest.name, cookie)
                if end is not None:
                    end.confirmed, end.held = False, False
        self._send(guest, Ready(message.session))

    def _on_hello(self, guest: Guest, message: Hello) -> None:
        if guest.greeted:
            self._refuse(guest, message, "said already")
            return
        session = guest.session
        if guest.boot_id and guest.boot_id != message.boot_id:
            self.guest_died(guest.name, "rebooted")
        guest.session, guest.greeted = session, True
        guest.presence = Presence.TALKING
        guest.boot_id = message.boot_id
        guest.agent_version, guest.agent_pid = message.version, message.pid
        heaps = self._known_heaps(guest, message.heaps)
        if heaps != guest.heaps:
            guest.heaps = heaps
            self._withdraw(guest)
        log.info(
            "guest=%s presence=connected agent=%s pid=%d heaps=%s",
            *(guest.name, message.version, message.pid, ",".join(sorted(heaps)) or "-"),
        )
        calls, size = self.rules.policy.upgrade_calls, self.rules.policy.upgrade_bytes
        self._send(guest, Welcome(guest.name, self.lab, self.epoch, LEASE_SECONDS, calls, size))

    def _known_heaps(self, guest: Guest, devices: tuple[HeapDevice, ...]) -> dict[str, HeapDevice]:
        """Return by name the reported heaps that exist, have this member, and whose peer is nobody else's."""
        heaps: dict[str, HeapDevice] = {}
        for device in devices:
            name = self._broker.find_heap(device.uuid)
            membership = None if name is None else self.rules.heaps.get(name)
            if name is None or membership is None or guest.name not in membership.members:
                self._count_refusal(guest, f"heap {device.uuid}", "not a member")
            elif self._is_taken(guest, name, device.peer_id):
                self._count_refusal(guest, f"heap {name}", f"peer {device.peer_id} is another guest")
            else:
                heaps[name] = device
        return heaps

    def _is_taken(self, guest: Guest, heap: str, peer_id: int) -> bool:
        others = (other.heaps.get(heap) for other in self.tables.guests.values() if other is not guest)
        return any(device is not None and device.peer_id == peer_id for device in others)

    def _on_ping(self, guest: Guest, message: Ping) -> None:
        self._send(guest, Pong(message.sequence))

    def _on_listen(self, guest: Guest, message: Listen) -> None:
        address = message.endpoint.address
        if address not in WILDCARDS and not owns(guest, address):
            self._refuse(guest, message, f"{address} is not its address")
            return
        if len(guest.listeners) >= MAX_LISTENERS and message.cookie not in guest.listeners:
            self._refuse(guest, message, f"{MAX_LISTENERS} listeners already")
            return
        listener = Listener(guest.name, message.cookie, message.endpoint, message.program, message.pid)
        guest.listeners[message.cookie] = listener
        log.debug("guest=%s listen=%s program=%r", guest.name, message.endpoint, message.program)

    def _on_unlisten(self, guest: Guest, message: Unlisten) -> None:
        guest.listeners.pop(message.cookie, None)

    def _on_lookup(self, guest: Guest, message: Lookup) -> None:
        where = locate(self.tables, self.rules, guest, message.endpoint.address)
        peer = self.tables.owner_of(message.endpoint.address)
        if peer is not None and peer is not guest:
            peer.askers.add(guest.name)
        self._send(guest, Answer(message.id, where, self.epoch))

    def _on_settled(self, guest: Guest, message: Settled) -> None:
        guest.listeners = {
            cookie: listener for cookie, listener in guest.listeners.items() if listener.confirmed
        }
        self._connections.settle(guest)

    def _on_gone(self, guest: Guest, message: Gone) -> None:
        guest.listeners.pop(message.cookie, None)
        self._connections.gone(guest, message)

    def _on_stats(self, guest: Guest, message: Stats) -> None:
        for stats in message.ends:
            connection = guest.ends.get(stats.cookie)
            end = None if connection is None else connection.end_at(guest.name, stats.cookie)
            if end is not None:
                end.counters = stats.counters
        if message.last:
            self._answered(guest, message.id)

    # --- helpers --------------------------------------------------------------------------------------------

    def _answered(self, guest: Guest, query: int | None = None) -> None:
        """A guest answered a query, or (None) will answer none of those that are open."""
        for number in list(self._waiting) if query is None else [query]:
            if number not in self._waiting:
                continue
            asked, done = self._waiting[number]
            asked.discard(guest.name)
            if not asked:
                del self._waiting[number]
                done()

    def _fall_silent(self, guest: Guest, why: str) -> None:
        """The agent does not speak: its endpoints are withdrawn, and nothing is taken back."""
        guest.session, guest.greeted = None, False
        self._answered(guest)
        if guest.presence is not Presence.TALKING:
            return
        log.info("guest=%s presence=silent reason=%r", guest.name, why)
        guest.presence = Presence.SILENT
        guest.listeners.clear()
        self._withdraw(guest)

    def _withdraw(self, guest: Guest) -> None:
        """Answers about this guest's addresses do not hold any more."""
        self.epoch += 1
        for name in sorted(guest.askers):
            asker = self.tables.guests.get(name)
            if asker is not None and asker.greeted:
                for address in sorted(guest.addresses):
                    self._send(asker, Withdraw(address, 0, self.epoch))
        guest.askers.clear()

    def _refuse(self, guest: Guest, message: Message, why: str) -> None:
        self._count_refusal(guest, type(message).__name__, why)

    def _count_refusal(self, guest: Guest, what: str, why: str) -> None:
        guest.refused += 1
        if guest.refused <= _LOGGED_REFUSALS or guest.refused % 1000 == 0:
            log.warning("guest=%s refused=%r count=%d reason=%r", guest.name, what, guest.refused, why)

    def _send(self, guest: Guest, message: Message) -> None:
        self._send_to(guest.name, message)
