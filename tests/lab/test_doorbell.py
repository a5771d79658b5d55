from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from lab import doorbell
from lab.doorbell import DoorbellError, DoorbellServer
from lab.heap_file import HeapFile

VECTORS = 4


class Client:
    """What QEMU's device does with the protocol, one message at a time."""

    def __init__(self, *, forgetful: bool = False) -> None:
        """A forgetful client closes the eventfds that it gets, to save descriptors."""
        self._forgetful = forgetful
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.id = -1
        self.heap_fd = -1
        self.bells: dict[int, list[int]] = {}
        """Eventfds per peer id, this client's own included."""

    def connect(self, path: Path) -> None:
        self._socket.connect(str(path))

    def send(self, data: bytes) -> None:
        self._socket.send(data)

    async def receive(self) -> tuple[int, int] | None:
        """The next message and its descriptor or -1; None at end of file."""
        data, fd = b"", -1
        while len(data) < 8:
            try:
                part, ancillary, _, _ = self._socket.recvmsg(8 - len(data), socket.CMSG_SPACE(4))
            except BlockingIOError:
                await wait_readable(self._socket)
                continue
            except ConnectionResetError:
                return None
            if not part:
                assert not data
                return None
            data += part
            for _, _, raw in ancillary:
                assert fd == -1
                (fd,) = struct.unpack("=i", raw)
        return struct.unpack("=q", data)[0], fd

    async def shake_hands(self) -> None:
        """The three messages that come first."""
        assert await self.receive() == (doorbell.PROTOCOL_VERSION, -1)
        message = await self.receive()
        assert message is not None
        self.id, fd = message
        assert fd == -1
        message = await self.receive()
        assert message is not None
        minus_one, self.heap_fd = message
        assert minus_one == -1
        assert self.heap_fd >= 0

    async def step(self) -> None:
        """Take in one announcement or burial."""
        message = await self.receive()
        assert message is not None
        peer, fd = message
        if fd < 0:
            close_all(self.bells.pop(peer))
        else:
            if self._forgetful:
                os.close(fd)
                fd = -1
            self.bells.setdefault(peer, []).append(fd)

    async def settle(self, peers: set[int], vectors: int = VECTORS) -> None:
        """Take in messages until exactly these peers are known, completely."""
        while set(self.bells) != peers or any(len(bells) != vectors for bells in self.bells.values()):
            await self.step()

    def rings(self, peer: int, vector: int) -> None:
        os.eventfd_write(self.bells[peer][vector], 1)

    def heard(self, vector: int) -> int:
        try:
            return os.eventfd_read(self.bells[self.id][vector])
        except BlockingIOError:
            return 0

    def close(self) -> None:
        self._socket.close()
        for bells in self.bells.values():
            close_all(bells)
        self.bells.clear()
        if self.heap_fd >= 0:
            os.close(self.heap_fd)
            self.heap_fd = -1


def close_all(fds: list[int]) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)


async def wait_readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something is so; the test's time limit is the patience."""
    while not condition():
        await asyncio.sleep(0)


class Scene:
    """A server and the clients of one test."""

    def __init__(self, heap: HeapFile, path: Path, server: DoorbellServer) -> None:
        self.heap = heap
        self.path = path
        self.server = server
        self.clients: list[Client] = []

    def connect(self, *, forgetful: bool = False) -> Client:
        client = Client(forgetful=forgetful)
        self.clients.append(client)
        client.connect(self.path)
        return client

    async def join(self, vectors: int = VECTORS, *, forgetful: bool = False) -> Client:
        """A client that has seen everybody who is there, itself included."""
        client = self.connect(forgetful=forgetful)
        await client.shake_hands()
        await client.settle(set(self.server.peers), vectors)
        return client


