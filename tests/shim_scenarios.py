# SPDX-License-Identifier: Apache-2.0
"""Programs that know nothing of hyperheap, one function each; run by test_shim.py with and without the shim.

``python shim_scenarios.py NAME`` ends with 0 if the sockets behaved as TCP does. With ``EXPECT_SHARED=1``
each scenario also insists that its connection really moved to shared memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import random
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

EXPECT_SHARED = os.environ.get("EXPECT_SHARED") == "1"
FAMILY = socket.AF_INET6 if os.environ.get("FAMILY") == "6" else socket.AF_INET
LOOPBACK = "::1" if FAMILY == socket.AF_INET6 else "127.0.0.1"
END_SIZE, HEADER, TX_HEAD = 512, 4096, 128 + 40
SO_COOKIE = 57


def shared_bytes(sock: socket.socket) -> int:
    """Bytes that this socket has put on its ring, by the region of ends."""
    (cookie,) = struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))
    with open(Path(os.environ["HYPERHEAP_RUN"]) / "ends", "rb") as file:
        region = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    for at in range(HEADER, len(region), END_SIZE):
        if struct.unpack_from("Q", region, at)[0] == cookie:
            return int(struct.unpack_from("Q", region, at + TX_HEAD)[0])
    return 0


def expect_shared(*socks: socket.socket) -> None:
    if EXPECT_SHARED:
        for sock in socks:
            assert shared_bytes(sock) > 0, f"{sock} stayed on TCP"


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.socket(FAMILY) as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        left = socket.create_connection(listener.getsockname()[:2])
        right, _ = listener.accept()
    return left, right


def warm_up(left: socket.socket, right: socket.socket, rounds: int = 12) -> None:
    """Enough traffic for the connection to be upgraded, both ways."""
    for i in range(rounds):
        for one, other in ((left, right), (right, left)):
            message = b"%064d" % i
            one.sendall(message)
            assert other.recv(64, socket.MSG_WAITALL) == message
        time.sleep(0.02)


def flat(pairs: list[tuple[socket.socket, socket.socket]]) -> list[socket.socket]:
    return [sock for both in pairs for sock in both]


def upgraded_pair() -> tuple[socket.socket, socket.socket]:
    left, right = pair()
    warm_up(left, right)
    deadline = time.monotonic() + 10
    while EXPECT_SHARED and not (shared_bytes(left) and shared_bytes(right)) and time.monotonic() < deadline:
        warm_up(left, right, 1)
    expect_shared(left, right)
    return left, right


@contextlib.contextmanager
def child(action: Callable[[], None]) -> Iterator[int]:
    """A forked process that runs `action`; its success is checked at the end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    yield pid
    assert os.waitpid(pid, 0)[1] == 0, "the child failed"


def recv_all(sock: socket.socket) -> bytes:
    parts = []
    while data := sock.recv(65536):
        parts.append(data)
    return b"".join(parts)


