"""The file behind a heap.

A heap is one file in a tmpfs that QEMU maps into every member guest (BAR2 of its ivshmem-doorbell device)
and that the broker maps into itself. QEMU never opens it: it receives the descriptor from the doorbell
server, so the file stays 0600 and belongs to whoever runs the broker, whatever user QEMU runs as.

The file outlives the broker on purpose. Guests go on using their channels while the broker restarts, and the
new broker opens the same file again (`HeapFile.ensure`). Only `HeapFile.unlink` ends it.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from pathlib import Path
from types import TracebackType

from lab.errors import LabError

MIN_SIZE = 2 * mmap.PAGESIZE
"""The header's page and one page to lease."""


class HeapFileError(LabError):
    """A heap file cannot be created, or is not what it should be."""


def _check_size(path: Path, size: int) -> None:
    if size < MIN_SIZE or size & (size - 1):
        raise HeapFileError(
            f"heap file {path}: {size} bytes is not a power of two of at least {MIN_SIZE};"
            " a PCI BAR can have no other size"
        )


def _size_text(size: int) -> str:
    return f"{size / (1 << 20):g} MiB" if size >= 1 << 20 else f"{size / 1024:g} KiB"


class HeapFile:
    """An open heap file and, once asked for, the broker's mapping of it.

    Make one with `create`, `open` or `ensure`. As a context manager it closes, and does not unlink.
    """

    def __init__(self, path: Path, fd: int, size: int) -> None:
        """Takes ownership of `fd`; use the class methods instead."""
        self.path = path
        self.size = size
        self._fd = fd
        self._memory: mmap.mmap | None = None

    @classmethod
    def create(cls, path: Path, size: int) -> HeapFile:
        """Create the file with `size` zero bytes, all of them reserved.

        The memory is reserved now, because a tmpfs that runs full later would kill with SIGBUS whoever
        touches the heap, and that is QEMU and its guest. The name appears only when the file is complete:
        a broker that dies in here leaves nothing behind.

        Raises:
            HeapFileError: bad size, name taken, or not enough room.
        """
        _check_size(path, size)
        try:
            fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HeapFileError(_create_fault(path, size, error)) from error
        try:
            os.fchmod(fd, 0o600)
            os.posix_fallocate(fd, 0, size)
            # Following /proc's link is how an O_TMPFILE file gets its name (open(2)). Python follows it only
            # when given a directory descriptor, which the kernel ignores for an absolute path.
            os.link(f"/proc/self/fd/{fd}", path.absolute(), src_dir_fd=fd, follow_symlinks=True)
        except OSError as error:
            os.close(fd)
            raise HeapFileError(_create_fault(path, size, error)) from error
        return cls(path, fd, size)

    @classmethod
    def open(cls, path: Path, size: int | None = None) -> HeapFile:
        """Open an existing heap file; with `size`, insist on it.

        Raises:
            HeapFileError: missing, not a private regular file of ours, or of another size.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise HeapFileError(f"heap file {path}: cannot open: {error.strerror}") from error
        try:
            actual = _check_file(path, os.fstat(fd), size)
        except HeapFileError:
            os.close(fd)
            raise
        return cls(path, fd, actual)

    @classmethod
    def ensure(cls, path: Path, size: int) -> HeapFile:
        """Open the heap file if it exists (a broker's restart), else create it.

        Raises:
            HeapFileError: as `open` and `create`. A file of another size is never resized: guests may map it.
        """
        if os.path.lexists(path):
            return cls.open(path, size)
        return cls.create(path, size)

    @property
    def fd(self) -> int:
        """The descriptor that goes to QEMU; -1 once closed."""
        return self._fd

    @property
    def memory(self) -> mmap.mmap:
        """The whole heap, mapped shared and writable; mapped at the first use.

        Raises:
            HeapFileError: the file is closed, or cannot be mapped.
        """
        if self._memory is None:
            if self._fd < 0:
                raise HeapFileError(f"heap file {self.path}: closed")
            try:
                self._memory = mmap.mmap(
                    self._fd, self.size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
                )
            except OSError as error:
                raise HeapFileError(f"heap file {self.path}: cannot map: {error.strerror}") from error
        return self._memory

    def unlink(self) -> None:
        """Remove the name; mappings, here and in QEMU, stay valid. Removing it twice is fine."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give up the mapping and the descriptor; the file stays.

        A mapping that something still exports (a ctypes view, a memoryview) lives until that is gone.
        """
        if self._memory is not None:
            with contextlib.suppress(BufferError):
                self._memory.close()
            self._memory = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> HeapFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _create_fault(path: Path, size: int, error: OSError) -> str:
    if error.errno == errno.EEXIST:
        return f"heap file {path}: exists already; another broker may own it"
    if error.errno == errno.ENOSPC:
        room = os.statvfs(path.parent)
        return (
            f"heap file {path}: no room for {_size_text(size)} in {path.parent}"
            f" ({_size_text(room.f_bavail * room.f_frsize)} free)"
        )
    return f"heap file {path}: cannot create: {error.strerror}"


def _check_file(path: Path, status: os.stat_result, size: int | None) -> int:
    """The size of a file that may serve as a heap; `HeapFileError` for any other."""
    if not stat.S_ISREG(status.st_mode):
        raise HeapFileError(f"heap file {path}: not a regular file")
    if status.st_uid != os.geteuid():
        raise HeapFileError(f"heap file {path}: belongs to uid {status.st_uid}, not to us ({os.geteuid()})")
    if status.st_mode & 0o077:
        raise HeapFileError(
            f"heap file {path}: mode {stat.S_IMODE(status.st_mode):04o} lets others in",
            cure=f"make sure that nobody uses it, then rm {path}",
        )
    _check_size(path, status.st_size)
    if size is not None and status.st_size != size:
        raise HeapFileError(
            f"heap file {path}: has {_size_text(status.st_size)}, the lab wants {_size_text(size)}",
            cure="take the lab down before changing a heap's size",
        )
    return status.st_size
