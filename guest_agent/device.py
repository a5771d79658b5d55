"""The guest's heaps: the devices of the driver (`hyperheap/hyperheap_ioctl.h`), and what processes get of
them.

Rights hang on an open file. For each process and heap the agent opens the device anew, grants the ranges of
the process's channels to that open file, binds the process's bell to a vector of it, and passes the
descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ivshmem import core

MAX_HEAP_NUMBER: Final = 15
"""A shim has room for so many heaps; number 0 is the guest's own memory."""
VECTOR_ANY: Final = 0xFFFFFFFF

_INFO: Final = struct.Struct("=QIIII")
_RANGE: Final = struct.Struct("=QQ")
_BIND: Final = struct.Struct("=iI")
_RING: Final = struct.Struct("=II")
_MAGIC: Final = 0xBE
_WRITE, _READ = 1, 2


def _ioctl_number(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | _MAGIC << 8 | number


IOC_INFO: Final = _ioctl_number(_READ, 0, _INFO.size)
IOC_GRANT: Final = _ioctl_number(_WRITE, 1, _RANGE.size)
IOC_REVOKE: Final = _ioctl_number(_WRITE, 2, _RANGE.size)
IOC_BIND: Final = _ioctl_number(_READ | _WRITE, 3, _BIND.size)
IOC_RING: Final = _ioctl_number(_WRITE, 4, _RING.size)

log = logging.getLogger("agent.device")


class ProcessFile:
    """One process's open file of a heap's device. `vector` is where the process sleeps."""

    def __init__(self, heap: Heap, bell: int) -> None:
        """Open the device and bind the eventfd `bell` to a vector. OSError: ENOSPC when none is free, ENODEV,
        ...
        """
        self.heap = heap
        self.fd = os.open(heap.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            answer = fcntl.ioctl(self.fd, IOC_BIND, _BIND.pack(bell, VECTOR_ANY))
        except OSError:
            os.close(self.fd)
            raise
        self.vector = int(_BIND.unpack(answer)[1])

    def grant(self, offset: int, length: int) -> None:
        """Let the process map this range. OSError."""
        fcntl.ioctl(self.fd, IOC_GRANT, _RANGE.pack(offset, length))

    def revoke(self, offset: int, length: int) -> None:
        """The range is none of the process's any more; mappings stay until they are unmapped."""
        try:
            fcntl.ioctl(self.fd, IOC_REVOKE, _RANGE.pack(offset, length))
        except OSError as error:
            log.warning("heap=%s revoke offset=%d failed reason=%r", self.heap.name, offset, error.strerror)

    def close(self) -> None:
        """Let go; the vector stays bound as long as the process has the file or a mapping of it."""
        os.close(self.fd)


@dataclass(frozen=True)
class Heap:
    """A heap of which this guest is a member. `number` names it between agent and shims; `size` in bytes."""

    number: int
    path: Path
    uuid: str
    name: str
    size: int
    peer_id: int
    vectors: int

    def open_for(self, bell: int) -> ProcessFile:
        """Open the device for a process with this bell. OSError: ENOSPC when no vector is free."""
        return ProcessFile(self, bell)

    def ring_all(self) -> None:
        """Interrupt all processes of this guest that sleep on this heap."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            log.warning("heap=%s ring failed reason=%r", self.name, error.strerror)
            return
        try:
            for vector in range(1, self.vectors):
                fcntl.ioctl(fd, IOC_RING, _RING.pack(self.peer_id, vector))
        except OSError as error:
            log.warning("heap=%s ring failed reason=%r", self.name, error.strerror)
        finally:
            os.close(fd)


def find_nodes(directory: Path = Path("/dev")) -> tuple[Path, ...]:
    """Return the device nodes that there are, in order."""
    return tuple(path for n in range(MAX_HEAP_NUMBER) if (path := directory / f"hyperheap{n}").exists())


def open_heaps(nodes: tuple[Path, ...]) -> tuple[dict[int, Heap], bool]:
    """Return the heaps behind these nodes by number, and whether one was not ready yet and should be tried
    again.
    """
    heaps, all_ready = {}, True
    for path in nodes:
        try:
            heap = _open_heap(path)
        except OSError as error:
            all_ready = all_ready and error.errno != errno.EAGAIN
            log.warning("device=%s unusable reason=%r", path, error.strerror or str(error))
            continue
        heaps[heap.number] = heap
        log.info(
            "device=%s heap=%s uuid=%s size=%d peer=%d vectors=%d",
            *(path, heap.name, heap.uuid, heap.size, heap.peer_id, heap.vectors),
        )
    return heaps, all_ready


def _open_heap(path: Path) -> Heap:
    """Ask the driver, and read the heap's header. OSError: EAGAIN when the device has no peer id yet."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        size, peer_id, vectors, _, _ = _INFO.unpack(fcntl.ioctl(fd, IOC_INFO, bytes(_INFO.size)))
        memory = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        try:
            uuid, name = core.heap_check(memory)
        except OSError as error:
            raise OSError(error.errno or errno.EINVAL, "its header is not a heap's") from error
    finally:
        os.close(fd)
    number = int(path.name.removeprefix("hyperheap")) + 1
    return Heap(number, path, uuid.hex(), _printable(name), size, peer_id, vectors)


def _printable(name: str) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", name)[:64]


# --- memory of the guest itself -----------------------------------------------------------------------------


def memory_name(channel: int) -> str:
    """Return the name of the memory that carries a channel between two ends in this guest."""
    return f"hyperheap-{channel}"


def make_memory(channel: int, ring: int, generation: int) -> int:
    """Return a descriptor of new memory of one channel, formatted; nobody can change its size. OSError."""
    length = core.channel_length(ring)
    fd = os.memfd_create(memory_name(channel), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, length)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        core.channel_format(mmap.mmap(fd, length), 0, ring, channel, generation)
    except BaseException:
        os.close(fd)
        raise
    return fd


def find_memory(channel: int) -> int | None:
    """Return a descriptor of the channel's memory that some process has mapped; None if it cannot be found.

    A restarted agent has lost its own. Needs root, and looks at every process.
    """
    target = f"/memfd:{memory_name(channel)} (deleted)"
    for pid in _processes():
        for start_end in _mappings_of(pid, target):
            try:
                return os.open(f"/proc/{pid}/map_files/{start_end}", os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue
    return None


def _processes() -> Iterator[str]:
    return (entry.name for entry in os.scandir("/proc") if entry.name.isdigit())


def _mappings_of(pid: str, target: str) -> Iterator[str]:
    """Yield the `start-end` of each mapping of a file, as /proc/PID/map_files names it."""
    try:
        lines = Path("/proc", pid, "maps").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        if line.endswith(target):
            start, _, end = line.split(" ", 1)[0].partition("-")
            yield f"{int(start, 16):x}-{int(end, 16):x}"
