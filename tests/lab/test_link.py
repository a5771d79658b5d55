from __future__ import annotations

import subprocess
import sys

import pytest

from lab import link
from lab.errors import LabError, UserError
from lab.impairment import LinkImpairment
from lab.topology_file import parse_topology

TEXT = "name: no-such-lab-is-up\nnetworks: [lan, back]\nguests: {a: {networks: lan}, b: }\n"


@pytest.fixture
def topology():
    return parse_topology(TEXT, "t.yaml")


def test_a_link_by_its_name(topology):
    assert str(link.find(topology, "b:back")) == "b:back"
    assert link.find(topology, "a") == link.Name("a", "lan")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("b", "guest b is on several networks; its links are b:lan, b:back"),
        ("a:back", "guest a is not on network 'back'; its links are a:lan"),
        ("a:", "is not on network ''"),
        ("c:lan", "has no guest 'c'"),
    ],
)
def test_what_is_no_link(topology, text, told):
    with pytest.raises(UserError, match=told):
        link.find(topology, text)


def test_links_of_a_lab_that_is_down(topology):
    assert [(each.guest, each.network, each.state) for each in link.show(topology)] == [
        ("a", "lan", "absent"),
        ("b", "lan", "absent"),
        ("b", "back", "absent"),
    ]
    with pytest.raises(LabError, match="is not up"):
        link.find_tap(topology, link.Name("a", "lan"))


def test_what_an_earlier_guest_was_given_counts_no_more(tmp_path, monkeypatch, topology):
    monkeypatch.setenv("HYPERHEAP_RUNTIME", str(tmp_path))
    place = link._Place(link.LabPaths("x"), "lo", "bridge")
    assert link._current(place) == ("", LinkImpairment())
    place.file.parent.mkdir(parents=True)
    for text in (
        "{",
        "{}",
        '{"by": "netem", "tap_index": -1, "impairment": {"to_guest": {}, "from_guest": {}}}',
    ):
        place.file.write_text(text)
        assert link._current(place) == ("", LinkImpairment())


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["link", "set", "a:lan", "delay=20"], 2, "such as 20ms"),
        (["link", "set", "a:wan", "delay=20ms"], 2, "its links are a:lan"),
        (["forward", "a:x"], 2, "is not GUEST:PORT"),
        (["forward", "a:80"], 1, "is not up"),
        (["metrics", "--port", "0", "--socket", "x"], 2, "give one of them"),
        (["stats"], 1, "is not up"),
    ],
)
def test_requests_that_are_refused(tmp_path, words, code, told):
    file = tmp_path / "t.yaml"
    file.write_text(TEXT)
    done = subprocess.run(
        [sys.executable, "-m", "lab", "-t", str(file), *words], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == code, done.stderr
    assert told in done.stderr
