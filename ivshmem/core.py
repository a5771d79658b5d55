# SPDX-License-Identifier: Apache-2.0
"""Binding of libivshmem.so (``include/hyperheap/core.h``): it only converts.

Memory is handed over as anything with a writable buffer (``mmap.mmap``, ``bytearray``). Sizes and offsets
are bytes. Errors of the C side become ``OSError`` with its errno.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ivshmem import artifacts

Buffer = Any
"""An object with a writable buffer; typing has no name for it in Python 3.11."""

PATH_NETWORK: Final = 0
PATH_SHARED: Final = 1
GONE_NO: Final = 0
GONE_CLOSED: Final = 1
GONE_VANISHED: Final = 2


class _Offer(ctypes.Structure):
    _fields_ = [
        ("cookie", ctypes.c_uint64),
        ("channel", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("ring_size", ctypes.c_uint32),
        ("generation", ctypes.c_uint32),
        ("heap", ctypes.c_uint32),
        ("side", ctypes.c_uint32),
        ("peer_id", ctypes.c_uint32),
        ("want", ctypes.c_uint32),
    ]


class _EndStats(ctypes.Structure):
    _fields_ = [
        ("cookie", ctypes.c_uint64),
        ("channel", ctypes.c_uint64),
        ("tx_shared", ctypes.c_uint64),
        ("rx_shared", ctypes.c_uint64),
        ("tx_path", ctypes.c_uint32),
        ("rx_path", ctypes.c_uint32),
        ("tx_epochs", ctypes.c_uint32),
        ("rx_epochs", ctypes.c_uint32),
        ("gone", ctypes.c_uint32),
        ("error", ctypes.c_uint32),
        ("attached", ctypes.c_uint32),
        ("generation", ctypes.c_uint32),
        ("offset", ctypes.c_uint64),
        ("heap", ctypes.c_uint32),
        ("ring_size", ctypes.c_uint32),
        ("side", ctypes.c_uint32),
        ("peer_id", ctypes.c_uint32),
    ]


@dataclass(frozen=True, slots=True)
class Offer:
    """What an agent knows when it offers an end (``struct hh_offer``)."""

    cookie: int
    channel: int
    offset: int
    ring_size: int
    generation: int
    heap: int
    side: int
    peer_id: int
    want: int = PATH_SHARED


@dataclass(frozen=True, slots=True)
class EndStats:
    """Counters and place of one end (``struct hh_end_stats``); byte counts since the channel began."""

    index: int
    cookie: int
    channel: int
    tx_shared: int
    rx_shared: int
    tx_path: int
    rx_path: int
    tx_epochs: int
    rx_epochs: int
    gone: int
    error: int
    attached: int
    generation: int
    offset: int
    heap: int
    ring_size: int
    side: int
    peer_id: int


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(artifacts.core_library()))
    u32, u64, pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
    prototypes: dict[str, tuple[Any, list[Any]]] = {
        "hh_heap_format": (ctypes.c_int, [pointer, u64, ctypes.c_char_p, ctypes.c_char_p]),
        "hh_heap_check": (ctypes.c_int, [pointer, u64, ctypes.c_char_p, ctypes.c_char_p]),
        "hh_channel_length": (ctypes.c_int64, [u32]),
        "hh_channel_format": (ctypes.c_int, [pointer, u64, u64, u32, u64, u32]),
        "hh_channel_clear": (ctypes.c_int, [pointer, u64, u64]),
        "hh_region_length": (ctypes.c_int64, [u32]),
        "hh_region_format": (ctypes.c_int, [pointer, u32]),
        "hh_region_check": (ctypes.c_int, [pointer, u64]),
        "hh_region_adopt": (ctypes.c_int64, [pointer]),
        "hh_region_set_policy": (None, [pointer, u32, u64, u32]),
        "hh_region_bump": (None, [pointer]),
        "hh_end_put": (ctypes.c_int, [pointer, ctypes.POINTER(_Offer)]),
        "hh_end_find": (ctypes.c_int, [pointer, u64]),
        "hh_end_drop": (ctypes.c_int, [pointer, u32]),
        "hh_end_stats": (ctypes.c_int, [pointer, u32, ctypes.POINTER(_EndStats)]),
        "hh_end_set_gone": (ctypes.c_int, [pointer, u32, u32]),
        "hh_end_set_want": (ctypes.c_int, [pointer, u32, u32]),
        "hh_spin_ns": (u32, []),
        "hh_layout_json": (ctypes.c_char_p, []),
    }
    for name, (result, arguments) in prototypes.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def _address(memory: Buffer) -> tuple[ctypes.c_void_p, int, Any]:
    """Address and length of a writable buffer, and the object that must outlive their use."""
    view = (ctypes.c_char * len(memory)).from_buffer(memory)
    return ctypes.c_void_p(ctypes.addressof(view)), len(memory), view


def heap_format(heap: Buffer, uuid: bytes, name: str) -> None:
    """Write the header of a new heap over its first page. ``uuid``: 16 bytes.

    OSError(EINVAL) for a bad size or name.
    """
    address, size, _keep = _address(heap)
    _checked(_library().hh_heap_format(address, size, uuid, name.encode()))


def heap_check(heap: Buffer) -> tuple[bytes, str]:
    """(uuid, name) of a heap; OSError(EINVAL) if it is none of this version."""
    address, size, _keep = _address(heap)
    uuid, name = ctypes.create_string_buffer(16), ctypes.create_string_buffer(64)
    _checked(_library().hh_heap_check(address, size, uuid, name))
    return uuid.raw, name.value.decode(errors="replace")


def channel_length(ring_size: int) -> int:
    """Bytes that a channel with two rings of ``ring_size`` bytes takes; OSError(EINVAL) for a bad size."""
    return int(_checked(_library().hh_channel_length(ring_size)))


def channel_format(heap: Buffer, offset: int, ring_size: int, channel: int, generation: int) -> None:
    """Wipe and format the channel at ``offset``; OSError(EINVAL) if it does not lie in the heap."""
    address, size, _keep = _address(heap)
    _checked(_library().hh_channel_format(address, size, offset, ring_size, channel, generation))


def channel_clear(heap: Buffer, offset: int) -> None:
    """The lease ended: nobody may attach to the channel at ``offset`` any more."""
    address, size, _keep = _address(heap)
    _checked(_library().hh_channel_clear(address, size, offset))


def spin_ns() -> int:
    """Nanoseconds that a process should spin at most before it sleeps, on this machine."""
    return int(_library().hh_spin_ns())


def layout() -> dict[str, dict[str, int]]:
    """Sizes and offsets of the C structs: ``{struct: {"size": n, field: offset}}``."""
    return dict(json.loads(_library().hh_layout_json()))


def region_length(end_count: int) -> int:
    """Bytes of a region of ends; OSError(EINVAL) unless ``end_count`` is a power of two of at least 64."""
    return int(_checked(_library().hh_region_length(end_count)))


class Region:
    """The region of ends over ``memory``. One writer: the agent of this guest."""

    def __init__(self, memory: Buffer) -> None:
        self._memory = memory
        self._address, self._length, self._keep = _address(memory)

    @classmethod
    def format(cls, memory: Buffer, end_count: int) -> Region:
        """Make a new region; ``memory`` must hold ``region_length(end_count)`` bytes."""
        region = cls(memory)
        if region._length < region_length(end_count):
            needed = region_length(end_count)
            raise ValueError(f"a region of {end_count} ends takes {needed} bytes, not {region._length}")
        _checked(_library().hh_region_format(region._address, end_count))
        return region

    def check(self) -> bool:
        """Whether the memory holds a region of this version."""
        return bool(_library().hh_region_check(self._address, self._length) == 0)

    def adopt(self) -> int:
        """This agent takes over; the new agent epoch."""
        return int(_library().hh_region_adopt(self._address))

    def set_policy(self, upgrade_calls: int, upgrade_bytes: int, spin_ns: int) -> None:
        """When processes announce a connection, and how long they spin at most."""
        _library().hh_region_set_policy(self._address, upgrade_calls, upgrade_bytes, spin_ns)

    def bump(self) -> None:
        """Tell all processes to read what the agent has sent them."""
        _library().hh_region_bump(self._address)

    def put(self, offer: Offer) -> int:
        """Index of the new end. OSError: EEXIST (the cookie has one), ENOSPC, EINVAL."""
        native = _Offer(**{field[0]: getattr(offer, field[0]) for field in _Offer._fields_})
        return int(_checked(_library().hh_end_put(self._address, ctypes.byref(native))))

    def find(self, cookie: int) -> int | None:
        """Index of the cookie's end, if it has one."""
        index = int(_library().hh_end_find(self._address, cookie))
        return index if index >= 0 else None

    def drop(self, index: int) -> bool:
        """Free an end whose socket is gone; False while a living process is still inside."""
        result = int(_library().hh_end_drop(self._address, index))
        if result == -16:
            return False
        _checked(result)
        return True

    def stats(self, index: int) -> EndStats | None:
        """Counters of one end, or None if the slot is free."""
        native = _EndStats()
        if _library().hh_end_stats(self._address, index, ctypes.byref(native)) < 0:
            return None
        return EndStats(index, **{field[0]: getattr(native, field[0]) for field in _EndStats._fields_})

    def __iter__(self) -> Iterator[EndStats]:
        for index in range((self._length - 4096) // 512):
            found = self.stats(index)
            if found is not None:
                yield found

    def set_gone(self, index: int, gone: int) -> None:
        """The peer's socket is closed (GONE_CLOSED) or its guest is gone (GONE_VANISHED)."""
        _checked(_library().hh_end_set_gone(self._address, index, gone))

    def set_want(self, index: int, path: int) -> None:
        """The path that policy wants for what this end sends."""
        _checked(_library().hh_end_set_want(self._address, index, path))