def echo_both_ways() -> None:
    """Every byte of both directions, whatever path carried it."""
    left, right = pair()
    total = 24 << 20

    def source(sock: socket.socket, seed: int, digest: list[str]) -> None:
        rng, sha, sent = random.Random(seed), hashlib.sha256(), 0
        while sent < total:
            block = rng.randbytes(min(rng.randrange(1, 200_000), total - sent))
            sha.update(block)
            sock.sendall(block)
            sent += len(block)
        sock.shutdown(socket.SHUT_WR)
        digest.append(sha.hexdigest())

    def sink(sock: socket.socket, seed: int, digest: list[str]) -> None:
        rng, sha = random.Random(seed), hashlib.sha256()
        while data := sock.recv(rng.randrange(1, 100_000)):
            sha.update(data)
        digest.append(sha.hexdigest())

    sent: dict[int, list[str]] = {1: [], 2: []}
    got: dict[int, list[str]] = {1: [], 2: []}
    threads = [
        threading.Thread(target=source, args=(left, 1, sent[1])),
        threading.Thread(target=source, args=(right, 2, sent[2])),
        threading.Thread(target=sink, args=(right, 3, got[1])),
        threading.Thread(target=sink, args=(left, 4, got[2])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sent == got
    expect_shared(left, right)


def end_of_file_after_the_last_byte() -> None:
    left, right = upgraded_pair()
    left.sendall(b"last words")
    left.close()
    time.sleep(0.1)
    assert right.recv(100) == b"last words"
    assert right.recv(100) == b""
    assert right.recv(100) == b""


def half_close() -> None:
    left, right = upgraded_pair()
    left.sendall(b"question")
    left.shutdown(socket.SHUT_WR)
    assert recv_all(right) == b"question"
    right.sendall(b"answer")
    right.close()
    assert recv_all(left) == b"answer"
    try:
        left.sendall(b"more")
    except BrokenPipeError:
        return
    raise AssertionError("a send after SHUT_WR succeeded")


def killed_sender_leaves_its_bytes() -> None:
    left, right = upgraded_pair()
    pid = os.fork()
    if pid == 0:
        right.close()
        left.sendall(b"x" * 100_000)
        os.kill(os.getpid(), signal.SIGKILL)
    left.close()
    os.waitpid(pid, 0)
    assert recv_all(right) == b"x" * 100_000


def peer_closes_while_we_send() -> None:
    left, right = upgraded_pair()
    right.close()
    deadline = time.monotonic() + 10
    try:
        while time.monotonic() < deadline:
            left.sendall(b"y" * 65536)
    except (BrokenPipeError, ConnectionResetError):
        return
    raise AssertionError("sending to a closed peer never failed")


def nonblocking() -> None:
    left, right = upgraded_pair()
    left.setblocking(False)
    right.setblocking(False)
    try:
        right.recv(10)
        raise AssertionError("nothing was sent, something was received")
    except BlockingIOError:
        pass
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += left.send(b"z" * 10_000)
    assert sent > 0
    assert not select.select([], [left], [], 0)[1]
    got = 0
    while got < sent:
        select.select([right], [], [], 5)
        got += len(right.recv(4096))
    assert got == sent
    assert select.select([], [left], [], 5)[1] == [left]


def timeouts() -> None:
    left, right = upgraded_pair()
    right.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 200_000))
    begin = time.monotonic()
    try:
        right.recv(1)
        raise AssertionError("received something")
    except BlockingIOError:
        assert 0.15 < time.monotonic() - begin < 2
    assert select.select([right], [], [], 0.1)[0] == []
    left.sendall(b"!")
    assert right.recv(1) == b"!"


def peek_and_wait_all() -> None:
    left, right = upgraded_pair()
    left.sendall(b"abcdef")
    assert right.recv(3, socket.MSG_PEEK) == b"abc"
    assert right.recv(6, socket.MSG_PEEK | socket.MSG_WAITALL) == b"abcdef"
    threading.Timer(0.1, left.sendall, [b"ghi"]).start()
    assert right.recv(9, socket.MSG_WAITALL) == b"abcdefghi"
    left.sendall(b"12345")
    time.sleep(0.05)
    (readable,) = struct.unpack("i", fcntl.ioctl(right, termios.FIONREAD, b"\0" * 4))
    assert readable == 5
    assert right.recv(100) == b"12345"


def vectors() -> None:
    left, right = upgraded_pair()
    assert left.sendmsg([b"ab", b"", b"cde", b"f" * 70_000]) > 0
    expected = b"abcde" + b"f" * 70_000
    got = b""
    buffers = [bytearray(2), bytearray(3), bytearray(100_000)]
    while len(got) < len(expected):
        count = right.recvmsg_into(buffers)[0]
        got += b"".join(buffers)[:count]
    assert got == expected
    assert os.writev(left.fileno(), [b"one", b"two"]) == 6
    assert os.readv(right.fileno(), [bytearray(3), bytearray(3)]) == 6


def polls(make: Callable[[], selectors.BaseSelector]) -> None:
    left, right = upgraded_pair()
    with make() as selector:
        selector.register(right, selectors.EVENT_READ)
        assert selector.select(0.05) == []
        threading.Timer(0.1, left.sendall, [b"wake"]).start()
        begin = time.monotonic()
        assert [key.fileobj for key, _ in selector.select(5)] == [right]
        assert time.monotonic() - begin < 2
        assert right.recv(10) == b"wake"
        assert selector.select(0) == []
        left.close()
        assert [key.fileobj for key, _ in selector.select(5)] == [right]
        assert right.recv(10) == b""


