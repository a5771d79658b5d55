"""Giving processes the memory of their channels, and taking it back."""

from __future__ import annotations

import errno
import logging
import os

from guest_agent.device import Heap, find_memory, make_memory
from guest_agent.ends import End
from guest_agent.shim_protocol import Packet, Type
from guest_agent.shims import Process
from guest_agent.slots import SLOTS

log = logging.getLogger("agent.grants")


class Grants:
    """Who has which memory. `heaps`: the heaps of this guest, by number."""

    def __init__(self) -> None:
        self.heaps: dict[int, Heap] = {}
        self._memories: dict[int, int] = {}
        """Descriptor by channel, of memory of the guest itself."""
        self._memory_users: dict[int, set[int]] = {}
        """Cookies of the ends of such a channel."""

    def heap_with(self, uuid: str) -> Heap | None:
        """Return the heap with this uuid."""
        return next((heap for heap in self.heaps.values() if heap.uuid == uuid), None)

    def make_local(self, end: End, channel: int, ring: int, generation: int) -> None:
        """Make sure that there is memory for a channel within this guest, of which `end` is one end.
        OSError.
        """
        if channel not in self._memories:
            self._memories[channel] = make_memory(channel, ring, generation)
        self._memory_users.setdefault(channel, set()).add(end.cookie)

    def adopt_local(self, end: End) -> None:
        """An end of before a restart uses the memory of its channel, which will be looked for when it is
        needed.
        """
        self._memory_users.setdefault(end.channel, set()).add(end.cookie)

    def grant(self, process: Process, end: End) -> tuple[Packet, int]:
        """Let a process map an end's memory; return the packet and the descriptor for it.

        Raises:
            OSError: ENOSPC when no vector is free, ENODEV when the heap is gone, ENOENT when the
            memory of
                before a restart cannot be found.
        """
        if end.buffer is None:
            raise OSError(errno.ENOENT, "the end has no channel")
        fd, slot = self._grant_heap(process, end) if end.heap else self._grant_local(process, end)
        end.holders.add(process)
        process.granted.add(end.cookie)
        packet = Packet(
            Type.GRANT,
            cookie=end.cookie,
            local=end.local,
            remote=end.remote,
            offset=end.buffer.offset,
            length=end.buffer.length,
            channel=end.channel,
            end=end.index,
            heap=end.heap,
            slot=slot,
            peer_id=end.peer_id,
            side=end.side,
            generation=end.buffer.generation,
        )
        return packet, fd

    def _grant_heap(self, process: Process, end: End) -> tuple[int, int]:
        assert end.buffer is not None
        heap = self.heaps.get(end.heap)
        if heap is None:
            raise OSError(errno.ENODEV, f"heap {end.heap} is not there")
        file = process.files.get(end.heap)
        if file is None:
            file = heap.open_for(process.bell)
            if file.vector >= SLOTS:
                file.close()
                raise OSError(errno.ENOSPC, f"no vector below {SLOTS} is free")
            process.files[end.heap] = file
        file.grant(end.buffer.offset, end.buffer.length)
        return file.fd, file.vector

    def _grant_local(self, process: Process, end: End) -> tuple[int, int]:
        fd = self._memories.get(end.channel)
        if fd is None:
            fd = find_memory(end.channel)
            if fd is None:
                raise OSError(errno.ENOENT, "the channel's memory cannot be found")
            self._memories[end.channel] = fd
        return fd, process.slot

    def forget_end(self, end: End) -> None:
        """The end is gone: nobody needs its memory any more."""
        for process in end.announcers:
            process.waiting.discard(end.cookie)
        for process in end.holders:
            process.waiting.discard(end.cookie)
            process.granted.discard(end.cookie)
            file = process.files.get(end.heap)
            if file is not None and end.buffer is not None:
                file.revoke(end.buffer.offset, end.buffer.length)
        if end.index >= 0 and not end.heap:
            users = self._memory_users.get(end.channel)
            if users is not None:
                users.discard(end.cookie)
                if not users:
                    del self._memory_users[end.channel]
                    self._close_memory(end.channel)

    def _close_memory(self, channel: int) -> None:
        fd = self._memories.pop(channel, None)
        if fd is not None:
            os.close(fd)
