"""What the kernel tells about TCP sockets; real sockets, no root."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest
from fake_shim import connected_pair, cookie_of, endpoint
from hypothesis import given
from hypothesis import strategies as st

from guest_agent import sockdiag
from guest_agent.records import Endpoint
from guest_agent.sockdiag import DestroyWatch, TcpSocket


@pytest.fixture(params=["127.0.0.1", "::1"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = connected_pair(request.param)
    yield near, far
    near.close()
    far.close()


def names(connection: socket.socket) -> tuple[Endpoint, Endpoint]:
    return endpoint(connection.getsockname()), endpoint(connection.getpeername())


def test_a_socket_is_found_by_its_names_and_cookie(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    near.sendall(b"x" * 1000)
    assert len(far.recv(1000, socket.MSG_WAITALL)) == 1000
    found = sockdiag.find(*names(near), cookie_of(near))
    assert found is not None
    assert (found.cookie, found.local, found.remote) == (cookie_of(near), *names(near))
    assert found.sent == 1000
    other = sockdiag.find(*names(far), cookie_of(far))
    assert other is not None
    assert other.received == 1000
    assert sockdiag.find(*names(near), cookie_of(far)) is None
    assert sockdiag.find(names(near)[0], Endpoint(names(near)[1].address, 1), cookie_of(near)) is None


def test_a_v4_socket_of_a_v6_program_is_found_as_v4() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        near = socket.create_connection(("127.0.0.1", listener.getsockname()[1]))
        far, _ = listener.accept()
    with near, far:
        found = sockdiag.find(*names(far), cookie_of(far))
        assert found is not None
        assert found.local.address == "127.0.0.1"
        assert (found.cookie, found.local) in {(each.cookie, each.local) for each in sockdiag.dump()}


def test_a_dump_has_connections_and_listeners(pair: tuple[socket.socket, socket.socket]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        cookies = {each.cookie: each for each in sockdiag.dump()}
        assert {cookie_of(pair[0]), cookie_of(pair[1]), cookie_of(listener)} <= set(cookies)
        assert cookies[cookie_of(listener)].state == sockdiag.TCP_LISTEN


def collect(watch: DestroyWatch, destroyed: list[TcpSocket], count: int) -> None:
    while len(destroyed) < count:
        assert select.select([watch], [], [], 5)[0], f"only {len(destroyed)} of {count}"
        watch.take()


def test_destroyed_sockets_are_told_with_their_counters(pair: tuple[socket.socket, socket.socket]) -> None:
    destroyed: list[TcpSocket] = []
    wanted = {cookie_of(pair[0]), cookie_of(pair[1])}
    watch = DestroyWatch(is_wanted=wanted.__contains__, on_destroyed=destroyed.append, on_lost=pytest.fail)
    watch.switch(True)
    pair[0].sendall(b"x" * 1000)
    assert pair[1].recv(1000, socket.MSG_WAITALL)
    with socket.create_server(("127.0.0.1", 0)):
        pass  # of no interest
    for each in pair:
        each.close()
    collect(watch, destroyed, 2)
    by_cookie = {each.cookie: each for each in destroyed}
    assert set(by_cookie) == wanted
    assert {each.sent for each in destroyed} == {1000, 0}
    watch.close()


def test_a_watch_that_is_off_hears_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    watch = DestroyWatch(is_wanted=lambda _: True, on_destroyed=pytest.fail, on_lost=pytest.fail)
    watch.switch(True)
    watch.switch(False)
    for each in pair:
        each.close()
    assert not select.select([watch], [], [], 0.1)[0]
    watch.close()


def test_lost_news_are_noticed() -> None:
    lost: list[bool] = []
    watch = DestroyWatch(
        is_wanted=lambda _: False, on_destroyed=pytest.fail, on_lost=lambda: lost.append(True)
    )
    watch._netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    watch.switch(True)
    for _ in range(50):
        for each in connected_pair():
            each.close()
    while not lost and select.select([watch], [], [], 1)[0]:
        watch.take()
    assert lost
    watch.close()


@given(st.binary(max_size=500))
def test_any_bytes_are_parsed_or_not(data: bytes) -> None:
    sockdiag.parse(data)
    sockdiag.parse_cookie(data)
    list(sockdiag._messages(data))
