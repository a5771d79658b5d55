"""Sessions to a real sshd: this host's, as a program of the test's own."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from lab import keys, transfer
from lab.errors import LabError
from lab.ssh_session import PIPE, CommandTimeoutError, Session

_SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or _SSHD is None or not Path("/run/sshd").is_dir(),
    reason="needs root and an installed openssh-server; tests/e2e has the same with guests",
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """An sshd that lets root in with the key beside it: its port and its directory."""
    directory = tmp_path_factory.mktemp("sshd")
    (directory / "authorized").write_text(keys.ensure(directory / "id") + "\n")
    keys.ensure(directory / "host")
    for name in ("id", "host"):
        (directory / name).chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": directory / "host",
        "AuthorizedKeysFile": directory / "authorized",
        "StrictModes": "no",
        "PidFile": "none",
        "PermitRootLogin": "prohibit-password",
        "UsePAM": "no",
    }
    argv = [_SSHD, "-D", "-e", "-f", "/dev/null"]
    argv += [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as daemon:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert daemon.poll() is None, "sshd does not start"
                assert time.monotonic() < deadline, "sshd does not answer"
                time.sleep(0.05)
        yield port, directory
        daemon.terminate()


@pytest.fixture
def session(address):
    port, directory = address
    connection = socket.create_connection(("127.0.0.1", port), 5)
    with Session("here", connection, directory / "id", keys.public_key(directory / "host")) as opened:
        yield opened


def run(session, *argv, stdin=b"", **options):
    out, errors = io.BytesIO(), io.BytesIO()
    code = session.execute(argv, stdin=io.BytesIO(stdin), stdout=out, stderr=errors, **options)
    return code, out.getvalue(), errors.getvalue()


def test_streams_and_code(session):
    assert run(session, "sh", "-c", "cat; echo e >&2; exit 3", stdin=b"in") == (3, b"in", b"e\n")
    data = os.urandom(3 << 20)
    assert run(session, "cat", stdin=data) == (0, data, b"")


def test_signals_are_codes(session):
    assert run(session, "sh", "-c", "kill -KILL $$")[0] == 128 + signal.SIGKILL


def test_too_long(session):
    with pytest.raises(CommandTimeoutError, match=r"took more than 0.3 s"):
        run(session, "sleep", "4330", timeout=0.3)
    assert run(session, "pgrep", "-f", "sleep 433[0]")[0] == 1


def test_a_stream_of_ones_own(session):
    errors = io.BytesIO()
    with session.start(["tr", "a-z", "A-Z"], stdin=PIPE, stdout=PIPE, stderr=errors) as command:
        command.stdin.write(b"hello")
        command.stdin.finish()
        assert command.stdout.read() == b"HELLO"
        assert command.wait(20) == 0


@pytest.mark.parametrize(("error", "name"), [(KeyboardInterrupt, "INT"), (SystemExit, "TERM")])
def test_who_is_interrupted_ends_the_command(session, tmp_path, error, name):
    script = f"trap 'echo $0 > {tmp_path}/ended; kill $!; exit' {name}; sleep 60 & echo up; wait"
    command = session.start(["bash", "-c", script, name], stdout=PIPE, stderr=io.BytesIO())
    assert command.stdout.read(3) == b"up\n"
    with pytest.raises(error), command:
        raise error
    deadline = time.monotonic() + 10
    while not ((tmp_path / "ended").exists() and (tmp_path / "ended").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_error_of_ones_own_lets_the_command_be(session, tmp_path):
    with (
        pytest.raises(LabError),
        session.start(["sh", "-c", f"sleep 0.3; touch {tmp_path}/done"], stdout=PIPE, stderr=io.BytesIO()),
    ):
        raise LabError("something else")
    deadline = time.monotonic() + 10
    while not (tmp_path / "done").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_several_at_once(session):
    done = {}
    threads = [
        threading.Thread(
            target=lambda n=n: done.update({n: run(session, "sh", "-c", f"sleep 0.2; echo {n}")})
        )
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == {n: (0, b"%d\n" % n, b"") for n in range(6)}


def test_files_go_there_and_back(session, tmp_path):
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    data = os.urandom(5 << 20)
    (tmp_path / "tree" / "sub" / "data").write_bytes(data)
    transfer.put(session, tmp_path / "tree", f"{tmp_path}/there")
    transfer.relay(session, f"{tmp_path}/there", session, f"{tmp_path}/again")
    transfer.get(session, f"{tmp_path}/again", tmp_path / "back")
    assert (tmp_path / "back" / "sub" / "data").read_bytes() == data
    with pytest.raises(LabError, match=r"guest here: .*No such file"):
        transfer.get(session, f"{tmp_path}/absent", tmp_path / "x")
    (tmp_path / "file").touch()
    with pytest.raises(LabError, match="guest here: "):
        transfer.put(session, tmp_path / "tree", f"{tmp_path}/file/below")


def test_a_session_that_is_closed_says_so(session):
    session.close()
    assert not session.is_alive
    with pytest.raises(LabError, match="connection is lost"):
        run(session, "true")
