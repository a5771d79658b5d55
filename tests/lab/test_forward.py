"""`lab forward` between loopback sockets: a lab without a namespace is reached from this one."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading

import pytest

from lab.errors import UserError
from lab.forward import parse_target
from lab.topology_file import parse_topology

PROGRAM = """
import sys
from lab.forward import Forward, Target
from lab.paths import LabPaths
target = Target("server", "127.0.0.1", int(sys.argv[1]))
Forward(LabPaths("no-such-lab"), target, 0, lambda text: print(text, file=sys.stderr)).run(
    lambda port: print(port, flush=True)
)
print("ended", flush=True)
"""


@pytest.fixture
def guest_port():
    """A listener in the guest's place; connections come out of its queue."""
    accepted: queue.Queue[socket.socket] = queue.Queue()
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                accepted.put(server.accept()[0])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield server.getsockname()[1], accepted
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()
    while not accepted.empty():
        accepted.get().close()


@contextlib.contextmanager
def forwarding(port):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        try:
            yield child, int(child.stdout.readline())
        finally:
            if child.poll() is None:
                child.kill()


def receive_all(connection):
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    return data


def test_half_close_keeps_the_other_direction(guest_port):
    port, accepted = guest_port
    with forwarding(port) as (_, host_port), socket.create_connection(("127.0.0.1", host_port), 10) as client:
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        with accepted.get(timeout=10) as server:
            server.settimeout(10)
            assert receive_all(server) == b"question"
            # The guest has heard the end, and still answers.
            answer = os.urandom(3 << 20)
            sender = threading.Thread(
                target=lambda: (server.sendall(answer), server.shutdown(socket.SHUT_WR))
            )
            sender.start()
            assert receive_all(client) == answer
            sender.join()


def test_a_reset_is_passed_on(guest_port):
    port, accepted = guest_port
    with forwarding(port) as (_, host_port), socket.create_connection(("127.0.0.1", host_port), 10) as client:
        client.sendall(b"x")
        server = accepted.get(timeout=10)
        server.recv(1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        server.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_port_where_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with forwarding(port) as (child, host_port):
        with (
            socket.create_connection(("127.0.0.1", host_port), 10) as client,
            pytest.raises(ConnectionResetError),
        ):
            client.recv(1)
        child.send_signal(signal.SIGTERM)
        assert b"Connection refused" in child.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_its_connections(guest_port, number):
    port, accepted = guest_port
    with (
        forwarding(port) as (child, host_port),
        socket.create_connection(("127.0.0.1", host_port), 10) as client,
    ):
        client.sendall(b"x")
        with accepted.get(timeout=10) as server:
            server.recv(1)
            child.send_signal(number)
            assert child.stdout.read() == b"ended\n"
            assert child.wait(10) == 0
            assert child.stderr.read() == b""
            with pytest.raises(ConnectionResetError):
                client.recv(1)


@pytest.mark.parametrize("text", ["client", "client:", "client:x", "client:0", "client:70000", "client:-1"])
def test_what_is_no_target(text):
    topology = parse_topology("name: x\nguests: [client]\n", "t.yaml")
    with pytest.raises(UserError, match="is not GUEST:PORT, such as client:80"):
        parse_target(topology, text)
    assert parse_target(topology, "client:80").address == "10.77.0.11"
    with pytest.raises(UserError, match="no guest"):
        parse_target(topology, "nobody:80")
