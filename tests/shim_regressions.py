# SPDX-License-Identifier: Apache-2.0
"""More programs in the manner of shim_scenarios.py: each one once went wrong under the shim."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from shim_scenarios import EXPECT_SHARED, FAMILY, LOOPBACK, pair, shared_bytes, upgraded_pair, warm_up

LATER = 0.3
LIBC = ctypes.CDLL(None, use_errno=True)


def send_later(sock: socket.socket, data: bytes = b"wake") -> None:
    threading.Timer(LATER, sock.sendall, [data]).start()


def hears(instance: select.epoll) -> list[tuple[int, int]]:
    """Events of a wait that is ended by an event and not by its timeout."""
    begin = time.monotonic()
    events = instance.poll(4)
    assert time.monotonic() - begin < 3, "woken by the timeout only"
    assert events
    return events


def wait_in_thread(instance: select.epoll) -> Callable[[], None]:
    """Starts a waiter; the result joins it and checks that it was woken by an event."""
    got: list[float] = []
    begin = time.monotonic()
    thread = threading.Thread(
        target=lambda: got.append(time.monotonic() if instance.poll(4) else 0), daemon=True
    )
    thread.start()
    time.sleep(LATER)

    def check() -> None:
        thread.join()
        assert got[0], "no event"
        assert got[0] - begin < 3, "woken by the timeout only"

    return check


def a_child_of_vfork_changes_nothing() -> None:
    left, right = upgraded_pair()
    with select.epoll() as instance:
        instance.register(right, select.EPOLLIN)
        instance.poll(0.05)
        subprocess.run(["/bin/true"], check=True)
        send_later(left)
        assert hears(instance) == [(right.fileno(), select.EPOLLIN)]


def a_socket_as_standard_streams_of_a_child() -> None:
    left, right = upgraded_pair()
    subprocess.run(["/bin/true"], stdin=left, stdout=left, check=True)
    os.write(1, b"for the terminal\n")
    right.settimeout(0.5)
    try:
        data = right.recv(100)
    except TimeoutError:
        return
    raise AssertionError(f"the peer got {data!r}, which was written to standard output")


def registered_before_it_was_connected() -> None:
    with socket.socket(FAMILY) as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        left = socket.socket(FAMILY)
        instance = select.epoll()
        instance.register(left, select.EPOLLIN)
        instance.poll(0)
        left.connect(listener.getsockname()[:2])
        right, _ = listener.accept()
    warm_up(left, right)
    while EXPECT_SHARED and not shared_bytes(right):
        warm_up(left, right, 1)
    instance.poll(0.05)
    send_later(right)
    assert hears(instance)[0][0] == left.fileno()


def connected_twice() -> None:
    left, right = upgraded_pair()
    with select.epoll() as instance:
        instance.register(left, select.EPOLLIN)
        instance.poll(0)
        assert left.connect_ex(left.getpeername()) == errno.EISCONN
        send_later(right)
        hears(instance)


def disconnected_and_used_again() -> None:
    left, _right = upgraded_pair()
    assert LIBC.connect(left.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16) == 0
    with socket.socket(FAMILY) as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        left.connect(listener.getsockname()[:2])
        other, _ = listener.accept()
    for sock in (other, left):
        sock.settimeout(5)
    warm_up(left, other)


def urgent_data_keeps_the_order() -> None:
    left, right = upgraded_pair()
    left.send(b"!", socket.MSG_OOB)
    left.send(b"abc")
    time.sleep(0.05)
    poll = select.poll()
    poll.register(right, select.POLLIN)
    poll.poll(0)
    time.sleep(0.05)
    left.send(b"def")
    got = b""
    while len(got) < 6:
        got += right.recv(100)
    assert got == b"abcdef", got


def writes_of_glibc_keep_the_order() -> None:
    left, right = upgraded_pair()

    class Vector(ctypes.Structure):
        _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))

    left.sendall(b"A")
    LIBC.dprintf(left.fileno(), b"B")
    left.sendall(b"C")
    LIBC.pwritev2.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_int]
    assert LIBC.pwritev2(left.fileno(), ctypes.byref(Vector(b"D", 1)), 1, -1, 0) == 1
    left.sendall(b"E")
    assert right.recv(5, socket.MSG_WAITALL) == b"ABCDE"


def the_first_send_after_the_peers_close() -> None:
    """TCP takes it; the error comes with the next."""
    left, right = upgraded_pair()
    right.close()
    time.sleep(0.5)
    assert left.send(b"QUIT") == 4


def one_shot_armed_by_another_thread() -> None:
    left, right = upgraded_pair()
    with select.epoll() as instance:
        instance.register(right, select.EPOLLIN | select.EPOLLONESHOT)
        left.send(b"1")
        assert instance.poll(2)
        right.recv(10)
        check = wait_in_thread(instance)
        instance.modify(right, select.EPOLLIN | select.EPOLLONESHOT)
        time.sleep(0.1)
        left.send(b"2")
        check()


def added_by_another_thread() -> None:
    left, right = upgraded_pair()
    reader, _writer = os.pipe()
    with select.epoll() as instance:
        instance.register(reader, select.EPOLLIN)
        check = wait_in_thread(instance)
        left.send(b"1")
        time.sleep(0.1)
        instance.register(right, select.EPOLLIN)
        check()


def two_waiters() -> None:
    """While one thread handles its event, the other gets the next one."""
    left, right = upgraded_pair()
    right.setblocking(False)
    got: list[bytes] = []
    with select.epoll() as instance:
        instance.register(right, select.EPOLLIN | select.EPOLLET)
        instance.poll(0)

        def work() -> None:
            while instance.poll(4):
                try:
                    got.append(right.recv(100))
                except BlockingIOError:
                    continue
                time.sleep(2)
                return

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(LATER)
        left.send(b"1")
        time.sleep(LATER)
        left.send(b"2")
        time.sleep(1)
        assert got == [b"1", b"2"]
        for thread in threads:
            thread.join()


def an_edge_of_output_is_owed() -> None:
    left, right = upgraded_pair()
    left.setblocking(False)
    sent = 0
    while sent < 180_000:
        sent += left.send(b"y" * 1024)
    with select.epoll() as instance:
        instance.register(left, select.EPOLLOUT | select.EPOLLET)
        first = instance.poll(0.2)
        while sent:
            sent -= len(right.recv(min(sent, 65536)))
        assert first or instance.poll(2)


def nested_epoll() -> None:
    left, right = upgraded_pair()
    with select.epoll() as inner, select.epoll() as outer:
        inner.register(right, select.EPOLLIN)
        outer.register(inner.fileno(), select.EPOLLIN)
        while outer.poll(0):
            inner.poll(0)
        send_later(left)
        hears(outer)


def a_copy_of_an_epoll_descriptor() -> None:
    left, right = upgraded_pair()
    first = select.epoll()
    copy = os.dup(first.fileno())
    first.close()
    with select.epoll.fromfd(copy) as instance:
        instance.register(right, select.EPOLLIN)
        send_later(left)
        hears(instance)


def bells_are_not_the_programs_business() -> None:
    left, right = upgraded_pair()
    reader, _writer = os.pipe()
    with select.epoll() as instance:
        instance.register(reader, select.EPOLLIN)
        instance.register(right, select.EPOLLIN)
        instance.poll(0.05)
        instance.unregister(right)
        left.send(b"the peer does not know")
        assert instance.poll(0.5) == []


def hundreds_of_threads_asleep() -> None:
    pairs = [upgraded_pair() for _ in range(3)]
    threads = [
        threading.Thread(target=pairs[i % 3][1].recv, args=(1, socket.MSG_PEEK), daemon=True)
        for i in range(300)
    ]
    for thread in threads:
        thread.start()
    time.sleep(1)
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.1, "they are not asleep"
    for left, _ in pairs:
        left.send(b"x")
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)


def idle_costs_nothing() -> None:
    left, right = upgraded_pair()

    def measure(what: str, wait: Callable[[], object]) -> None:
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        time.sleep(0.2)
        before = time.process_time()
        time.sleep(0.7)
        used = time.process_time() - before
        assert used < 0.03, f"{what}: {used:.3f} s of CPU in 0.7 s"
        thread.join()

    right.settimeout(None)
    right.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 1, 0))

    def receive() -> None:
        with contextlib.suppress(BlockingIOError):
            right.recv(1)

    measure("recv", receive)
    measure("select", lambda: select.select([right], [], [], 1))
    for flags in (select.EPOLLIN, select.EPOLLIN | select.EPOLLET):
        with select.epoll() as instance:
            instance.register(right, flags)
            instance.poll(0.05)
            measure(f"epoll {flags:#x}", lambda instance=instance: instance.poll(1))  # type: ignore[misc]
    left.setblocking(False)
    try:
        while True:
            left.send(b"z" * 5000)
    except BlockingIOError:
        pass
    for flags in (select.EPOLLOUT, select.EPOLLOUT | select.EPOLLET, select.EPOLLIN | select.EPOLLOUT):
        with select.epoll() as instance:
            instance.register(left, flags)
            measure(f"full ring, epoll {flags:#x}", lambda instance=instance: instance.poll(1))  # type: ignore[misc]
    measure("full ring, select", lambda: select.select([], [left], [], 1))


def few_descriptors_left() -> None:
    """Where the shim cannot have what it needs, the connection stays on TCP."""
    left, right = pair()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    hold = []
    try:
        while True:
            hold.append(os.dup(0))
    except OSError:
        pass
    os.close(hold.pop())
    warm_up(left, right)
    while hold:
        os.close(hold.pop())
    warm_up(left, right)
    send_later(left, b"x")
    right.settimeout(5)
    assert right.recv(1) == b"x"


def a_cleared_environment() -> None:
    """nginx empties its environment; the agent is still where it was at the start."""
    os.unsetenv("HYPERHEAP_RUN")
    os.unsetenv("LD_PRELOAD")
    upgraded_pair()


def a_waiter_from_before_the_first_stream() -> None:
    """Node.js has threads with event loops before it has a socket: they are no reason to stay on TCP."""
    reader, writer = os.pipe()
    with select.epoll() as bystander, select.epoll() as instance:
        bystander.register(reader, select.EPOLLIN)
        instance.register(reader, select.EPOLLIN)
        check_bystander, check = wait_in_thread(bystander), wait_in_thread(instance)
        left, right = upgraded_pair()
        instance.register(right, select.EPOLLIN)
        time.sleep(0.1)
        left.send(b"1")
        check()
        assert right.recv(1) == b"1"
        os.write(writer, b"2")
        check_bystander()


def a_sandbox() -> None:
    """sshd's child forbids nearly all system calls and goes on with the streams that it has."""
    kill, allow = struct.pack("=HBBI", 6, 0, 0, 0x80000000), struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)
    forbidden = (41, 42, 46, 47, 54, 55, 72, 232, 233, 281, 291)  # x86-64: sockets, messages, options, epoll
    code = [struct.pack("=HBBI", 0x20, 0, 0, 0)]  # the number of the call
    for i, number in enumerate(forbidden):
        code.append(struct.pack("=HBBI", 0x15, len(forbidden) - i, 0, number))
    instructions = ctypes.create_string_buffer(b"".join([*code, allow, kill]))
    filter_ = ctypes.create_string_buffer(
        struct.pack("=HxxxxxxQ", len(code) + 2, ctypes.addressof(instructions))
    )
    left, right = pair()
    reader, writer = os.pipe()
    left.send(b"greeting")
    assert os.read(right.fileno(), 100) == b"greeting"
    pid = os.fork()
    if pid == 0:
        code_ = 1
        try:
            assert LIBC.prctl(38, 1, 0, 0, 0) == 0
            assert LIBC.prctl(22, 2, filter_, 0, 0) == 0
            while data := os.read(right.fileno(), 100):
                select.select([right], [right], [], 0)
                os.write(right.fileno(), data)
            os.write(writer, b"done")
            code_ = 0
        finally:
            os._exit(code_)
    right.close()
    for i in range(300):
        left.send(b"%064d" % i)
        assert left.recv(64, socket.MSG_WAITALL) == b"%064d" % i
    left.shutdown(socket.SHUT_WR)
    assert os.waitpid(pid, 0)[1] == 0, "the sandbox killed it"
    assert os.read(reader, 10) == b"done"


