"""The frequency of the host's time stamp counter, which a TCG guest's RDTSC returns.

A guest kernel calibrates the counter against the PIT with loops of some milliseconds. When the host takes the
processor away in such a loop the result is nonsense: guests of a busy host ran six times too fast ("PIT
calibration deviates from HPET"). So the guest is told (`tsc_early_khz=`), and the host measures, as long as
it takes to be sure.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import time

#: rdtsc; shl rdx, 32; or rax, rdx; ret
_READ = bytes.fromhex("0f31 48c1e220 4809d0 c3")

#: Seconds of one measurement. The guest refines the figure by itself, as long as it is right within one per
#: cent.
_SPAN = 0.05

_TRIES = 5


@functools.cache
def frequency_khz() -> int | None:
    """The frequency in kHz; None where it cannot be measured."""
    if platform.machine() != "x86_64":
        return None
    try:
        memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        # A policy against memory that can be written and executed.
        return None
    memory.write(_READ)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    # The median: what was interrupted between reading the one clock and the other is far off.
    return sorted(_measure(read) for _ in range(_TRIES))[_TRIES // 2]


def _measure(read: ctypes._FuncPointer) -> int:
    begun, first = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), read()
    time.sleep(_SPAN)
    ended, last = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), read()
    return int((last - first) * 1_000_000 // (ended - begun))
