"""The agent: between the shims of its guest's processes and the registry.

It passes on what processes announce, gives them the memory that the registry offers, watches the kernel for
sockets that are destroyed, and answers the registry's questions. Channels go on without it: it may be killed
at any time, and its successor adopts what is there.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from guest_agent import device, sockdiag
from guest_agent.ends import End, EndTable, ListeningSocket
from guest_agent.grants import Grants
from guest_agent.journal import Journal
from guest_agent.lookups import Lookups
from guest_agent.loop import READ, Loop
from guest_agent.messages import (
    Announce,
    Answer,
    Attached,
    Counters,
    EndStats,
    FastPath,
    Fate,
    Gone,
    HeapDevice,
    Hello,
    Hold,
    Listen,
    Lookup,
    Message,
    Offer,
    PeerGone,
    Query,
    Reason,
    Refused,
    Release,
    Role,
    Settled,
    Stats,
    Unlisten,
    Verdict,
    Want,
    Welcome,
    Withdraw,
)
from guest_agent.messages import (
    Path as WirePath,
)
from guest_agent.port import Port
from guest_agent.records import Endpoint
from guest_agent.shim_protocol import ROLE_OF_SIDE, Packet, ShimReason, Type
from guest_agent.shims import Process, ShimServer
from guest_agent.slots import Slots
from guest_agent.sockdiag import DestroyWatch, TcpSocket
from ivshmem import core

VERSION: Final = "0.1.0"
STATS_PER_MESSAGE: Final = 128
DROP_PAUSE: Final = 0.05
LONGEST_DROP_PAUSE: Final = 1.0
MAX_UNSAID: Final = 4096
LISTENER_CHECK_PAUSE: Final = 1.0
DEVICE_CHECK_PAUSE: Final = 5.0
DEVICE_RETRY_PAUSE: Final = 0.2

_REASONS: Final = {
    Reason.EXTERNAL: ShimReason.EXTERNAL,
    Reason.POLICY: ShimReason.POLICY,
    Reason.NO_MEMORY: ShimReason.NO_MEMORY,
    Reason.LIMIT: ShimReason.NO_MEMORY,
}

log = logging.getLogger("agent")


class Agent:
    """The agent of one guest.

    Args:
        loop: what calls it.
        run: its runtime directory; exists.
        port: the guest's port; see `port.Port`.
        listen: whether to listen on the port.
        spin_ns: how long processes may spin before they sleep, at most.
    """

    def __init__(self, loop: Loop, run: Path, port: Path, *, listen: bool, spin_ns: int) -> None:
        self._loop = loop
        self._spin_ns = spin_ns
        self._lookups = Lookups()
        self._port = Port(
            loop,
            port,
            listen=listen,
            on_open=self._on_open,
            on_closed=self._lookups.clear,
            on_message=self._on_message,
        )
        self._journal = Journal(run / "agent.journal")
        self._table = EndTable(run, self._journal)
        self._slots = Slots(self._journal)
        self._grants = Grants()
        self._nodes = device.find_nodes()
        self._watch = DestroyWatch(
            is_wanted=self._is_tracked, on_destroyed=self._on_destroyed, on_lost=self._check_sockets
        )
        loop.watch(self._watch.fileno(), READ, self._watch.take)
        self._listener_check = False
        self._suspects: set[int] = set()
        self._unsaid: deque[Gone] = deque(maxlen=MAX_UNSAID)
        """What happened while the registry did not listen."""
        self._open_devices()
        self._recover()
        self._shims = ShimServer(
            loop,
            run / "agent.sock",
            slots=self._slots,
            epoch=self._table.epoch,
            on_packet=self._on_packet,
            on_closed=self._on_process_gone,
        )
        self._packet_handlers: Final[Mapping[int, Callable[[Process, Packet], None]]] = {
            Type.ANNOUNCE: self._on_announce,
            Type.LISTEN: self._on_listen,
            Type.ATTACH: self._on_attach,
            Type.BELL: self._on_bell,
        }
        self._message_handlers: Final[Mapping[type[Message], Callable[[Any], None]]] = {
            Welcome: self._on_welcome,
            Answer: self._on_answer,
            Withdraw: self._on_withdraw,
            Offer: self._on_offer,
            Verdict: self._on_verdict,
            PeerGone: self._on_peer_gone,
            Release: self._on_release,
            Want: self._on_want,
            Query: self._on_query,
        }
        self._port.open()
        loop.call_later(DEVICE_CHECK_PAUSE, self._check_devices)

    def close(self) -> None:
        """End. Everything that processes have stays theirs."""
        self._port.close()
        self._shims.close()
        self._loop.forget(self._watch.fileno())
        self._watch.close()
        self._slots.close()
        self._journal.close()

    # --- heaps ----------------------------------------------------------------------------------------------

    def _open_devices(self) -> None:
        self._grants.heaps, all_ready = device.open_heaps(self._nodes)
        if not all_ready:
            self._loop.call_later(DEVICE_RETRY_PAUSE, self._reopen_devices)

    def _reopen_devices(self) -> None:
        self._open_devices()
        self._port.restart("heaps changed")

    def _check_devices(self) -> None:
        """Heaps may be plugged in while the guest runs."""
        self._loop.call_later(DEVICE_CHECK_PAUSE, self._check_devices)
        nodes = device.find_nodes()
        if nodes != self._nodes:
            self._nodes = nodes
            self._reopen_devices()

    # --- a new life -----------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Take over from an earlier agent what the kernel still has."""
        uuids = {number: heap.uuid for number, heap in self._grants.heaps.items()}
        if not self._table.is_new:
            for end, counters in self._table.recover(sockdiag.dump(), uuids):
                self._retire(end, counters, DROP_PAUSE)
        local = {end.cookie for end in self._table.ends.values() if end.index >= 0 and not end.heap}
        for cookie in local:
            self._grants.adopt_local(self._table.ends[cookie])
        self._slots.recover(wanted=bool(local))
        self._update_watch()
        log.info(
            "agent=%s epoch=%d ends=%d listeners=%d",
            *(VERSION, self._table.epoch, len(self._table.ends), len(self._table.listeners)),
        )

    def _on_open(self) -> None:
        """A conversation begins: say who we are and all that we have."""
        devices = tuple(
            HeapDevice(heap.uuid, heap.name, heap.peer_id, heap.vectors, str(heap.path))
            for heap in self._grants.heaps.values()
        )
        self._port.send(Hello(VERSION, _boot_id(), os.getpid(), devices))
        for listener in self._table.listeners.values():
            self._send_listen(listener)
        for gone in self._unsaid:
            self._port.send(gone)
        self._unsaid.clear()
        for end in self._table.ends.values():
            self._send_announce(end)
            if end.index >= 0 and end.buffer is not None:
                self._port.send(Hold(end.cookie, end.channel, end.side, end.fast_path, end.buffer))
        self._port.send(Settled())

    # --- what processes say ---------------------------------------------------------------------------------

    def _on_packet(self, process: Process, packet: Packet) -> None:
        handler = self._packet_handlers.get(packet.type)
        if handler is not None:
            handler(process, packet)

    def _on_announce(self, process: Process, packet: Packet) -> None:
        end = self._table.ends.get(packet.cookie)
        if end is None:
            end = self._take_announcement(process, packet)
            if end is None:
                return
        end.announcers.add(process)
        process.waiting.add(end.cookie)
        if end.index >= 0:
            self._give(process, end)
        elif end.verdict is not None:
            self._send_verdict(process, end.cookie, end.verdict)

    def _take_announcement(self, process: Process, packet: Packet) -> End | None:
        """Return the new end that a process announces, if there is such a socket and the process may have
        it.
        """
        self._watch.switch(
            True
        )  # from now on its end is heard of, so the look that follows cannot come too late
        found = sockdiag.find(packet.local, packet.remote, packet.cookie)
        if found is None or not process.may_have(found):
            log.debug(
                "pid=%d cookie=%d announce ignored found=%s", process.pid, packet.cookie, found is not None
            )
            self._update_watch()
            return None
        end = End(
            packet.cookie,
            packet.local,
            packet.remote,
            ROLE_OF_SIDE.get(packet.side, Role.UNKNOWN),
            packet.program,
            process.pid,
            found.uid,
            found.inode,
        )
        self._table.add(end)
        peer = end.remote if end.role is Role.CONNECT else Endpoint(end.remote.address, 0)
        where = self._lookups.find(peer)
        if where is FastPath.EXTERNAL:
            end.verdict = ShimReason.EXTERNAL
        elif where is None and self._port.is_open:
            question = self._lookups.ask(peer)
            if question is not None:
                self._port.send(Lookup(question, peer))
        log.debug("pid=%d cookie=%d announce %s -> %s", process.pid, end.cookie, end.local, end.remote)
        self._send_announce(end)
        return end

    def _send_announce(self, end: End) -> None:
        self._port.send(Announce(end.cookie, end.local, end.remote, end.role, end.program, end.pid))

    def _on_listen(self, process: Process, packet: Packet) -> None:
        if not packet.cookie:
            return
        self._watch.switch(True)
        listener = ListeningSocket(packet.cookie, packet.local, packet.program, process.pid)
        self._table.add_listener(listener)
        self._send_listen(listener)
        # It may have been closed before the kernel was listened to.
        if not self._listener_check:
            self._listener_check = True
            self._loop.call_later(LISTENER_CHECK_PAUSE, self._check_sockets)

    def _send_listen(self, listener: ListeningSocket) -> None:
        self._port.send(Listen(listener.cookie, listener.endpoint, listener.program, listener.pid))

    def _on_attach(self, process: Process, packet: Packet) -> None:
        """A process met a socket that has an end: inherited, passed, or known from before our restart."""
        end = self._table.ends.get(packet.cookie)
        if end is None or end.index < 0:
            self._send_verdict(process, packet.cookie, ShimReason.UNKNOWN)
            return
        if process.uid not in (0, end.uid):
            found = sockdiag.find(end.local, end.remote, end.cookie)
            if found is None or not process.may_have(found):
                log.warning(
                    "pid=%d cookie=%d attach refused reason=%r", process.pid, end.cookie, "not its socket"
                )
                self._send_verdict(process, packet.cookie, ShimReason.UNKNOWN)
                return
        self._give(process, end)

    def _on_bell(self, process: Process, packet: Packet) -> None:
        self._shims.send(process, Packet(Type.BELL, slot=packet.slot), self._slots.bell(packet.slot))

    def _on_process_gone(self, process: Process) -> None:
        for cookie in process.waiting | process.granted:
            end = self._table.ends.get(cookie)
            if end is not None:
                end.announcers.discard(process)
                end.holders.discard(process)

    def _give(self, process: Process, end: End) -> bool:
        """Grant an end's memory to a process, or say that it cannot have it."""
        try:
            packet, fd = self._grants.grant(process, end)
        except OSError as error:
            log.warning(
                "pid=%d cookie=%d channel=%d grant failed reason=%r",
                *(process.pid, end.cookie, end.channel, error.strerror or str(error)),
            )
            self._send_verdict(process, end.cookie, ShimReason.NO_MEMORY)
            return False
        end.announcers.discard(process)
        self._shims.send(process, packet, fd)
        self._table.region.bump()
        process.ring()
        return True

    def _send_verdict(self, process: Process, cookie: int, reason: ShimReason) -> None:
        self._shims.send(process, Packet(Type.VERDICT, cookie=cookie, reason=reason))
        self._table.region.bump()
        process.ring()

    # --- what the registry says -----------------------------------------------------------------------------

    def _on_message(self, message: Message) -> None:
        handler = self._message_handlers.get(type(message))
        if handler is not None:
            handler(message)

    def _on_welcome(self, message: Welcome) -> None:
        log.info("guest=%s lab=%s registered epoch=%d", message.guest, message.lab, message.epoch)
        self._port.set_lease(message.lease_seconds)
        self._table.region.set_policy(message.upgrade_calls, message.upgrade_bytes, self._spin_ns)

    def _on_answer(self, message: Answer) -> None:
        self._lookups.answer(message.id, message.where, message.epoch)

    def _on_withdraw(self, message: Withdraw) -> None:
        self._lookups.withdraw(message.address, message.port, message.epoch)

    def _on_verdict(self, message: Verdict) -> None:
        end = self._table.ends.get(message.cookie)
        if end is None or end.index >= 0 or end.verdict is not None:
            return
        end.verdict = _REASONS[message.reason]
        log.debug("cookie=%d where=%s reason=%r", end.cookie, message.where.value, message.detail)
        for process in end.announcers:
            self._send_verdict(process, end.cookie, end.verdict)
        end.announcers.clear()

    def _on_offer(self, message: Offer) -> None:
        end = self._table.ends.get(message.cookie)
        if end is None:
            self._port.send(Gone(message.cookie, "no such socket", Counters()))
            return
        if end.index < 0:
            try:
                self._take_offer(end, message)
            except OSError as error:
                why = (error.strerror or str(error))[:200]
                log.warning("cookie=%d channel=%d offer refused reason=%r", end.cookie, message.channel, why)
                self._port.send(Refused(message.channel, end.cookie, why))
                return
            # A process that is not connected now meets the end at the next use of its socket, and asks.
            self._table.region.bump()
            given = [self._give(process, end) for process in list(end.announcers)]
            if given and not any(given):
                self._port.send(Refused(message.channel, end.cookie, "no process could have it"))
                return
        self._port.send(Attached(end.channel, end.cookie))

    def _take_offer(self, end: End, offer: Offer) -> None:
        """Give the end its entry in the region, over memory that is there. OSError."""
        buffer = offer.buffer
        if buffer.length != core.channel_length(buffer.ring):
            raise OSError(22, f"a buffer of {buffer.length} bytes for rings of {buffer.ring}")
        number = 0
        if buffer.heap:
            heap = self._grants.heap_with(buffer.heap)
            if heap is None or buffer.offset + buffer.length > heap.size:
                raise OSError(19, f"heap {buffer.heap} is not there, or smaller")
            number = heap.number
        self._table.put(end, offer, number)
        if not number:
            try:
                self._grants.make_local(end, offer.channel, buffer.ring, buffer.generation)
            except OSError:
                self._table.region.drop(end.index)
                end.index, end.channel, end.buffer = -1, 0, None
                raise
        log.info(
            "cookie=%d channel=%d where=%s heap=%d offset=%d ring=%d side=%d %s -> %s",
            *(end.cookie, offer.channel, offer.fast_path.value, number, buffer.offset, buffer.ring),
            *(end.side, end.local, end.remote),
        )

    def _on_peer_gone(self, message: PeerGone) -> None:
        gone = core.GONE_VANISHED if message.fate is Fate.VANISHED else core.GONE_CLOSED
        for end in self._table.ends.values():
            if end.channel != message.channel or end.index < 0:
                continue
            log.info("cookie=%d channel=%d peer=%s", end.cookie, end.channel, message.fate.value)
            self._table.region.set_gone(end.index, gone)
            for process in end.holders:
                process.ring()
            # TCP will not wake who sleeps there, nor do we know everybody who does.
            heap = self._grants.heaps.get(end.heap)
            if heap is not None and message.fate is Fate.VANISHED:
                heap.ring_all()

    def _on_release(self, message: Release) -> None:
        log.debug("channel=%d released", message.channel)

    def _on_want(self, message: Want) -> None:
        end = self._table.ends.get(message.cookie)
        if end is not None and end.index >= 0:
            path = core.PATH_SHARED if message.path is WirePath.SHARED else core.PATH_NETWORK
            self._table.region.set_want(end.index, path)

    def _on_query(self, message: Query) -> None:
        ends = list(self._table.ends.values())
        sockets = {found.cookie: found for found in sockdiag.dump()} if ends else {}
        stats = [EndStats(end.cookie, self._table.counters(end, sockets.get(end.cookie))) for end in ends]
        for at in range(0, max(1, len(stats)), STATS_PER_MESSAGE):
            part = tuple(stats[at : at + STATS_PER_MESSAGE])
            self._port.send(Stats(message.id, part, at + STATS_PER_MESSAGE >= len(stats)))

    # --- what the kernel says -------------------------------------------------------------------------------

    def _is_tracked(self, cookie: int) -> bool:
        return cookie in self._table.ends or cookie in self._table.listeners

    def _update_watch(self) -> None:
        self._watch.switch(bool(self._table.ends or self._table.listeners))

    def _on_destroyed(self, found: TcpSocket) -> None:
        self._forget_socket(found.cookie, found)

    def _forget_socket(self, cookie: int, found: TcpSocket | None) -> None:
        if cookie in self._table.listeners:
            self._port.send(Unlisten(cookie))
        end = self._table.ends.get(cookie)
        if end is None:
            self._table.forget(cookie)
            self._update_watch()
        elif not end.dying:
            self._retire(end, self._table.counters(end, found), DROP_PAUSE)

    def _retire(self, end: End, counters: Counters, pause: float) -> None:
        """Drop an end whose socket is destroyed, as soon as no process is inside its memory any more."""
        end.dying = True
        if end.index >= 0 and not self._table.region.drop(end.index):
            longer = min(2 * pause, LONGEST_DROP_PAUSE)
            self._loop.call_later(pause, lambda: self._retire(end, counters, longer))
            return
        self._grants.forget_end(end)
        self._table.forget(end.cookie)
        self._update_watch()
        gone = Gone(end.cookie, "closed", counters)
        if self._port.is_open:
            self._port.send(gone)
        else:
            self._unsaid.append(gone)

    def _check_sockets(self) -> None:
        """Look who is still there, after the kernel's news were lost or may have come too early for us."""
        self._listener_check = False
        live = {found.cookie for found in sockdiag.dump()}
        missing = {cookie for cookie in self._table.listeners if cookie not in live}
        unseen = [
            end
            for end in self._table.ends.values()
            if end.cookie not in live and sockdiag.find(end.local, end.remote, end.cookie) is None
        ]
        still_open = sockdiag.open_socket_inodes() if unseen else set()
        for end in unseen:
            if end.inode not in still_open:
                self._forget_socket(end.cookie, None)
        # A dump can miss a socket when others go away meanwhile: a listener must be missing twice.
        for cookie in missing & self._suspects:
            self._forget_socket(cookie, None)
        self._suspects = missing - self._suspects
        if self._suspects and not self._listener_check:
            self._listener_check = True
            self._loop.call_later(LISTENER_CHECK_PAUSE, self._check_sockets)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