def poll() -> None:
    polls(selectors.PollSelector)


def epoll() -> None:
    polls(selectors.EpollSelector)


def select_() -> None:
    polls(selectors.SelectSelector)


def epoll_edge_triggered() -> None:
    left, right = upgraded_pair()
    right.setblocking(False)
    with select.epoll() as instance:
        instance.register(right, select.EPOLLIN | select.EPOLLET)
        instance.poll(0)
        for i in range(200):
            threading.Timer(0.001, left.sendall, [b"%04d" % i]).start()
            assert instance.poll(5), f"no edge for message {i}"
            data = b""
            while True:
                try:
                    data += right.recv(3)
                except BlockingIOError:
                    break
            assert data == b"%04d" % i
        assert instance.poll(0.05) == []
        left.setblocking(False)
        instance.register(left, select.EPOLLOUT | select.EPOLLET)
        instance.poll(0.05)
        with contextlib.suppress(BlockingIOError):
            while True:
                left.send(b"z" * 4096)
        assert all(event & select.EPOLLIN for _, event in instance.poll(0.05))
        with contextlib.suppress(BlockingIOError):
            while right.recv(1 << 20):
                pass
        assert any(fd == left.fileno() and event & select.EPOLLOUT for fd, event in instance.poll(5))


def epoll_one_shot() -> None:
    left, right = upgraded_pair()
    with select.epoll() as instance:
        instance.register(right, select.EPOLLIN | select.EPOLLONESHOT)
        left.sendall(b"a")
        assert len(instance.poll(5)) == 1
        assert instance.poll(0.05) == []
        instance.modify(right, select.EPOLLIN | select.EPOLLONESHOT)
        assert len(instance.poll(5)) == 1


def mixed_set() -> None:
    """Upgraded, plain and other descriptors in one epoll set."""
    left, right = upgraded_pair()
    plain_left, plain_right = socket.socketpair()
    reader, writer = os.pipe()
    with select.epoll() as instance:
        for fd in (right.fileno(), plain_right.fileno(), reader):
            instance.register(fd, select.EPOLLIN)
        for send, fd in (
            (lambda: left.send(b"1"), right.fileno()),
            (lambda: plain_left.send(b"2"), plain_right.fileno()),
            (lambda: os.write(writer, b"3"), reader),
        ) * 20:
            threading.Timer(0.002, send).start()
            assert [ready for ready, _ in instance.poll(5)] == [fd]
            assert len(os.read(fd, 10)) == 1


def descriptors() -> None:
    left, right = upgraded_pair()
    copy = left.dup()
    left.close()
    copy.sendall(b"through a copy")
    assert right.recv(100) == b"through a copy"
    other = os.dup2(right.fileno(), 200)
    right.close()
    copy.sendall(b"dup2")
    assert os.read(other, 100) == b"dup2"
    os.close(other)
    assert copy.recv(1) == b""


def fork_takes_over() -> None:
    left, right = upgraded_pair()

    def serve() -> None:
        left.close()
        while data := right.recv(65536):
            right.sendall(data.upper())

    with child(serve):
        right.close()
        for i in range(300):
            message = b"message %d" % i
            left.sendall(message)
            assert left.recv(len(message), socket.MSG_WAITALL) == message.upper()
        left.close()


def fork_before_the_upgrade() -> None:
    left, right = pair()

    def serve() -> None:
        left.close()
        while data := right.recv(65536):
            right.sendall(data)

    with child(serve):
        right.close()
        begin, i = time.monotonic(), 0
        while i < 300 or (EXPECT_SHARED and not shared_bytes(left) and time.monotonic() < begin + 10):
            left.sendall(b"%03d" % (i % 1000))
            assert left.recv(3, socket.MSG_WAITALL) == b"%03d" % (i % 1000)
            i += 1
        expect_shared(left)
        left.close()


