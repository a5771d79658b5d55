from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.topology_values import InvalidValueError, did_you_mean, format_size, listing, parse_size, shorten


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 64 << 20),
        ("64M", 64 << 20),
        ("64mi", 64 << 20),
        (" 1.5 GiB ", 3 << 29),
        ("512k", 512 << 10),
        ("4096", 4096),
        ("4096B", 4096),
        (4096, 4096),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("64MB", "did you mean '64MiB'"),
        ("1.0000001KiB", "not a whole number"),
        ("-5MiB", "is not a size"),
        ("5 apples", "unknown unit 'apples'"),
        ("9" * 50, "out of range"),
        ("", "is not a size"),
        (True, "truth value"),
        (1.5, "the number 1.5"),
        (None, "is empty"),
        ([1], "a list"),
        ("٣MiB", "is not a size"),
    ],
)
def test_what_is_no_size(text, why):
    with pytest.raises(InvalidValueError, match=why):
        parse_size(text)


@given(st.integers(min_value=0, max_value=1 << 50))
def test_a_formatted_size_reads_back(size):
    assert parse_size(format_size(size)) == size


def test_guesses():
    assert did_you_mean("sever", ["client", "server"]) == " (did you mean 'server'?)"
    assert did_you_mean("Server", ["client", "server"]) == " (did you mean 'server'?)"
    assert did_you_mean("after_bytes", ["after-bytes"]) == " (did you mean 'after-bytes'?)"
    assert did_you_mean("xyz", ["client", "server"]) == ""


def test_shortening():
    assert listing(map(str, range(20)), limit=3) == "0, 1, 2 and 17 more"
    assert shorten("x" * 100, 10) == "xxxxxxx..."
