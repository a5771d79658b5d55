from __future__ import annotations

import io

import pytest

from lab import console
from lab.errors import LabError, UserError
from lab.paths import LabPaths
from lab.topology_file import parse_topology


@pytest.fixture
def topology(monkeypatch, tmp_path):
    monkeypatch.setenv("HYPERHEAP_RUNTIME", str(tmp_path))
    return parse_topology("name: x\nguests: [a]\n", "t.yaml")


def test_last_lines_are_clean(tmp_path):
    log = tmp_path / "console.log"
    log.write_bytes(b"\x1b[0;32m  OK  \x1b[0m started\r\n\r\n\x1b]0;title\x07one\r\ntwo\xff\n")
    assert console.last_lines(log) == ("  OK   started", "one", "two�")
    assert console.last_lines(log, 1) == ("two�",)


def test_last_lines_of_a_long_log(tmp_path):
    log = tmp_path / "console.log"
    log.write_text("".join(f"line {number}\n" for number in range(100_000)))
    assert console.last_lines(log, 2) == ("line 99998", "line 99999")


def test_last_lines_of_no_log(tmp_path):
    assert console.last_lines(tmp_path / "absent") == ()


def test_show_log(topology):
    log = LabPaths("x").guest("a").console_log
    log.parent.mkdir(parents=True)
    log.write_bytes(b"hello\n")
    out = io.BytesIO()
    console.show_log(topology, "a", source="console", out=out)
    assert out.getvalue() == b"hello\n"


def test_show_log_refusals(topology):
    with pytest.raises(LabError, match="there is no log"):
        console.show_log(topology, None, source="daemon", out=io.BytesIO())
    with pytest.raises(UserError, match="no log 'nonsense'"):
        console.show_log(topology, None, source="nonsense", out=io.BytesIO())
    with pytest.raises(UserError, match="no guest 'b'"):
        console.show_log(topology, "b", source="console", out=io.BytesIO())
