from __future__ import annotations

import re
from pathlib import Path

import pytest

from lab import tsc


def test_frequency_is_plausible():
    frequency = tsc.frequency_khz()
    if frequency is None:
        pytest.skip("no time stamp counter can be read here")
    assert 500_000 < frequency < 10_000_000
    # Not a law, but true wherever these tests run: a counter within a factor of four of what the processor
    # claims.
    claimed = re.search(r"cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text())
    assert claimed is not None
    assert 0.25 < frequency / 1000 / float(claimed[1]) < 4


def test_measurements_agree():
    tsc.frequency_khz.cache_clear()
    one = tsc.frequency_khz()
    tsc.frequency_khz.cache_clear()
    other = tsc.frequency_khz()
    assert one is None or other is None or abs(one - other) < one / 1000
