from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from lab.heap_file import MIN_SIZE, HeapFile, HeapFileError

SIZE = 1 << 20


def test_a_new_file_is_private_zero_and_reserved(tmp_path: Path) -> None:
    with HeapFile.create(tmp_path / "heap", SIZE) as heap:
        status = (tmp_path / "heap").stat()
        assert status.st_mode & 0o777 == 0o600
        assert status.st_size == SIZE == heap.size
        assert status.st_blocks * 512 >= SIZE
        assert heap.memory[:] == bytes(SIZE)


def test_the_umask_does_not_matter(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        HeapFile.create(tmp_path / "heap", SIZE).close()
    finally:
        os.umask(before)
    assert (tmp_path / "heap").stat().st_mode & 0o777 == 0o600


def test_a_restarted_broker_finds_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "heap"
    with HeapFile.ensure(path, SIZE) as heap:
        heap.memory[4096:4100] = b"kept"
        guest = mmap.mmap(heap.fd, SIZE)
    with HeapFile.ensure(path, SIZE) as heap:
        assert heap.memory[4096:4100] == b"kept"
        heap.memory[0:3] = b"new"
        assert guest[0:3] == b"new"
        heap.unlink()
        heap.unlink()
    assert not path.exists()
    guest.close()


def test_two_brokers_cannot_create_one_file(tmp_path: Path) -> None:
    with (
        HeapFile.create(tmp_path / "heap", SIZE),
        pytest.raises(HeapFileError, match="exists already"),
    ):
        HeapFile.create(tmp_path / "heap", SIZE)


@pytest.mark.parametrize("size", [0, -4096, 4096, 12288, SIZE + 1, SIZE + 4096])
def test_a_size_that_no_bar_can_have_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(HeapFileError, match="power of two"):
        HeapFile.create(tmp_path / "heap", size)
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(HeapFileError, match=r"no room|too large|cannot create") as caught:
        HeapFile.create(tmp_path / "heap", 1 << 61)
    assert str(tmp_path / "heap") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_tmpfs_is_said_with_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(HeapFileError, match=r"no room for 1 MiB in .* free"):
        HeapFile.create(tmp_path / "heap", SIZE)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    HeapFile.create(tmp_path / "heap", SIZE).close()
    with pytest.raises(HeapFileError, match=r"has 1 MiB, the lab wants 2 MiB") as caught:
        HeapFile.ensure(tmp_path / "heap", 2 * SIZE)
    assert caught.value.cure is not None
    assert HeapFile.open(tmp_path / "heap").size == SIZE


@pytest.mark.parametrize("kind", ["missing", "symlink", "directory", "fifo", "public", "odd"])
def test_what_is_not_a_private_heap_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "heap"
    other = tmp_path / "other"
    HeapFile.create(other, SIZE).close()
    if kind == "symlink":
        path.symlink_to(other)
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind == "public":
        other.rename(path)
        path.chmod(0o644)
    elif kind == "odd":
        path.touch(0o600)
        os.truncate(path, 12345)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(HeapFileError, match=str(path)):
        HeapFile.open(path, SIZE)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    HeapFile.create(tmp_path / "heap", SIZE).close()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(HeapFileError, match="4711"):
        HeapFile.open(tmp_path / "heap")


def test_closing_with_views_alive_is_fine(tmp_path: Path) -> None:
    heap = HeapFile.create(tmp_path / "heap", MIN_SIZE)
    view = (ctypes.c_uint8 * MIN_SIZE).from_buffer(heap.memory)
    heap.close()
    heap.close()
    assert heap.fd == -1
    view[0] = 1
    with pytest.raises(HeapFileError, match="closed"):
        _ = heap.memory