def play(
    tmp_path: Path,
    act: Callable[[Scene], Awaitable[None]],
    *,
    vectors: int = VECTORS,
    limit: int = 64,
    on_peer_gone: Callable[[int], None] | None = None,
) -> None:
    """Run a test's body with a started server; afterwards no descriptor may be left over."""

    @contextlib.asynccontextmanager
    async def stage() -> AsyncIterator[Scene]:
        path = tmp_path / "heap.sock"
        with HeapFile.ensure(tmp_path / "heap", 1 << 16) as heap:
            server = DoorbellServer(heap, path, vectors, limit=limit, on_peer_gone=on_peer_gone)
            await server.start()
            scene = Scene(heap, path, server)
            try:
                yield scene
            finally:
                for client in scene.clients:
                    client.close()
                await server.close()
                assert not path.exists()

    async def run() -> None:
        async with stage() as scene:
            await act(scene)

    before = count_descriptors()
    asyncio.run(run())
    assert count_descriptors() == before


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_lone_client_learns_version_id_heap_and_its_own_vectors(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        scene.heap.memory[:5] = b"hello"
        client = scene.connect()
        await client.shake_hands()
        assert client.id == 1
        assert os.pread(client.heap_fd, 5, 0) == b"hello"
        for vector in range(VECTORS):
            await client.step()
            assert len(client.bells[1]) == vector + 1
        assert dict(scene.server.peers) == {1: doorbell.Peer(1, os.getpid())}

    play(tmp_path, act)


def test_everybody_can_ring_everybody_on_every_vector(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        clients = [await scene.join() for _ in range(12)]
        everybody = {client.id for client in clients}
        for client in clients:
            await client.settle(everybody)
        for vector in range(VECTORS):
            for number, client in enumerate(clients, 1):
                for peer in everybody:
                    # Each peer hears a different sum if one bell is exchanged for another.
                    for _ in range(number if (peer + vector) % 2 else 1):
                        client.rings(peer, vector)
            for client in clients:
                expected = sum(range(1, 13)) if (client.id + vector) % 2 else 12
                assert client.heard(vector) == expected

    play(tmp_path, act)


def test_a_peer_that_leaves_is_buried_without_descriptor(tmp_path: Path) -> None:
    gone: list[int] = []

    async def act(scene: Scene) -> None:
        stays, leaves = await scene.join(), await scene.join()
        await stays.settle({stays.id, leaves.id})
        leaves.close()
        assert await stays.receive() == (leaves.id, -1)
        assert gone == [leaves.id]
        assert set(scene.server.peers) == {stays.id}

    play(tmp_path, act, on_peer_gone=gone.append)


def test_ids_come_again_as_late_as_possible(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.join()
        for expected in range(2, 6):
            client = await scene.join()
            assert client.id == expected
            client.close()
            await until(lambda: set(scene.server.peers) == {first.id})
        (tmp_path / "heap.sock.next-id").write_text(f"{doorbell.MAX_PEER_ID}\n")
        assert (await scene.join()).id == doorbell.MAX_PEER_ID
        assert (await scene.join()).id == 2, "1 is still there"

    play(tmp_path, act)


@pytest.mark.parametrize("content", ["", "nonsense", "0", "-4", "70000"])
def test_a_spoiled_id_file_starts_over(tmp_path: Path, content: str) -> None:
    async def act(scene: Scene) -> None:
        (tmp_path / "heap.sock.next-id").write_text(content)
        assert (await scene.join()).id == 1

    play(tmp_path, act)


def test_ids_go_on_after_a_restart(tmp_path: Path) -> None:
    async def first(scene: Scene) -> None:
        assert [(await scene.join()).id, (await scene.join()).id] == [1, 2]

    async def second(scene: Scene) -> None:
        assert (await scene.join()).id == 3

    play(tmp_path, first)
    play(tmp_path, second)


def test_doorbells_go_on_without_the_server(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        one, two = await scene.join(), await scene.join()
        await one.settle({one.id, two.id})
        await scene.server.close()
        assert await one.receive() is None
        one.rings(two.id, 3)
        assert two.heard(3) == 1

    play(tmp_path, act)


def test_clients_beyond_the_limit_are_refused_until_one_leaves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.join()
        await scene.join()
        assert await scene.connect().receive() is None
        assert "2 peers already" in caplog.text
        first.close()
        await until(lambda: len(scene.server.peers) == 1)
        assert (await scene.join()).id == 3

    play(tmp_path, act, limit=2)


def test_a_client_that_speaks_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def act(scene: Scene) -> None:
        client = await scene.join()
        client.send(b"x")
        assert await client.receive() is None
        assert "only the server speaks" in caplog.text
        assert (await scene.join()).id == 2

    play(tmp_path, act)


def test_a_client_that_never_reads_holds_nobody_up_and_misses_nothing(tmp_path: Path) -> None:
    vectors = 16

    async def act(scene: Scene) -> None:
        slow = scene.connect(forgetful=True)
        await slow.shake_hands()
        stay = 1
        for _ in range(3):
            crowd = [await scene.join(vectors, forgetful=True) for _ in range(20)]
            for client in crowd[5:]:
                client.close()
            stay += 5
            await until(lambda: len(scene.server.peers) == stay)  # noqa: B023
        connection = scene.server._connections[slow.id]
        assert connection.writing, "the socket's buffer is not full: this test tests nothing"
        assert len(connection.queue) <= 64 * (vectors + 1)
        # Everything that it is told late is true: nobody is buried who was never announced (step() would
        # raise), and in the end it knows the living.
        await slow.settle(set(scene.server.peers), vectors)
        assert len(slow.bells) == 16
        await until(lambda: not connection.queue and not connection.writing)

    play(tmp_path, act, vectors=vectors)


def test_clients_that_abort_at_any_point_disturb_nobody(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        steady = await scene.join()
        for messages in range(2 * VECTORS + 4):
            client = scene.connect()
            for _ in range(messages):
                message = await client.receive()
                assert message is not None
                if message[1] >= 0:
                    os.close(message[1])
            client.close()
        await until(lambda: set(scene.server.peers) == {steady.id})
        last = await scene.join()
        await steady.settle({steady.id, last.id})
        steady.rings(last.id, 0)
        assert last.heard(0) == 1

    play(tmp_path, act)


def test_a_burst_of_connections_that_are_closed_before_they_are_accepted(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        for _ in range(60):
            scene.connect().close()
        client = await scene.join()
        assert client.id == 61

    play(tmp_path, act)


def test_no_descriptors_left_means_waiting_not_dying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(doorbell, "_ACCEPT_PAUSE_SECONDS", 0.01)

    async def act(scene: Scene) -> None:
        client = scene.connect()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
        try:
            await until(lambda: "cannot accept" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await client.shake_hands()

    play(tmp_path, act)


def test_a_client_for_whom_no_eventfds_are_left_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, made = os.eventfd, 0

    def scarce(initial: int, flags: int) -> int:
        nonlocal made
        made += 1
        if made == 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(initial, flags)

    monkeypatch.setattr(os, "eventfd", scarce)

    async def act(scene: Scene) -> None:
        assert await scene.connect().receive() is None
        assert "RLIMIT_NOFILE" in caplog.text
        await scene.join()

    play(tmp_path, act)


def test_a_refusal_to_pass_descriptors_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell, "_RETRY_SECONDS", 0.001)
    real, calls = doorbell._Connection.send_queued, 0

    def refuse(connection: doorbell._Connection) -> bool:
        nonlocal calls
        calls += 1
        if calls < 5:
            raise OSError(errno.ETOOMANYREFS, "Too many references")
        return real(connection)

    monkeypatch.setattr(doorbell._Connection, "send_queued", refuse)

    async def act(scene: Scene) -> None:
        await scene.join()
        assert calls == 5

    play(tmp_path, act)


def test_the_socket_is_private_and_replaces_a_stale_one(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "heap.sock"))

    async def act(scene: Scene) -> None:
        assert stat.S_IMODE(scene.path.stat().st_mode) == 0o600
        await scene.join()

    play(tmp_path, act)


def test_a_live_server_is_not_replaced(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        second = DoorbellServer(scene.heap, scene.path, VECTORS)
        with pytest.raises(DoorbellError, match="another server answers"):
            await second.start()
        await second.close()
        await scene.join()

    play(tmp_path, act)


@pytest.mark.parametrize(
    ("name", "fault"),
    [("file", "no socket is in the way"), ("a" * 120, "too long"), ("no/dir", "No such file")],
)
def test_a_socket_that_cannot_be_made_is_named(tmp_path: Path, name: str, fault: str) -> None:
    (tmp_path / "file").write_text("precious")

    async def run() -> None:
        with HeapFile.create(tmp_path / "heap", 1 << 16) as heap:
            server = DoorbellServer(heap, tmp_path / name, VECTORS)
            with pytest.raises(DoorbellError, match=fault) as caught:
                await server.start()
            assert name in str(caught.value)

    before = count_descriptors()
    asyncio.run(run())
    assert count_descriptors() == before
    assert (tmp_path / "file").read_text() == "precious"


def test_misuse_is_a_programming_error(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        with pytest.raises(RuntimeError, match="while it is listening"):
            await scene.server.start()
        for vectors in (0, 257):
            with pytest.raises(ValueError, match="vectors"):
                DoorbellServer(scene.heap, scene.path, vectors)

    play(tmp_path, act)


def test_peers_of_different_runs_have_not_met(tmp_path):
    """QEMU does not reconnect: a guest of an earlier run and one of this run cannot ring each other."""
    with HeapFile.ensure(tmp_path / "heap", 1 << 16) as heap:
        first = doorbell.DoorbellServer(heap, tmp_path / "heap.sock", 2)
        old = [first._take_id(), first._take_id()]
        second = doorbell.DoorbellServer(heap, tmp_path / "heap.sock", 2)
        new = [second._take_id(), second._take_id()]
    path = tmp_path / "heap.sock"
    assert doorbell.have_met(path, *old)
    assert doorbell.have_met(path, *new)
    assert not doorbell.have_met(path, old[1], new[0])
