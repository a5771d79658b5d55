from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from lab import domain, network
from lab.topology_file import load_topology, parse_topology

GOLDEN = Path(__file__).parent / "golden_xml"
BOOT = domain.Boot(Path("/images/i/vmlinuz"), Path("/images/i/initrd.img"), "tcg", 2596124)


@pytest.fixture
def hello(repository):
    return load_topology(repository / "examples" / "hello.yaml")


def check(name, text, update_golden):
    file = GOLDEN / name
    if update_golden:
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()
    return ElementTree.fromstring(text)


def test_member_of_a_heap(hello, update_golden):
    root = check("client.xml", domain.xml(hello, hello.guest("client"), BOOT), update_golden)
    assert root.find("devices/shmem/server").get("path") == "/run/hyperheap/hello/heaps/shared.sock"
    assert root.find("devices/shmem/size") is None, "libvirt refuses a size for a doorbell device"
    assert {each.get("name") for each in root.findall("cpu/feature[@policy='disable']")} >= {"erms", "fsrm"}


def test_outsider_has_no_heap(hello, update_golden):
    root = check("outsider.xml", domain.xml(hello, hello.guest("outsider"), BOOT), update_golden)
    assert root.find("devices/shmem") is None


def test_kvm_uses_the_host_processor(hello, update_golden):
    boot = domain.Boot(BOOT.kernel, BOOT.initrd, "kvm")
    root = check("client-kvm.xml", domain.xml(hello, hello.guest("client"), boot), update_golden)
    assert root.get("type") == "kvm"
    assert root.find("cpu").get("mode") == "host-passthrough"


def test_a_guest_under_tcg_does_not_measure_its_clock():
    assert "tsc_early_khz=2596124" in BOOT.cmdline
    assert "clocksource=hpet" in domain.Boot(BOOT.kernel, BOOT.initrd, "tcg", None).cmdline
    assert "tsc" not in domain.Boot(BOOT.kernel, BOOT.initrd, "kvm", 2596124).cmdline


def test_network(hello, update_golden):
    root = check("lan.xml", network.xml("hello", hello.networks["lan"]), update_golden)
    assert root.find("ip/dhcp") is None
    assert root.find("dns").get("enable") == "no"


def test_network_with_an_mtu(update_golden):
    topology = parse_topology("name: x\nnetworks: {lan: {mtu: 9000, uplink: nat}}\nguests: [a]\n", "t.yaml")
    root = check("lan-mtu.xml", network.xml("x", topology.networks["lan"]), update_golden)
    assert root.find("mtu").get("size") == "9000"
    assert root.find("forward").get("mode") == "open", "what gets out is not libvirt's business"
    guest = ElementTree.fromstring(domain.xml(topology, topology.guest("a"), BOOT))
    assert guest.find("devices/interface/mtu").get("size") == "9000", "or the guest does not learn of it"


def test_every_device_has_a_place_of_its_own():
    names = [f"n{i}" for i in range(8)]
    topology = parse_topology(
        "name: x\n"
        + "networks: {"
        + ", ".join(f"{name}: {{subnet: 10.0.{i}.0/24}}" for i, name in enumerate(names))
        + "}\nheaps: {"
        + ", ".join(f"h{i}: {{size: 1MiB, members: all}}" for i in range(12))
        + "}\nguests: {a: {networks: ["
        + ", ".join(names)
        + "]}}\n",
        "t.yaml",
    )
    root = ElementTree.fromstring(domain.xml(topology, topology.guest("a"), BOOT))
    places = [(each.get("slot"), each.get("function")) for each in root.iter("address")]
    assert len(root.findall("devices/shmem")) == 12
    assert len(root.findall("devices/interface")) == 8
    assert len(set(places)) == len(places)


def test_topologies_of_equal_meaning_give_one_xml(hello, repository):
    text = (repository / "examples" / "hello.yaml").read_text().replace("64MiB", "65536KiB")
    again = parse_topology(text, "t.yaml")
    assert domain.xml(again, again.guest("client"), BOOT) == domain.xml(hello, hello.guest("client"), BOOT)


@pytest.mark.parametrize(
    ("lab", "guest"), [("hello", "client"), ("a-very-long-name-for-a-lab", "and-a-guest-with-a-long-one")]
)
def test_interface_names_fit(lab, guest):
    assert len(domain.tap_name(lab, guest, 7)) <= 15
    assert len(network.bridge_name(lab, "abcdefghijkl")) <= 15


def test_names_of_two_labs_never_meet():
    assert network.bridge_name("a", "lan") != network.bridge_name("b", "lan")
    assert domain.tap_name("a-b", "c", 0) != domain.tap_name("a", "b-c", 0)
