"""A lab's life with real guests: up, used, broken, down, and nothing left of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import libvirtd, lifecycle, lock, netns, process, readiness, status
from lab.errors import LabError, PhaseError, UserError
from lab.guest import execute, open_session, run_in, ssh_argv
from lab.paths import LabPaths
from lab.progress import Progress
from lab.ssh_session import CommandTimeoutError

from .conftest import REPOSITORY, look_at_host, run_cli, write_topology

SMALL = """
name: {name}
networks:
  lan: {subnet: 10.91.0.0/24}
heaps:
  shared: {size: 1MiB, members: [one]}
guests:
  one: {memory: 256MiB}
"""


@pytest.fixture
def small(tmp_path, repository):
    """A lab of one guest that is not up, with the image of hello.yaml; gone after the test."""
    text = (repository / "examples" / "hello.yaml").read_text()
    image = re.search(r"^image:\n(?:  .*\n)+", text, flags=re.M)
    topology, file = write_topology(tmp_path, SMALL + image[0], "s")
    yield topology, file
    lifecycle.down(topology.name, Progress.silent())


# --- A lab that runs


def test_every_guest_is_ready(hello_lab):
    found = status.collect(hello_lab.topology)
    assert found.state == "up"
    assert found.daemon == "running"
    assert {guest.name: guest.heaps for guest in found.guests} == {
        "client": ("shared",),
        "server": ("shared",),
        "outsider": (),
    }
    assert {guest.agent for guest in found.guests} == {"connected"}
    assert {guest.accelerator for guest in found.guests} <= {"kvm", "tcg"}


def test_up_again_changes_nothing(hello_lab):
    boots = [
        hello_lab.run(name, "cat", "/proc/sys/kernel/random/boot_id").stdout
        for name in hello_lab.topology.guests
    ]
    report = hello_lab.up()
    assert not report.changed
    assert report.started == ()
    again = [
        hello_lab.run(name, "cat", "/proc/sys/kernel/random/boot_id").stdout
        for name in hello_lab.topology.guests
    ]
    assert again == boots
    done = hello_lab.cli("up")
    assert done.returncode == 0
    assert b"nothing was changed" in done.stdout


def test_another_topology_of_the_same_name_is_refused(hello_lab):
    other = hello_lab.topology.model_copy(
        update={"policy": hello_lab.topology.policy.model_copy(update={"after_calls": 9})}
    )
    with pytest.raises(UserError, match="another topology"):
        lifecycle.up(other, Progress.silent())
    assert status.collect(other).state == "other"


def test_guests_know_each_other(hello_lab):
    for name in ("server", "outsider", "host"):
        hello_lab.run("client", "ping", "-c1", "-W5", name)
    assert hello_lab.run("client", "hostname").stdout == b"client\n"
    failed = hello_lab.run("client", "systemctl", "--failed", "--no-legend", "--plain")
    assert failed.stdout == b""


def test_exec_is_the_command_itself(hello_lab):
    done = hello_lab.cli("exec", "client", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_exec_passes_words_as_they_are(hello_lab):
    words = ["a b", "$HOME", "'", '"', "*", "", "\\", "ä", "--"]
    done = hello_lab.run("client", "printf", "%s\\n", *words)
    assert done.stdout.decode().split("\n")[:-1] == words


def test_exec_says_which_signal(hello_lab):
    assert hello_lab.run("client", "sh", "-c", "kill -KILL $$", check=False).code == 128 + signal.SIGKILL
    assert hello_lab.run("client", "sh", "-c", "kill -TERM $$", check=False).code == 128 + signal.SIGTERM


def test_exec_of_an_absent_program(hello_lab):
    done = hello_lab.run("client", "no-such-program", check=False)
    assert done.code == 127
    assert b"no-such-program" in done.stderr


def test_exec_streams_any_bytes_both_ways(hello_lab):
    data = os.urandom(3 << 20)
    assert hello_lab.run("client", "cat", stdin=data).stdout == data


def test_exec_ends_what_takes_too_long(hello_lab):
    with pytest.raises(CommandTimeoutError, match="took more than 1 s"):
        hello_lab.run("client", "sh", "-c", "sleep 4321 & sleep 4321", timeout=1)
    assert hello_lab.run("client", "pgrep", "-f", "sleep 4321", check=False).stdout == b""


def test_exec_in_an_unknown_guest(hello_lab):
    done = hello_lab.cli("exec", "nobody", "--", "true")
    assert done.returncode == 2
    assert b"its guests are client, server, outsider" in done.stderr


def test_ssh_by_the_hosts_own_client(hello_lab):
    argv = ssh_argv(hello_lab.topology, "server", ["echo", "a  b"])
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False, cwd=REPOSITORY)
    assert (done.returncode, done.stdout) == (0, b"a  b\n"), done.stderr


def test_logs(hello_lab):
    assert readiness.SETUP_DONE.encode() in hello_lab.cli("logs", "client").stdout
    assert b"registered" in hello_lab.cli("logs", "--source", "agent", "client").stdout
    assert b"ready" in hello_lab.cli("logs", "--source", "daemon").stdout
    assert b"libvirt version" in hello_lab.cli("logs", "--source", "libvirt").stdout


@pytest.mark.timeout(180)
def test_console(hello_lab):
    """Type on the serial console, by a terminal of our own, and leave it by Ctrl-]."""
    master, terminal = os.openpty()
    argv = [sys.executable, "-m", "lab", "console", "-t", str(hello_lab.file), "outsider"]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdin=terminal, stdout=terminal, stderr=terminal) as child:
        os.close(terminal)
        heard = b""
        while b"Ctrl-]" not in heard:
            heard += os.read(master, 4096)
        # The shell starts when all else has: what is typed before is read then.
        os.write(master, b"echo answer=$((6*7))\r")
        while b"answer=42" not in heard:
            heard += os.read(master, 4096)
        os.write(master, b"\x1d")
        assert child.wait(10) == 0
    os.close(master)


def test_console_needs_a_terminal(hello_lab):
    done = hello_lab.cli("console", "client")
    assert done.returncode == 2
    assert b"needs a terminal" in done.stderr


@pytest.mark.timeout(180)
def test_a_command_in_a_guest_that_dies_ends(hello_lab):
    running = hello_lab.start("outsider", "sleep", "1000", timeout=1000)
    hello_lab.run("outsider", "true")
    for victim in process.find(process.works_in(hello_lab.paths.guest("outsider").disks, ("qemu",))):
        victim.kill()
    with pytest.raises(LabError, match="connection"):
        running.result()
    assert hello_lab.up().started == ("outsider",)


@pytest.mark.timeout(180)
def test_a_guest_that_reboots_comes_back(hello_lab):
    boot_id = ["cat", "/proc/sys/kernel/random/boot_id"]
    before = hello_lab.run("outsider", *boot_id).stdout
    hello_lab.run("outsider", "systemd-run", "--no-block", "reboot", "--force")
    while status.collect(hello_lab.topology).state == "up":
        time.sleep(0.1)
    while status.collect(hello_lab.topology).state != "up":
        time.sleep(0.1)
    hello_lab.forget("outsider")
    assert not hello_lab.up().changed
    assert hello_lab.run("outsider", *boot_id).stdout != before


def test_status_for_programs(hello_lab):
    done = hello_lab.cli("status", "--json")
    assert done.returncode == 0
    assert {guest["name"]: guest["state"] for guest in json.loads(done.stdout)["guests"]} == {
        "client": "running",
        "server": "running",
        "outsider": "running",
    }


def test_a_busy_lab_says_with_what(hello_lab):
    with lock.hold(hello_lab.paths, "up"):
        done = hello_lab.cli("down")
    assert done.returncode == 1
    assert f"`lab up` (process {os.getpid()})".encode() in done.stderr


def test_a_guest_that_was_destroyed_comes_back_alone(hello_lab):
    before = hello_lab.run("client", "cat", "/proc/sys/kernel/random/boot_id").stdout
    (victim,) = process.find(process.works_in(hello_lab.paths.guest("outsider").disks, ("qemu",)))
    victim.kill()
    while victim.is_alive():
        time.sleep(0.01)
    while status.collect(hello_lab.topology).state != "partial":
        time.sleep(0.05)
    assert hello_lab.up().started == ("outsider",)
    assert hello_lab.run("client", "cat", "/proc/sys/kernel/random/boot_id").stdout == before
    assert status.collect(hello_lab.topology).state == "up"


def test_a_daemon_that_was_killed_gets_a_successor(hello_lab):
    before = hello_lab.run("client", "cat", "/proc/sys/kernel/random/boot_id").stdout
    daemon = process.identify(int((hello_lab.paths.root / "daemon.pid").read_text()))
    daemon.kill()
    while daemon.is_alive():
        time.sleep(0.01)
    report = hello_lab.up()
    assert report.changed
    assert report.started == ()
    assert hello_lab.run("client", "cat", "/proc/sys/kernel/random/boot_id").stdout == before


# --- From nothing to nothing


def test_up_and_down_leave_nothing(small):
    topology, file = small
    before = look_at_host(topology.name)
    up = run_cli("up", "--json", str(file))
    assert up.returncode == 0, up.stderr.decode()
    assert json.loads(up.stdout)["started"] == ["one"]
    between = look_at_host(topology.name)
    assert len(between.processes) >= 3, "libvirtd, the daemon and QEMU"
    assert between.namespaces > before.namespaces
    assert between.shared_memory > before.shared_memory
    begun = time.monotonic()
    down = run_cli("down", str(file))
    assert time.monotonic() - begun < 5
    assert down.returncode == 0, down.stderr.decode()
    assert look_at_host(topology.name) == before
    again = run_cli("down", str(file))
    assert again.returncode == 0
    assert b"nothing was changed" in again.stdout
    with pytest.raises(LabError, match="is not up"):
        open_session(topology, "one")
    assert status.collect(topology).state == "down"


def _has_netns(lab: LabPaths) -> bool:
    return lab.netns_file.exists()


def _has_libvirt(lab: LabPaths) -> bool:
    return lab.libvirt_socket.exists()


def _has_daemon(lab: LabPaths) -> bool:
    return lab.daemon_socket.exists()


def _has_disk(lab: LabPaths) -> bool:
    return lab.guest("one").overlay.exists()


def _has_guest(lab: LabPaths) -> bool:
    return bool(process.find(process.works_in(lab.disks, ("qemu",))))


def _has_booted(lab: LabPaths) -> bool:
    return readiness.has_booted(lab, "one")


@pytest.mark.parametrize(
    "moment", [_has_netns, _has_libvirt, _has_daemon, _has_disk, _has_guest, _has_booted]
)
def test_up_killed_at_any_moment(small, moment):
    topology, file = small
    lab = LabPaths(topology.name)
    before = look_at_host(topology.name)
    argv = [sys.executable, "-m", "lab", "up", str(file)]
    with subprocess.Popen(
        argv, cwd=REPOSITORY, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as child:
        while not moment(lab):
            assert child.poll() is None, "up ended before it could be killed"
        child.kill()
    if moment in {_has_libvirt, _has_guest, _has_booted}:
        lifecycle.up(topology, Progress.silent())
        assert status.collect(topology).state == "up"
    lifecycle.down(topology.name, Progress.silent())
    left = look_at_host(topology.name)
    # The lock's file of the killed `up` goes with the next verb that finds it, which was `down`.
    assert left == before


@pytest.mark.parametrize("victim", ["libvirtd", "qemu", "python", "everything but files"])
def test_down_after_anything_was_killed(small, victim):
    topology, _ = small
    lab = LabPaths(topology.name)
    before = look_at_host(topology.name)
    lifecycle.up(topology, Progress.silent())
    programs = ("libvirtd", "qemu", "python") if victim.startswith("everything") else (victim,)
    found = [
        each for root in (lab.root, lab.disks) for each in process.find(process.works_in(root, programs))
    ]
    assert found
    process.kill(found)
    if victim == "libvirtd":
        subprocess.run(["ip", "netns", "delete", lab.netns], check=True)
    lifecycle.down(topology.name, Progress.silent())
    assert look_at_host(topology.name) == before


def test_interrupt_during_up_ends_soon(small):
    topology, file = small
    lab = LabPaths(topology.name)
    argv = [sys.executable, "-m", "lab", "up", str(file)]
    with subprocess.Popen(argv, cwd=REPOSITORY, stderr=subprocess.PIPE) as child:
        while not _has_guest(lab):
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == 130


def test_a_guest_that_never_becomes_ready_says_where(small, monkeypatch):
    topology, _ = small
    monkeypatch.setitem(readiness._LIMITS, "agent", 0)
    monkeypatch.setattr(readiness, "_agent", lambda _: "its agent has not registered")
    with pytest.raises(PhaseError) as caught:
        lifecycle.up(topology, Progress.silent())
    assert caught.value.guest == "one"
    assert caught.value.phase == "agent"
    assert readiness.SETUP_DONE in "\n".join(caught.value.console)
    assert "lab console one" in str(caught.value)


def test_two_labs_side_by_side(hello_lab, small):
    topology, _ = small
    lifecycle.up(topology, Progress.silent())
    with open_session(topology, "one") as session:
        assert run_in(session, ["hostname"]).stdout == b"one\n"
        assert (
            run_in(session, ["ping", "-c1", "-W1", str(hello_lab.topology.guest("client").address)]).code != 0
        )
    lifecycle.down(topology.name, Progress.silent())
    assert status.collect(hello_lab.topology).state == "up"
    hello_lab.run("client", "ping", "-c1", "-W5", "server")


def test_an_existing_libvirt(small, tmp_path):
    """`--connect`: everything as with a private libvirt, whose part another lab's plays here, and what is
    its own stays.
    """
    topology, file = small
    other = LabPaths(f"{topology.name}c")
    before = look_at_host(topology.name)
    try:
        other.root.mkdir(parents=True)
        netns.create(other.netns)
        libvirtd.start(other)
        inside = [
            *netns.prefix(other.netns_file),
            sys.executable,
            "-m",
            "lab",
            "--connect",
            libvirtd.uri(other),
        ]

        def run(*arguments):
            return subprocess.run(
                [*inside, *arguments], capture_output=True, timeout=300, check=False, cwd=REPOSITORY
            )

        up = run("up", str(file))
        assert up.returncode == 0, up.stderr.decode()
        assert run("exec", "-t", str(file), "one", "--", "hostname").stdout == b"one\n"
        assert json.loads(run("status", "--json", str(file)).stdout)["state"] == "up"
        assert b"nothing was changed" in run("up", str(file)).stdout
        assert not LabPaths(topology.name).libvirt.exists()
        assert run("down", str(file)).returncode == 0
        with libvirtd.connect(other) as connection:
            assert connection.listAllDomains() == []
            assert connection.listAllNetworks() == []
        assert look_at_host(topology.name) == before
    finally:
        lifecycle.down(other.lab, Progress.silent())


def test_a_leftover_of_every_kind_goes(small):
    """What no `up` leaves, but a crash of the host's own tools might."""
    topology, _ = small
    lab = LabPaths(topology.name)
    before = look_at_host(topology.name)
    lab.root.mkdir(parents=True)
    lab.netns_file.parent.mkdir(exist_ok=True)
    lab.netns_file.touch()
    lab.daemon_config.write_text("{")
    lab.disks.mkdir(parents=True)
    with contextlib.closing((lab.root / "x").open("w")):
        lifecycle.down(topology.name, Progress.silent())
    assert look_at_host(topology.name) == before


def test_execute_streams_while_the_command_runs(hello_lab):
    reader, writer = os.pipe()
    with (
        os.fdopen(reader, "rb") as source,
        os.fdopen(writer, "wb", buffering=0) as sink,
        Path(os.devnull).open("wb") as null,
    ):
        future = hello_lab._pool.submit(
            execute,
            hello_lab.topology,
            "client",
            ["sh", "-c", "echo first; sleep 3"],
            stdout=sink,
            stderr=null,
        )
        assert source.readline() == b"first\n"
        assert not future.done()
        assert future.result() == 0