def sends_to_a_peer_that_has_closed() -> None:
    """TCP takes one more, and says no to the second, as fast as the reset comes."""
    for warm in (False, True):
        left, right = upgraded_pair() if warm else pair()
        if not warm:  # only the other direction has ever been used
            for i in range(12):
                left.send(b"%064d" % i)
                assert right.recv(64, socket.MSG_WAITALL) == b"%064d" % i
                time.sleep(0.02)
            if EXPECT_SHARED:
                assert shared_bytes(left) > 0
        left.close()
        time.sleep(0.001)
        try:
            for _ in range(4):
                right.send(b"x")
                time.sleep(0.0005)
        except (BrokenPipeError, ConnectionResetError):
            continue
        raise AssertionError("the peer has closed, and takes what is sent")


REGRESSIONS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        a_child_of_vfork_changes_nothing,
        a_socket_as_standard_streams_of_a_child,
        registered_before_it_was_connected,
        connected_twice,
        disconnected_and_used_again,
        urgent_data_keeps_the_order,
        writes_of_glibc_keep_the_order,
        the_first_send_after_the_peers_close,
        one_shot_armed_by_another_thread,
        added_by_another_thread,
        two_waiters,
        an_edge_of_output_is_owed,
        nested_epoll,
        a_copy_of_an_epoll_descriptor,
        bells_are_not_the_programs_business,
        hundreds_of_threads_asleep,
        idle_costs_nothing,
        few_descriptors_left,
        a_cleared_environment,
        a_waiter_from_before_the_first_stream,
        a_sandbox,
        sends_to_a_peer_that_has_closed,
    )
}

if __name__ == "__main__":
    REGRESSIONS[sys.argv[1]]()
