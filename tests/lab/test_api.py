from __future__ import annotations

import subprocess
import sys

import pytest
from local_session import LocalSession

import lab as package
from lab import Lab, lifecycle
from lab.api import CommandError, ExpectationError, WaitError
from lab.errors import LabError, PhaseError, TopologyError, UserError
from lab.lock import BusyError
from lab.status import GuestStatus, LabStatus

DATA = {"name": "x", "guests": ["client", "server"], "heaps": {"h": {"members": "all"}}}


@pytest.fixture
def calls(monkeypatch):
    """What was asked of the services, and nothing done."""
    made = []

    def up(topology, progress, *, connect):
        made.append("up")
        return lifecycle.UpReport(topology.name, True, 1.0, "kvm", ("client",))

    def down(name, progress, *, connect):
        made.append("down")
        return lifecycle.DownReport(name, True, 1.0)

    monkeypatch.setattr(lifecycle, "up", up)
    monkeypatch.setattr(lifecycle, "down", down)
    return made


@pytest.fixture
def lab(tmp_path, monkeypatch, calls):
    """A lab whose guests are directories."""
    monkeypatch.setattr("lab.guest.open_session", lambda _, name: LocalSession(name, tmp_path))
    with Lab.from_dict(DATA) as running:
        yield running


def test_import_lab_is_light():
    code = "import sys, lab; print(sorted(sys.modules)); lab.Lab; print('lab.api' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    for module in ("lab.api", "lab.errors", "libvirt", "paramiko", "pydantic", "json"):
        assert f"'{module}'" not in before
    assert after == "True"


def test_every_public_name_is_there():
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))
    assert package.LabError is LabError
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = package.nonsense


def test_a_lab_from_text_and_file(tmp_path):
    text = "name: x\nguests: [client]\n"
    (tmp_path / "lab.yaml").write_text(text)
    for made in (Lab.from_text(text), Lab.from_file(tmp_path / "lab.yaml")):
        assert made.name == "x"
        assert list(made.guests) == ["client"]
    with pytest.raises(TopologyError, match=r"<dict>:.*guests"):
        Lab.from_dict({"name": "x", "guests": {"client": {"memory": "much"}}})
    with pytest.raises(TopologyError, match=r"<text>:1"):
        Lab.from_text("name: 5\nguests: [a]\n")


def test_guests(lab):
    assert [guest.name for guest in lab] == ["client", "server"]
    assert len(lab) == 2
    assert lab["client"] is lab.guests["client"]
    assert lab["client"].address == str(lab.topology.guest("client").address)
    assert lab["client"].address in lab["client"].addresses
    with pytest.raises(UserError, match="its guests are client, server"):
        lab["nobody"]


def test_the_block_is_the_labs_life(calls):
    with Lab.from_dict(DATA):
        assert calls == ["up"]
    assert calls == ["up", "down"]
    calls.clear()
    with pytest.raises(RuntimeError), Lab.from_dict(DATA):
        raise RuntimeError
    assert calls == ["up", "down"]


@pytest.mark.parametrize(
    ("error", "taken_down"),
    [
        (PhaseError("client", "boot", "no"), True),
        (KeyboardInterrupt(), True),
        (UserError("another"), False),
        (BusyError("busy"), False),
    ],
)
def test_what_does_not_come_up_is_removed_if_it_is_ours(calls, monkeypatch, error, taken_down):
    def up(*_, **__):
        raise error

    monkeypatch.setattr(lifecycle, "up", up)
    with pytest.raises(type(error)), Lab.from_dict(DATA):
        pass
    assert calls == ["down"] * taken_down


# --- Commands


def test_execute(lab):
    result = lab["client"].execute(["sh", "-c", "cat; echo é; echo b >&2; exit 3"], stdin="in ")
    assert (result.code, result.stdout, result.stderr) == (3, "in é\n", "b\n")
    assert result.stdout_bytes == "in é\n".encode()
    assert not result
    assert lab["client"].execute("echo $GUEST | tr a-z A-Z").stdout == "CLIENT\n"
    with pytest.raises(ValueError, match="empty command"):
        lab["client"].execute([])


def test_spawn(lab):
    waiting = lab["client"].spawn(["sh", "-c", "sleep 0.2; exit 4"])
    assert lab["client"].execute(["true"])
    assert waiting.result(10).code == 4


def test_succeed_and_fail(lab):
    assert lab["client"].succeed(["true"]).code == 0
    with pytest.raises(CommandError) as caught:
        lab["client"].succeed("echo reason >&2; exit 7")
    assert str(caught.value) == (
        "guest client: 'echo reason >&2; exit 7' ended with 7, not 0\n  stderr: reason"
    )
    assert caught.value.result.code == 7
    assert lab["client"].fail(["sh", "-c", "exit 9"]).code == 9
    with pytest.raises(CommandError, match="ended with 0, not with a failure"):
        lab["client"].fail(["true"])


def test_a_lost_session_is_made_anew(lab):
    lab["client"].execute(["true"])
    lab["client"]._session.close()
    assert lab["client"].execute(["true"])


# --- Waiting


def test_wait_until(lab, tmp_path):
    later = lab["client"].spawn("sleep 0.3; touch there")
    assert lab["client"].wait_until_succeeds("test -e there && echo yes").stdout == "yes\n"
    later.result(10)
    with pytest.raises(WaitError, match=r"guest client: 'false' did not succeed; .*code is 1.*waited 0.1 s"):
        lab["client"].wait_until_succeeds(["false"], timeout=0.1)
    lab["client"].wait_until_fails("test -e absent")
    with pytest.raises(WaitError, match="did not fail"):
        lab["client"].wait_until_fails("true", timeout=0)


