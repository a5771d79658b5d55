from __future__ import annotations

import io
import os
import signal
import threading
import time

import pytest
from local_session import LocalSession

from lab import cli, crowd
from lab.crowd import Crowd, worst
from lab.errors import LabError, UserError
from lab.topology_file import parse_topology

TEXT = "name: x\nguests: [client, server]\n"


@pytest.fixture
def sessions(tmp_path, monkeypatch):
    """The sessions that were opened to guests of a lab, by guest."""
    opened = {}

    def open_session(_, name):
        opened[name] = LocalSession(name, tmp_path)
        return opened[name]

    monkeypatch.setattr("lab.guest.open_session", open_session)
    return opened


@pytest.fixture
def both(sessions):
    """Both guests, logged in."""
    with Crowd(parse_topology(TEXT, "x"), ["client", "server"]) as entered:
        yield entered
    assert not any(session.is_alive for session in sessions.values())


def run(entered, *argv, **options):
    out, errors = io.BytesIO(), io.BytesIO()
    codes = entered.run(argv, stdout=out, stderr=errors, **options)
    return codes, sorted(out.getvalue().splitlines()), sorted(errors.getvalue().splitlines())


def test_every_line_has_its_guest(both):
    codes, out, errors = run(both, "sh", "-c", "echo one; echo two >&2; printf three")
    assert codes == {"client": 0, "server": 0}
    assert out == [b"client | one", b"client | three", b"server | one", b"server | three"]
    assert errors == [b"client | two", b"server | two"]


def test_the_worst_code_counts(both):
    codes, _, _ = run(both, "sh", "-c", "[ $GUEST = client ] || exit 7")
    assert codes == {"client": 0, "server": 7}
    assert worst(codes) == 7
    assert worst({}) == 0


def test_input_goes_to_all(both):
    data = os.urandom(300_000).hex().encode() + b"\n"
    codes, out, _ = run(both, "md5sum", stdin=io.BytesIO(data))
    assert worst(codes) == 0
    assert len({line.split(b"| ")[1] for line in out}) == 1


def test_input_that_one_does_not_want_stops_nobody(both):
    data = b"x" * (crowd._CHUNK * crowd._AHEAD * 3)
    codes, out, _ = run(both, "sh", "-c", "[ $GUEST = client ] && exit 3; wc -c", stdin=io.BytesIO(data))
    assert codes == {"client": 3, "server": 0}
    assert out == [b"server | %d" % len(data)]


def test_input_that_never_ends_holds_nothing_up(both):
    reader, writer = os.pipe()
    try:
        with os.fdopen(reader, "rb", buffering=0) as source:
            codes, _, _ = run(both, "true", stdin=source)
            assert worst(codes) == 0
            os.write(writer, b"late")
    finally:
        os.close(writer)


def test_too_long_is_124(both):
    begun = time.monotonic()
    codes, _, errors = run(both, "sleep", "100", timeout=0.2)
    assert codes == {"client": 124, "server": 124}
    assert errors == [b"client | took more than 0.2 s", b"server | took more than 0.2 s"]
    assert time.monotonic() - begun < 10


def test_an_interrupt_ends_all(both, tmp_path):
    on_interrupt = f"echo $GUEST >> {tmp_path}/ended; kill $!; exit"
    script = f"trap '{on_interrupt}' INT; sleep 100 & touch {tmp_path}/$GUEST; wait"
    main = threading.main_thread().ident

    def interrupt():
        while not ((tmp_path / "client").exists() and (tmp_path / "server").exists()):
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(both, "bash", "-c", script)
    thread.join()
    deadline = time.monotonic() + 10
    while not (tmp_path / "ended").exists() or len((tmp_path / "ended").read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_unknown_guest_is_refused():
    with pytest.raises(UserError, match="no guest 'nobody'"):
        Crowd(parse_topology(TEXT, "x"), ["nobody"])


def test_nothing_runs_where_one_cannot_be_reached(sessions, monkeypatch):
    def open_session(_, name):
        if name == "server":
            raise LabError("guest server does not answer")
        return LocalSession(name, None)

    monkeypatch.setattr("lab.guest.open_session", open_session)
    with pytest.raises(LabError, match="server does not answer"):
        Crowd(parse_topology(TEXT, "x"), ["client", "server"]).__enter__()


# --- The verb


@pytest.fixture
def topology(tmp_path):
    path = tmp_path / "lab.yaml"
    path.write_text(TEXT)
    return str(path)


def test_shell_with_a_command(topology, sessions, capfdbinary):
    assert cli.run(["shell", "-t", topology, "--", "sh", "-c", "echo $GUEST; exit 3"]) == 3
    out = capfdbinary.readouterr().out
    assert sorted(out.splitlines()) == [b"client | client", b"server | server"]


def test_shell_with_some_guests(topology, sessions, capfdbinary):
    assert cli.run(["shell", "-t", topology, "-g", "server", "echo", "-n", "x"]) == 0
    assert capfdbinary.readouterr().out == b"server | x\n"
    assert list(sessions) == ["server"]


def test_shell_with_lines(topology, sessions, capfdbinary, monkeypatch):
    lines = io.StringIO("# a comment\n\necho $GUEST | tr a-z A-Z\nfalse\nexit\necho never\n")
    monkeypatch.setattr("sys.stdin", lines)
    assert cli.run(["shell", "-t", topology]) == 1
    out = capfdbinary.readouterr().out
    assert sorted(out.splitlines()) == [b"client | CLIENT", b"server | SERVER"]


def test_shell_passes_input_on_only_to_a_command(topology, capsys):
    assert cli.run(["shell", "-t", topology, "-i"]) == 2
    assert "there is none" in capsys.readouterr().err
