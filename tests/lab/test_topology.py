from __future__ import annotations

from ipaddress import ip_address

import pydantic
import pytest

from lab.errors import UserError
from lab.topology_file import load_topology, parse_topology


def parse(text):
    return parse_topology(text, "t.yaml")


def test_hello_is_what_the_readme_says(repository):
    hello = load_topology(repository / "examples" / "hello.yaml")
    assert list(hello.guests) == ["client", "server", "outsider"]
    assert hello.heaps["shared"].members == ("client", "server")
    assert hello.guests["outsider"].heaps == ()
    assert [str(guest.address) for guest in hello.guests.values()] == [
        "10.77.0.11",
        "10.77.0.12",
        "10.77.0.13",
    ]
    assert [str(guest.addresses[1]) for guest in hello.guests.values()] == [
        "fd77::11",
        "fd77::12",
        "fd77::13",
    ]
    assert str(hello.networks["lan"].host_address) == "10.77.0.1"
    assert str(hello.networks["lan"].host_address6) == "fd77::1"
    assert [guest.name for guest in hello.members(hello.heaps["shared"])] == ["client", "server"]


def test_a_topology_cannot_be_changed():
    topology = parse("name: x\nguests: [a]\n")
    with pytest.raises(pydantic.ValidationError):
        topology.name = "y"
    with pytest.raises(pydantic.ValidationError):
        topology.guests["a"].memory = 5


def test_digest_is_of_the_meaning_and_nothing_else():
    base = parse("name: x\nguests: [a, b]\n").digest()
    assert len(base) == 64
    assert base == parse("# why\nguests: {a: {memory: 384M}, b: }\nname:   'x'\n").digest()
    for other in (
        "name: y\nguests: [a, b]\n",
        "name: x\nguests: [a, c]\n",
        "name: x\nguests: [a, b, c]\n",
        "name: x\nguests: {a: {memory: 385M}, b: }\n",
        "name: x\nguests: {a: {shim: all}, b: }\n",
        "name: x\nguests: [a, b]\nheaps: {h: {members: all}}\n",
        "name: x\nguests: [a, b]\nnetworks: {lan: 10.0.0.0/24}\n",
        "name: x\nguests: [a, b]\nimage: {packages: [curl]}\n",
        "name: x\nguests: [a, b]\npolicy: {upgrade: never}\n",
    ):
        assert parse(other).digest() != base


def test_digest_is_stable():
    # A changed digest means that running labs no longer match their files: change it knowingly.
    digest = parse("name: x\nguests: [a]\nheaps: {h: {members: all}}\n").digest()
    assert digest == "a5dabdcac13effeffd88375119525cdb6a53c8333be63754bfa398d33d1347a7"


def test_packages_are_a_set():
    image = parse("name: x\nguests: [a]\nimage: {packages: [b1, a1, b1]}\n").image
    assert image.packages == ("a1", "b1")


def test_appending_a_guest_moves_no_other():
    few = parse("name: x\nguests: [a, b]\n")
    more = parse("name: x\nguests: [a, b, c]\n")
    assert {name: more.guests[name] for name in few.guests} == dict(few.guests)


def test_addresses_wrap_around_below_the_first():
    names = ", ".join(f"g{number}" for number in range(61))
    topology = parse(f"name: x\nnetworks: {{lan: 10.0.0.0/26}}\nguests: [{names}]\n")
    addresses = [guest.address for guest in topology.guests.values()]
    assert addresses[0] == ip_address("10.0.0.11")
    assert addresses[-1] == ip_address("10.0.0.10")
    assert len(set(addresses)) == 61


def test_unknown_guest_names_those_that_exist():
    with pytest.raises(UserError, match=r"lab x has no guest 'c'; its guests are a, b"):
        parse("name: x\nguests: [a, b]\n").guest("c")


def test_membership_is_told_on_either_side():
    topology = parse("name: x\nheaps: {h: {members: [b]}}\nguests: {a: {heaps: h}, b: , c: }\n")
    assert topology.heaps["h"].members == ("a", "b")
    assert topology.guests["b"].heaps == ("h",)
    assert topology.guests["c"].heaps == ()


@pytest.mark.parametrize(
    ("text", "upgrade", "after_bytes", "after_calls"),
    [
        ("{}", "at-once", 0, 0),
        ("{upgrade: never}", "never", 0, 0),
        ("{after-bytes: 64KiB}", "after", 65536, 0),
        ("{upgrade: after, after-calls: 3}", "after", 0, 3),
    ],
)
def test_policy(text, upgrade, after_bytes, after_calls):
    policy = parse(f"name: x\nguests: [a]\npolicy: {text}\n").policy
    assert (policy.upgrade, policy.after_bytes, policy.after_calls) == (upgrade, after_bytes, after_calls)