def test_a_guest_that_is_away_is_waited_for(lab, monkeypatch, tmp_path):
    tries = iter([LabError("no answer"), LabError("no answer")])

    def open_session(_, name):
        if (error := next(tries, None)) is not None:
            raise error
        return LocalSession(name, tmp_path)

    monkeypatch.setattr("lab.guest.open_session", open_session)
    assert lab["server"].wait_until_succeeds(["true"])


def test_wait_for_console_text(lab, monkeypatch, tmp_path):
    monkeypatch.setenv("HYPERHEAP_RUNTIME", str(tmp_path))
    log = lab["client"].files.console_log
    with pytest.raises(WaitError, match="has no 'login'"):
        lab["client"].wait_for_console_text("login", timeout=0)
    log.parent.mkdir(parents=True)
    log.write_bytes(b"Debian\r\n\x1b[1mclient\x1b[0m login: ")
    assert lab["client"].wait_for_console_text(r"^(\w+) login:")[1] == "client"
    assert lab["client"].console_tail(1) == ("client login:",)


def test_wait_for_unit(lab, monkeypatch):
    states = iter(["activating", "active"])
    monkeypatch.setattr(type(lab["client"]), "execute", lambda *_, **__: Said(next(states)))
    lab["client"].wait_for_unit("x.service")
    states = iter(["failed", "what its journal says"])
    with pytest.raises(ExpectationError, match=r"unit x.service failed\nwhat its journal says"):
        lab["client"].wait_for_unit("x.service")


class Said:
    def __init__(self, stdout):
        self.stdout = stdout


def test_limits_know_the_accelerator(lab, monkeypatch):
    assert lab.limit(10) == 10
    status = GuestStatus("client", "running", "tcg", (), "connected", ())
    other = Lab.from_dict(DATA)
    monkeypatch.setattr(other, "status", lambda: LabStatus("x", "up", "running", (status,)))
    assert other.limit(10) > 10


# --- Connections


def connection(number, port, shared, network, age=None, ended=None):
    end = {"guest": "client", "address": "10.0.0.2", "port": 4000 + number, "program": "curl", "pid": 7}
    way = {"path": "shared" if shared else "network", "shared": shared, "network": network, "read": None}
    return {
        "number": number,
        "fast_path": "SharedHypervisor",
        "state": "shared",
        "detail": "",
        "heap": "h",
        "channel": 3,
        "ring": 4096,
        "generation": 1,
        "age": 10.0 - number if age is None else age,
        "ended": ended,
        "client": end,
        "server": {**end, "guest": "server", "port": port},
        "to_server": way,
        "to_client": way,
    }


@pytest.fixture
def known(monkeypatch):
    """The connections that the registry knows."""
    found = [connection(1, 80, 0, 50), connection(2, 80, 500, 20), connection(3, 6379, 0, 9)]
    monkeypatch.setattr("lab.control.ask", lambda *_: {"connections": found})
    return found


def test_sockets(lab, known):
    first, second, _ = lab.sockets()
    assert (second.shared, second.network, second.path) == (1000, 40, "shared")
    assert str(second) == "client:4002 -> server:80 (SharedHypervisor): 1000 bytes shared, 40 on the network"
    assert first.client.program == "curl"
    assert len(lab["server"].sockets()) == 3


def test_path_of(lab, known):
    assert lab.path_of(80) == "shared"
    assert lab["client"].path_of(6379) == "network"
    first = lab.sockets()[0]
    assert lab.path_of(first) == "network"
    known[0] = connection(1, 80, 999, 50)
    assert lab.path_of(first) == "shared"
    with pytest.raises(ExpectationError, match="no connection to port 81"):
        lab.path_of(81)
    with pytest.raises(ExpectationError, match="no connection of guest nobody"):
        lab.path_of(80, guest="nobody")


def test_of_connections_at_one_time_the_one_that_carried_most_counts(lab, known):
    known[:] = [
        connection(1, 80, 0, 99, age=5.0, ended=20.0),
        connection(2, 80, 0, 2, age=5.0, ended=0.1),
        connection(3, 80, 50, 1, age=4.0, ended=0.5),
    ]
    assert lab.connection(80).number == 3
    known.append(connection(4, 80, 0, 1, age=0.2))
    # Those of number 2 lived still when number 4 began.
    assert lab.connection(80).number == 2
    known.append(connection(5, 80, 0, 1, age=0.01))
    assert lab.connection(80).number in (4, 5)


def test_wait_for_path(lab, known):
    assert lab.wait_for_path(80, "shared").number == 2
    with pytest.raises(WaitError, match=r"not on path shared: client:4003 -> server:6379"):
        lab.wait_for_path(6379, "shared", timeout=0)
    with pytest.raises(WaitError, match="no such connection"):
        lab.wait_for_path(81, "shared", timeout=0)


def test_subtests_name_what_failed(lab):
    with lab.subtest("one"):
        pass
    with pytest.raises(RuntimeError) as caught, lab.subtest("two"):
        raise RuntimeError
    assert caught.value.__notes__ == ["in subtest 'two'"]
    assert [(name, seconds is None) for name, seconds in lab.subtests] == [("one", False), ("two", True)]


def test_only_cables_that_are_there_can_be_pulled_out(lab):
    with pytest.raises(UserError, match="not on a network 'wan'; it is on lan"):
        lab["client"].block("wan")
