"""`lab sync` and `lab ssh-config`, with the host's real rsync and an ssh that runs its command here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from local_session import LocalSession

from lab import cli, ssh_config
from lab.errors import LabError
from lab.paths import LabPaths
from lab.topology_file import load_topology

#: An ssh whose guests are this host, with $HOME/guest as their root directory for relative paths.
SSH = """#!/bin/sh
echo "$@" >> "$FAKE/ssh.log"
[ "$1" = -F ] && shift 2
[ "$1" = -l ] && shift 2
shift
cd "$FAKE/guest" && exec sh -c "$*"
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A lab that seems to be up: its directory, and an ssh in PATH."""
    monkeypatch.setenv("HYPERHEAP_RUNTIME", str(tmp_path / "run"))
    monkeypatch.setenv("FAKE", str(tmp_path))
    for name in ("guest", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin" / "ssh").write_text(SSH)
    (tmp_path / "bin" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    key = LabPaths("x").private_key
    key.parent.mkdir(parents=True)
    key.touch()
    (tmp_path / "lab.yaml").write_text("name: x\nguests: [client, server]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


needs_rsync = pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")


@needs_rsync
def test_sync_both_ways(fake):
    (fake / "src").mkdir()
    (fake / "src" / "one").write_text("1")
    (fake / "src" / "one.tmp").write_text("1")
    assert cli.run(["sync", "--exclude", "*.tmp", "src/", "client:dst"]) == 0
    assert [path.name for path in (fake / "guest" / "dst").iterdir()] == ["one"]
    (fake / "src" / "one").rename(fake / "src" / "two")
    assert cli.run(["sync", "--delete", "--dry-run", "src/", "client:dst"]) == 0
    assert [path.name for path in (fake / "guest" / "dst").iterdir()] == ["one"]
    assert cli.run(["sync", "--delete", "--exclude", "*.tmp", "src/", "client:dst"]) == 0
    assert [path.name for path in (fake / "guest" / "dst").iterdir()] == ["two"]
    assert cli.run(["sync", "client:dst/", "back"]) == 0
    assert (fake / "back" / "two").read_text() == "1"
    config = LabPaths("x").private_key.with_name("config")
    assert f"-F {config}" in (fake / "ssh.log").read_text()


@needs_rsync
def test_a_file_of_the_host_with_a_colon(fake):
    (fake / "client:x").write_text("1")
    assert cli.run(["sync", "./client:x", "server:"]) == 0
    assert (fake / "guest" / "client:x").exists()


@needs_rsync
def test_what_rsync_says_is_the_exit_code(fake, capfd):
    assert cli.run(["sync", "client:absent", "back"]) == 23
    assert "absent" in capfd.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["a", "b"],
        ["client:a", "server:b"],
        ["client:a", "b", "server:c"],
        ["client:a", "server:b", "c"],
        ["a"],
    ],
)
def test_sides_that_rsync_cannot_join(fake, words):
    assert cli.run(["sync", *words]) == 2


def test_an_unknown_guest(fake, capsys):
    assert cli.run(["sync", "a", "nobody:b"]) == 2
    assert "its guests are client, server" in capsys.readouterr().err


@needs_rsync
def test_a_guest_without_rsync(fake, capsys, monkeypatch):
    (fake / "bin" / "ssh").write_text("#!/bin/sh\necho rsync: not found >&2\nexit 127\n")
    empty = fake / "empty"
    empty.mkdir()

    def open_session(_, name):
        session = LocalSession(name, empty)
        real = session.start
        session.start = lambda argv, **streams: real(["sh", "-c", "exit 127"], **streams)
        return session

    monkeypatch.setattr("lab.guest.open_session", open_session)
    (fake / "a").touch()
    assert cli.run(["sync", "a", "client:b"]) == 3
    err = capsys.readouterr().err
    assert "guest client has no rsync" in err
    assert "image.packages" in err


def test_a_host_without_rsync(fake, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(fake / "bin"))
    (fake / "a").touch()
    assert cli.run(["sync", "a", "client:b"]) == 3
    assert "no rsync on this host" in capsys.readouterr().err


@needs_rsync
def test_a_signal_ends_rsync_too(fake):
    (fake / "bin" / "ssh").write_text('#!/bin/sh\necho $$ > "$FAKE/pid"\nexec sleep 100\n')
    (fake / "a").touch()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-m", "lab", "sync", "a", "client:b"]
    with subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 20
        while not ((fake / "pid").exists() and (fake / "pid").read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 143
    ended = int((fake / "pid").read_text())
    while os.path.exists(f"/proc/{ended}"):  # noqa: PTH110
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- lab ssh-config


def test_ssh_config_has_every_guest(fake, capsys):
    assert cli.run(["ssh-config"]) == 0
    out = capsys.readouterr().out
    topology = load_topology(fake / "lab.yaml")
    for guest in topology.guests.values():
        assert f"Host {guest.name} {guest.name}.x\n  HostName {guest.address}\n  User root\n" in out
    assert out.count("ProxyCommand env PYTHONPATH=") == 2
    assert f"IdentityFile {LabPaths('x').private_key}\n" in out


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs ssh")
def test_ssh_understands_it(fake):
    config = fake / "config"
    config.write_text(ssh_config.text(load_topology(fake / "lab.yaml")))
    real = shutil.which("ssh", path=os.environ["PATH"].partition(":")[2])
    argv = [real, "-F", str(config), "-G", "client.x"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    address = load_topology(fake / "lab.yaml").guest("client").address
    assert f"hostname {address}" in said
    assert "user root" in said
    assert "stricthostkeychecking true" in said
    (proxy,) = [line for line in said if line.startswith("proxycommand ")]
    assert proxy.endswith("lab.proxy /run/netns/hh-x %h %p")


def test_ssh_config_of_a_lab_that_is_down(fake):
    LabPaths("x").private_key.unlink()
    with pytest.raises(LabError, match="lab x is not up"):
        ssh_config.text(load_topology(fake / "lab.yaml"))
