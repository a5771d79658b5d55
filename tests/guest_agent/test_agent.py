"""The agent with a real registry, a port with QEMU's manners, real sockets, and shims that are played.

What is tested is what processes get to see, and what the registry then knows.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_shim import FakeShim, connected_pair, cookie_of
from local_agent import LocalAgent

from guest_agent.records import Endpoint
from guest_agent.shim_protocol import Packet, ShimReason, Type
from ivshmem import core

TEST_NETWORK = "192.0.2.1"

# ends.h
REGION_HEADER = 4096
END_SIZE = 512
TX_AT = 128


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = connected_pair()
    yield near, far
    near.close()
    far.close()


@pytest.fixture
def shim(local_agent: LocalAgent) -> Iterator[FakeShim]:
    with FakeShim(local_agent.run) as shim:
        yield shim


def region_of(agent: LocalAgent) -> core.Region:
    path = agent.run / "ends"
    with path.open("r+b") as file:
        return core.Region(mmap.mmap(file.fileno(), 0))


def may_open_mappings() -> bool:
    """Whether /proc/PID/map_files may be used: CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")
    )
    return bool(int(line.split()[1], 16) & (1 << 21 | 1 << 40))


def ports_of(pair: tuple[socket.socket, socket.socket]) -> set[int]:
    return {pair[0].getsockname()[1], pair[0].getpeername()[1]}


def connection_of(agent: LocalAgent, pair: tuple[socket.socket, socket.socket] | set[int]) -> dict[str, Any]:
    ports = pair if isinstance(pair, set) else ports_of(pair)
    rows = [row for row in agent.sockets() if {row["client_port"], row["server_port"]} == ports]
    assert len(rows) == 1, rows
    return dict(rows[0])


def grant_both(shim: FakeShim, pair: tuple[socket.socket, socket.socket]) -> dict[int, tuple[Packet, int]]:
    """Announce both ends; returns the grants by cookie."""
    cookies = {shim.announce(pair[0], side=0), shim.announce(pair[1], side=1)}
    grants = [shim.hear(Type.GRANT) for _ in cookies]
    assert {packet.cookie for packet, _ in grants} == cookies
    return {packet.cookie: (packet, fd) for packet, fd in grants}


# --- announcements ------------------------------------------------------------------------------------------


def test_both_ends_get_the_same_memory(
    local_agent: LocalAgent, shim: FakeShim, pair: tuple[socket.socket, socket.socket]
) -> None:
    grants = grant_both(shim, pair)
    one, fd = grants[cookie_of(pair[0])]
    other, other_fd = grants[cookie_of(pair[1])]
    assert (one.side, other.side) == (0, 1)
    assert one.channel == other.channel != 0
    assert (one.heap, one.offset) == (0, 0)
    assert one.length == other.length == core.channel_length(262144)
    assert os.fstat(fd).st_ino == os.fstat(other_fd).st_ino
    assert shim.is_rung()
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(fd, 4096)
    region = region_of(local_agent)
    for packet, _ in grants.values():
        stats = region.stats(packet.end)
        assert stats is not None
        assert (stats.cookie, stats.channel, stats.side) == (packet.cookie, packet.channel, packet.side)
        assert region.find(packet.cookie) == packet.end
    local_agent.wait_until(
        lambda: connection_of(local_agent, pair)["state"] == "shared", "both to be attached"
    )
    assert connection_of(local_agent, pair)["fast_path"] == "SharedVM"


def test_the_end_of_the_sockets_ends_the_connection_with_its_last_counters(
    local_agent: LocalAgent, shim: FakeShim, pair: tuple[socket.socket, socket.socket]
) -> None:
    grants = grant_both(shim, pair)
    pair[0].sendall(b"x" * 1000)
    assert len(pair[1].recv(1000, socket.MSG_WAITALL)) == 1000
    region = region_of(local_agent)
    row = connection_of(local_agent, pair)
    assert (row["to_server_network"], row["to_client_network"]) == (1000, 0)
    ports = row["client_port"], row["server_port"]
    for each in pair:
        each.close()

    def has_ended() -> bool:
        (row,) = [row for row in local_agent.sockets() if (row["client_port"], row["server_port"]) == ports]
        return row["state"] == "ended" and row["to_server_network"] == 1000

    local_agent.wait_until(has_ended, "the connection to end")
    assert all(region.find(cookie) is None for cookie in grants)
    assert local_agent.status()["connections"] == 0