def exec_keeps_the_socket() -> None:
    left, right = upgraded_pair()
    os.set_inheritable(right.fileno(), True)
    script = (
        f"import socket; s = socket.socket(fileno={right.fileno()})\n"
        "while data := s.recv(65536): s.sendall(data[::-1])"
    )
    left.sendall(b"before exec")
    with subprocess.Popen([sys.executable, "-c", script], close_fds=False) as process:
        right.close()
        assert left.recv(11, socket.MSG_WAITALL) == b"cexe erofeb"
        for i in range(100):
            left.sendall(b"%04d" % i)
            assert left.recv(4, socket.MSG_WAITALL) == (b"%04d" % i)[::-1]
        left.close()
        assert process.wait(10) == 0


def many_threads_on_one_socket() -> None:
    left, right = upgraded_pair()
    record, writers, each = 64, 6, 2000

    def write(letter: int) -> None:
        for _ in range(each):
            left.sendall(bytes([letter]) * record)

    threads = [threading.Thread(target=write, args=(65 + i,)) for i in range(writers)]
    for thread in threads:
        thread.start()
    counts: dict[int, int] = {}
    for _ in range(writers * each):
        data = right.recv(record, socket.MSG_WAITALL)
        assert data == data[:1] * record, "records were torn"
        counts[data[0]] = counts.get(data[0], 0) + 1
    for thread in threads:
        thread.join()
    assert all(count == each for count in counts.values())


def many_connections() -> None:
    pairs = [pair() for _ in range(20)]
    begin, rounds = time.monotonic(), 0
    while rounds < 40 or (
        EXPECT_SHARED and time.monotonic() < begin + 10 and not all(map(shared_bytes, flat(pairs)))
    ):
        rounds += 1
        for left, right in pairs:
            left.sendall(b"ping")
            assert right.recv(4, socket.MSG_WAITALL) == b"ping"
            right.sendall(b"pong")
            assert left.recv(4, socket.MSG_WAITALL) == b"pong"
        time.sleep(0.002)
    for left, right in pairs:
        expect_shared(left, right)
    for left, right in pairs:
        left.close()
        assert right.recv(1) == b""


def send_file() -> None:
    left, right = upgraded_pair()
    data = os.urandom(3_000_000)
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"scenario-{os.getpid()}"
    path.write_bytes(data)

    def serve() -> None:
        with path.open("rb") as file:
            left.sendfile(file)
        left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert recv_all(right) == data
    thread.join()
    path.unlink()


def interrupted() -> None:
    """A handler that raises ends a blocked receive; without one it goes on."""
    left, right = upgraded_pair()

    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        right.recv(1)
        raise AssertionError("received something")
    except Alarm:
        pass
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    threading.Timer(0.3, left.sendall, [b"late"]).start()
    assert right.recv(4) == b"late"


def close_everything() -> None:
    """A daemon that closes all descriptors it does not know does not take ours."""
    left, right = upgraded_pair()
    keep = {0, 1, 2, left.fileno(), right.fileno()}
    for fd in range(3, 4096):
        if fd not in keep:
            with contextlib.suppress(OSError):
                os.close(fd)
    os.closerange(max(keep) + 1, 65536)
    threading.Timer(0.1, left.sendall, [b"still here"]).start()
    assert right.recv(100) == b"still here"


def reset() -> None:
    left, right = upgraded_pair()
    left.sendall(b"data before the reset")
    left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    left.close()
    time.sleep(0.1)
    if EXPECT_SHARED:  # plain TCP may throw unread data away
        assert right.recv(100) == b"data before the reset"
    failure = None
    try:
        while right.recv(100):
            pass
    except OSError as error:
        failure = error.errno
    assert failure == errno.ECONNRESET, "the reset was not seen"


SCENARIOS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        echo_both_ways,
        end_of_file_after_the_last_byte,
        half_close,
        killed_sender_leaves_its_bytes,
        peer_closes_while_we_send,
        nonblocking,
        timeouts,
        peek_and_wait_all,
        vectors,
        poll,
        epoll,
        select_,
        epoll_edge_triggered,
        epoll_one_shot,
        mixed_set,
        descriptors,
        fork_takes_over,
        fork_before_the_upgrade,
        exec_keeps_the_socket,
        many_threads_on_one_socket,
        many_connections,
        send_file,
        interrupted,
        close_everything,
        reset,
    )
}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]]()
