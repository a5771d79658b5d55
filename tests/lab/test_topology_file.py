from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.errors import TopologyError, UserError
from lab.topology_file import find_topology, load_topology, parse_topology

HERE = Path(__file__).parent
BAD = sorted((HERE / "bad_topologies").glob("*.yaml"))
GOOD = sorted((HERE / "good_topologies").glob("*.long.yaml"))
FAULT = re.compile(r"t\.yaml:[1-9][0-9]*: \S.*: \S.*")


def faults_of(text: str) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        parse_topology(text, "t.yaml")
    return [str(fault) for fault in caught.value.faults]


def test_the_corpora_are_there():
    assert len(BAD) >= 28
    assert len(GOOD) >= 4


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_topology_gives_its_golden_faults(path, update_golden):
    with pytest.raises(TopologyError) as caught:
        load_topology(path)
    told = str(caught.value).replace(str(path), path.name) + "\n"
    golden = path.with_suffix(".txt")
    if update_golden:
        golden.write_text(told)
    assert told == golden.read_text()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_faults_are_sorted_and_say_what_is_valid(path):
    with pytest.raises(TopologyError) as caught:
        load_topology(path)
    faults = caught.value.faults
    lines = max(1, path.read_bytes().count(b"\n") + 1)
    assert [fault.line for fault in faults] == sorted(fault.line for fault in faults)
    for fault in faults:
        assert "\n" not in str(fault)
        assert 1 <= fault.line <= lines
        if fault.message.startswith("is given twice"):
            continue
        what, _, valid = fault.message.partition("; ")
        assert what
        assert valid, f"{fault}: does not say what is valid"


def test_each_bad_topology_has_another_fault():
    told = [path.with_suffix(".txt").read_text().replace(path.stem, "") for path in BAD]
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name.partition(".")[0])
def test_abbreviations_mean_what_they_are_short_for(path):
    short = load_topology(path.with_name(path.name.replace(".long", "")))
    assert short == load_topology(path)
    assert short.digest() == load_topology(path).digest()


def test_all_faults_of_independent_parts_are_told_at_once():
    told = faults_of(
        "name: X\nheaps:\n  h: {size: 3, members: [nobody]}\nguests:\n  a: {vcpus: 0, heaps: [g]}\n"
    )
    assert [line.split(": ")[1] for line in told] == [
        "name",
        "heaps.h.members[0]",
        "heaps.h.size",
        "guests.a.heaps[0]",
        "guests.a.vcpus",
    ]


def test_a_reference_to_a_faulty_part_is_not_called_unknown():
    told = faults_of(
        "name: x\nnetworks: {lan: {subnet: 5}}\nheaps: {h: {size: 3, members: [a]}}\n"
        "guests:\n  a: {networks: [lan], heaps: [h], memory: 1}\n"
    )
    assert not [line for line in told if "unknown" in line]
    assert len(told) == 3


def test_line_of_a_name_in_a_list_is_its_own():
    assert faults_of("name: x\nguests:\n  - client\n  - Server\n")[0].startswith("t.yaml:4: guests.Server: ")


def test_byte_order_mark_is_no_fault():
    assert parse_topology(b"\xef\xbb\xbfname: x\nguests: [a]\n", "t.yaml").name == "x"


def test_huge_file_is_refused_quickly():
    begun = time.perf_counter()
    assert "at most 1048576" in faults_of("#" * (5 << 20))[0]
    assert time.perf_counter() - begun < 1


def test_aliases_cannot_expand_without_end():
    rows = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    told = faults_of("a0: &a0 [x, x]\n" + "\n".join(rows) + "\n")
    assert "expands to too much data" in told[0]


def test_deep_nesting_is_a_fault():
    for text in ("[" * 5000, "a: " + "[" * 60 + "]" * 60, "a: " + "{b: " * 2000 + "1" + "}" * 2000):
        assert faults_of(text)


def test_too_many_guests():
    names = ", ".join(f"g{number}" for number in range(1001))
    assert faults_of(f"name: x\nguests: [{names}]\n") == ["t.yaml:2: guests: has 1001 entries; at most 1000"]


def test_no_default_subnet_is_left():
    told = faults_of("name: x\nnetworks:\n  a: 10.77.0.0/16\n  b:\nguests: [g]\n")
    assert told == ["t.yaml:4: networks.b: no default subnet is left; give it a `subnet`"]


def test_five_hundred_guests_are_checked_within_a_second():
    guests = "".join(
        f"  g{number}:\n    memory: 256MiB\n    vcpus: 2\n    networks: [lan]\n    shim: all\n"
        for number in range(500)
    )
    begun = time.process_time()
    topology = parse_topology(
        f"name: big\nnetworks: {{lan: 10.0.0.0/16}}\nheaps: {{h: {{members: all}}}}\nguests:\n{guests}", "t"
    )
    assert time.process_time() - begun < 1
    assert len({guest.address for guest in topology.guests.values()}) == 500
    assert len({guest.interfaces[0].mac for guest in topology.guests.values()}) == 500


_WORDS = st.sampled_from(
    "name guests networks heaps image policy lan client size members subnet 10.77.0.0/24 64MiB all << "
    "address memory upgrade fd77::/64 packages suite".split()
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _WORDS | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(_WORDS | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=20,
)
_PUNCTUATION = st.text(alphabet=":-[]{}&*!|>'\"%@`#,? \n\tab1<", max_size=60)


def faults_if_any(raw: str | bytes) -> tuple[str, ...]:
    try:
        parse_topology(raw, "t.yaml")
    except TopologyError as error:
        return tuple(map(str, error.faults))
    return ()


@given(_VALUES)
@settings(max_examples=300, deadline=None)
def test_whatever_data_is_written_only_faults_come_of_it(data):
    for fault in faults_if_any(json.dumps(data)):
        assert FAULT.fullmatch(fault)


@given(st.binary(max_size=60) | _PUNCTUATION.map(str.encode))
@settings(max_examples=300, deadline=None)
def test_whatever_bytes_a_file_holds_only_faults_come_of_it(raw):
    assert faults_if_any(raw)


def test_half_a_surrogate_pair():
    assert "surrogate" in faults_of('name: "\\ud800"\nguests: [a]\n')[0]
    assert "surrogate" in faults_of('"\\ud800": x\nname: x\nguests: [a]\n')[0]


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        load_topology(tmp_path / "nope.yaml")
    with pytest.raises(UserError, match="is a directory"):
        load_topology(tmp_path)


def test_find_topology(tmp_path):
    given = Path("x.yaml")
    assert find_topology(given, tmp_path) == given
    (tmp_path / "other.yml").touch()
    with pytest.raises(UserError, match=r"has no lab.yaml \(there is other.yml\)"):
        find_topology(None, tmp_path)
    (tmp_path / "lab.yaml").touch()
    assert find_topology(None, tmp_path) == tmp_path / "lab.yaml"