def test_an_end_is_not_dropped_while_a_process_is_inside(
    local_agent: LocalAgent, shim: FakeShim, pair: tuple[socket.socket, socket.socket]
) -> None:
    grants = grant_both(shim, pair)
    cookie = cookie_of(pair[0])
    with (local_agent.run / "ends").open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    region = core.Region(memory)
    libc = ctypes.CDLL(None)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    lock = ctypes.c_void_p(address + REGION_HEADER + grants[cookie][0].end * END_SIZE + TX_AT)
    assert libc.pthread_mutex_lock(lock) == 0
    names = ports_of(pair)
    pair[0].close()
    pair[1].close()
    local_agent.wait_until(
        lambda: connection_of(local_agent, names)["state"] == "closing", "the other end to go"
    )
    assert shim.is_quiet(0.3)
    assert region.find(cookie) is not None
    assert connection_of(local_agent, names)["state"] == "closing"
    assert libc.pthread_mutex_unlock(lock) == 0
    local_agent.wait_until(lambda: region.find(cookie) is None, "the end to be dropped")


def test_a_peer_outside_is_a_verdict(local_agent: LocalAgent, shim: FakeShim) -> None:
    # A listener on a lab address with a peer that is none: the registry was told of loopback only.
    address = _address_of_this_host()
    near, far = connected_pair(address)
    with near, far:
        cookie = shim.announce(near, side=0)
        packet, fd = shim.hear(Type.VERDICT)
        assert (packet.cookie, packet.reason, fd) == (cookie, ShimReason.EXTERNAL, -1)
        assert shim.is_rung()
        assert shim.announce(near, side=0) == cookie
        assert shim.hear(Type.VERDICT)[0].reason == ShimReason.EXTERNAL


def _address_of_this_host() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((TEST_NETWORK, 9))
        except OSError:
            pytest.skip("this host has no address but loopback")
        return str(probe.getsockname()[0])


def test_what_is_no_socket_of_the_process_is_ignored(
    local_agent: LocalAgent, shim: FakeShim, pair: tuple[socket.socket, socket.socket]
) -> None:
    local, remote = Endpoint("127.0.0.1", 1), Endpoint("127.0.0.1", 2)
    shim.say(Packet(Type.ANNOUNCE, cookie=cookie_of(pair[0]), local=local, remote=remote))
    shim.say(Packet(Type.ANNOUNCE, cookie=0, local=local, remote=remote))
    shim.say(Packet(77, cookie=5))
    shim.say(Packet(Type.LISTEN, cookie=0, local=local))
    assert shim.is_quiet()
    assert local_agent.sockets() == []


def test_an_end_waits_for_its_partner(
    local_agent: LocalAgent, shim: FakeShim, pair: tuple[socket.socket, socket.socket]
) -> None:
    shim.announce(pair[0])
    assert shim.is_quiet()
    assert connection_of(local_agent, pair)["state"] == "announced"
    with FakeShim(local_agent.run) as other:
        other.announce(pair[1])
        assert other.hear(Type.GRANT)[0].slot != shim.hear(Type.GRANT)[0].slot


def test_listeners_come_and_go(local_agent: LocalAgent, shim: FakeShim) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        shim.listen(listener)
        port = listener.getsockname()[1]
        local_agent.wait_until(lambda: local_agent.status()["listeners"], "the listener")
        (told,) = local_agent.status()["listeners"]
        assert (told["address"], told["port"], told["program"]) == ("127.0.0.1", port, "fake")
    local_agent.wait_until(lambda: not local_agent.status()["listeners"], "the listener to go")


def test_a_listener_that_was_closed_before_it_was_told_is_noticed(
    local_agent: LocalAgent, shim: FakeShim
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        cookie, at = cookie_of(listener), listener.getsockname()
    shim.say(Packet(Type.LISTEN, cookie=cookie, local=Endpoint(*at)))
    local_agent.wait_until(lambda: local_agent.status()["listeners"], "the listener")
    local_agent.wait_until(lambda: not local_agent.status()["listeners"], "the listener to go")


# --- processes ----------------------------------------------------------------------------------------------


def test_another_process_attaches_to_an_end(
    local_agent: LocalAgent, shim: FakeShim, pair: tuple[socket.socket, socket.socket]
) -> None:
    grants = grant_both(shim, pair)
    cookie = cookie_of(pair[0])
    first, first_fd = grants[cookie]
    with FakeShim(local_agent.run) as child:
        child.say(Packet(Type.ATTACH, cookie=cookie))
        packet, fd = child.hear(Type.GRANT)
        assert (packet.end, packet.channel, packet.side) == (first.end, first.channel, first.side)
        assert packet.slot != first.slot
        assert os.fstat(fd).st_ino == os.fstat(first_fd).st_ino
        child.say(Packet(Type.ATTACH, cookie=12345))
        assert child.hear(Type.VERDICT)[0].reason == ShimReason.UNKNOWN


def test_bells_of_slots_can_be_asked_for(
    local_agent: LocalAgent, shim: FakeShim, pair: tuple[socket.socket, socket.socket]
) -> None:
    (packet, _), _ = grant_both(shim, pair).values()
    while shim.is_rung(0.1):
        pass
    with FakeShim(local_agent.run) as other:
        other.say(Packet(Type.BELL, slot=packet.slot))
        answer, bell = other.hear(Type.BELL)
        assert answer.slot == packet.slot
        os.eventfd_write(bell, 1)
        assert shim.is_rung()
        for slot in (0, 63, 64, 0xFFFFFFFF):
            other.say(Packet(Type.BELL, slot=slot))
            assert other.hear(Type.BELL)[1] == -1


@pytest.mark.parametrize(
    "data", [b"x", bytes(176), bytes(177), b"\x02\x00" + bytes(174), Packet(Type.ATTACH).pack()]
)
def test_who_does_not_speak_the_protocol_is_disconnected(local_agent: LocalAgent, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.settimeout(5)
        stranger.connect(str(local_agent.run / "agent.sock"))
        stranger.send(data)
        assert stranger.recv(1000) == b""
    with FakeShim(local_agent.run):
        pass


def test_a_process_that_does_not_read_is_disconnected_and_nobody_waits_for_it(
    local_agent: LocalAgent, shim: FakeShim
) -> None:
    stubborn = FakeShim(local_agent.run)
    with stubborn:
        stubborn._connection.settimeout(10)
        packet = Packet(Type.ATTACH, cookie=1)
        with pytest.raises(ConnectionError):
            [stubborn.say(packet) for _ in range(100000)]
    shim.say(Packet(Type.ATTACH, cookie=1))
    assert shim.hear(Type.VERDICT)


# --- restarts -----------------------------------------------------------------------------------------------


def test_channels_and_names_outlive_the_agent(
    local_agent: LocalAgent, shim: FakeShim, pair: tuple[socket.socket, socket.socket]
) -> None:
    grants = grant_both(shim, pair)
    cookie = cookie_of(pair[0])
    packet, fd = grants[cookie]
    memory = mmap.mmap(fd, packet.length)
    local_agent.wait_until(
        lambda: connection_of(local_agent, pair)["state"] == "shared", "both to be attached"
    )
    before = connection_of(local_agent, pair)
    local_agent.kill_agent()
    local_agent.start_agent()
    after = connection_of(local_agent, pair)
    for key in ("number", "channel", "state", "client_program", "server_program", "generation", "ring"):
        assert after.get(key) == before.get(key), key
    with FakeShim(local_agent.run) as child:
        child.say(Packet(Type.ATTACH, cookie=cookie))
        again, again_fd = child.hear(Type.GRANT if may_open_mappings() else Type.VERDICT)
        if may_open_mappings():
            assert (again.end, again.channel) == (packet.end, packet.channel)
            assert os.fstat(again_fd).st_ino == os.fstat(fd).st_ino
            assert again.slot not in {grant.slot for grant, _ in grants.values()}
            child.say(Packet(Type.BELL, slot=packet.slot))
            _, bell = child.hear(Type.BELL)
            while shim.is_rung(0.1):
                pass
            os.eventfd_write(bell, 1)
            assert shim.is_rung()
    memory.close()
    pair[0].close()
    pair[1].close()
    local_agent.wait_until(lambda: local_agent.sockets()[0]["state"] == "ended", "the connection to end")


def test_announcements_outlive_the_agent(
    local_agent: LocalAgent, shim: FakeShim, pair: tuple[socket.socket, socket.socket]
) -> None:
    shim.announce(pair[0], side=0)
    local_agent.wait_until(local_agent.sockets, "the announcement")
    local_agent.kill_agent()
    local_agent.start_agent()
    with FakeShim(local_agent.run) as other:
        cookie = other.announce(pair[1], side=1)
        assert other.hear(Type.GRANT)[0].cookie == cookie
        # Who announced before the restart meets the end in the region, and asks.
        region = region_of(local_agent)
        local_agent.wait_until(lambda: region.find(cookie_of(pair[0])) is not None, "the end of the first")
        other.say(Packet(Type.ATTACH, cookie=cookie_of(pair[0])))
        assert other.hear(Type.GRANT)


def test_sockets_that_ended_while_no_agent_was_there_are_noticed(
    local_agent: LocalAgent, shim: FakeShim, pair: tuple[socket.socket, socket.socket]
) -> None:
    grants = grant_both(shim, pair)
    region = region_of(local_agent)
    local_agent.kill_agent()
    for each in pair:
        each.close()
    assert all(region.find(cookie) is not None for cookie in grants)
    local_agent.start_agent()
    local_agent.wait_until(lambda: local_agent.sockets()[0]["state"] == "ended", "the connection to end")
    assert all(region.find(cookie) is None for cookie in grants)


@pytest.mark.parametrize("way", ["restart", "listener"])
def test_a_reset_socket_that_is_still_open_keeps_its_end(
    local_agent: LocalAgent, shim: FakeShim, pair: tuple[socket.socket, socket.socket], way: str
) -> None:
    """The kernel has no such socket in any table, and its owner may have unread bytes in the ring."""
    grant_both(shim, pair)
    cookie, region = cookie_of(pair[1]), region_of(local_agent)
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair[0].close()
    if way == "restart":
        local_agent.kill_agent()
        local_agent.start_agent()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            shim.listen(listener)
        local_agent.wait_until(lambda: not local_agent.status()["listeners"], "the agent to look")
    assert region.find(cookie) is not None
    pair[1].close()
    local_agent.wait_until(lambda: region.find(cookie) is None, "the end to be dropped")


def test_everything_outlives_the_registry(
    local_agent: LocalAgent, shim: FakeShim, pair: tuple[socket.socket, socket.socket]
) -> None:
    grants = grant_both(shim, pair)
    packet, _ = grants[cookie_of(pair[0])]
    late = connected_pair()
    local_agent.kill_daemon()
    cookie = shim.announce(late[0], side=0)
    assert shim.is_quiet()
    began = time.monotonic()
    local_agent.start_daemon()
    local_agent.wait_until(lambda: local_agent.status()["connected"], "the agent to come back")
    assert time.monotonic() - began < 10
    row = connection_of(local_agent, pair)
    assert (row["channel"], row["state"], row["client_program"]) == (packet.channel, "shared", "fake")
    shim.announce(late[1], side=1)
    heard = {shim.hear(Type.GRANT)[0].cookie for _ in range(2)}
    assert heard == {cookie, cookie_of(late[1])}
    for each in (*pair, *late):
        each.close()
    local_agent.wait_until(
        lambda: all(row["state"] == "ended" for row in local_agent.sockets()), "the connections to end"
    )


@pytest.mark.parametrize("times", [5])
def test_both_are_killed_again_and_again(
    local_agent: LocalAgent, shim: FakeShim, pair: tuple[socket.socket, socket.socket], times: int
) -> None:
    packet, _ = grant_both(shim, pair)[cookie_of(pair[0])]
    for turn in range(times):
        if turn % 2:
            local_agent.kill_daemon()
        local_agent.kill_agent()
        if turn % 2:
            local_agent.start_daemon()
        local_agent.start_agent()
        local_agent.wait_until(lambda: local_agent.sockets(), "the connection")
        assert connection_of(local_agent, pair)["channel"] == packet.channel


def test_a_second_agent_does_not_start(local_agent: LocalAgent, capsys: pytest.CaptureFixture[str]) -> None:
    from guest_agent.__main__ import main

    assert main(["--port", "/nowhere", "--run", str(local_agent.run)]) == 1
    with FakeShim(local_agent.run):
        pass


def test_a_dead_guest_is_noticed_at_once(
    local_agent: LocalAgent, shim: FakeShim, pair: tuple[socket.socket, socket.socket]
) -> None:
    grant_both(shim, pair)
    began = time.monotonic()
    local_agent.kill_guest()
    local_agent.wait_until(lambda: local_agent.status()["presence"] == "dead", "the guest to be dead")
    assert time.monotonic() - began < 2
    assert {row["state"] for row in local_agent.sockets()} == {"ended"}


def test_counters_of_a_live_end_are_read_from_the_region(
    local_agent: LocalAgent, shim: FakeShim, pair: tuple[socket.socket, socket.socket]
) -> None:
    packet, _ = grant_both(shim, pair)[cookie_of(pair[0])]
    with Path(local_agent.run / "ends").open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    tx_head = REGION_HEADER + packet.end * END_SIZE + TX_AT + 40  # struct hh_end.tx.head, behind the lock
    struct.pack_into("=Q", memory, tx_head, 4711)
    assert connection_of(local_agent, pair)["to_server_shared"] == 4711
