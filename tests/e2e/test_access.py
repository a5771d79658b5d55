"""Using a lab that runs: from Python, from pytest, and with the verbs that move files and run commands."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import termios
import textwrap
from pathlib import Path

import pytest

from lab import Lab, readiness
from lab.api import CommandError, ExpectationError, WaitError
from lab.ssh_session import CommandTimeoutError

from .conftest import REPOSITORY, RunningLab


@pytest.fixture
def lab(hello_lab: RunningLab) -> Lab:
    return hello_lab.lab


# --- The Python API


def test_commands_from_python(lab: Lab) -> None:
    client = lab["client"]
    assert client.succeed(["hostname"]).stdout == "client\n"
    assert client.execute("cat; exit 7", stdin="x").code == 7
    assert client.fail("test -e /absent").code == 1
    with pytest.raises(CommandError, match="guest client: 'echo no >&2; false' ended with 1"):
        client.succeed("echo no >&2; false")
    with pytest.raises(CommandTimeoutError):
        client.execute(["sleep", "4323"], timeout=0.5)
    waiting = client.spawn("sleep 1; echo done")
    assert client.succeed(["true"])
    assert waiting.result(60).stdout == "done\n"
    assert client.status().agent == "connected"
    assert lab.status().state == "up"


def test_waiting_from_python(lab: Lab) -> None:
    client = lab["client"]
    client.wait_for_unit("hyperheap-agent.service")
    assert client.wait_for_console_text(readiness.SETUP_DONE)
    client.execute("systemd-run --unit=doomed sh -c 'echo its reason; exit 1'")
    try:
        with pytest.raises(ExpectationError, match=r"unit doomed failed(?s:.*)its reason"):
            client.wait_for_unit("doomed")
    finally:
        client.execute("systemctl reset-failed doomed")
    with pytest.raises(WaitError, match="nobody listens on 6999"):
        client.wait_for_open_port(6999, timeout=0)


def test_paths_from_python(lab: Lab) -> None:
    client, server = lab["client"], lab["server"]
    serving = server.spawn("exec lab-run iperf3 --server --one-off --port 6998")
    server.wait_for_open_port(6998)
    client.succeed("lab-run iperf3 --client server --port 6998 --bytes 256M")
    assert serving.result(60)
    server.wait_for_closed_port(6998)
    # iperf3 has a connection for control, and after it one for the data.
    found = lab.wait_for_path(6998, "shared")
    assert found.shared > 1 << 20
    assert found.client.guest == "client"
    assert found.number in {each.number for each in server.sockets()}
    assert server.path_of(found) == "shared"


def test_a_blocked_guest_is_alone_until_it_is_unblocked(lab: Lab) -> None:
    client, outsider = lab["client"], lab["outsider"]
    client.succeed("ping -c1 -W5 outsider")
    outsider.block()
    try:
        client.fail("ping -c1 -W1 outsider")
        # What needs no network goes on.
        assert outsider.status().agent == "connected"
    finally:
        outsider.unblock("lan")
    client.wait_until_succeeds("ping -c1 -W1 outsider")
    assert outsider.succeed("cat /sys/class/net/eth0/carrier").stdout == "1\n"


# --- lab cp, lab sync


def test_cp_between_host_and_guests(hello_lab: RunningLab, lab: Lab, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    data = os.urandom(5 << 20)
    (tree / "data").write_bytes(data)
    (tree / "sub" / "tool").write_text("#!/bin/sh\necho it works\n")
    (tree / "sub" / "tool").chmod(0o755)
    try:
        assert hello_lab.cli("cp", str(tree), "client:/root/copied/").returncode == 0
        assert lab["client"].succeed("/root/copied/tree/sub/tool").stdout == "it works\n"
        assert hello_lab.cli("cp", "client:copied/tree", "server:again").returncode == 0
        digest = lab["server"].succeed("sha256sum < /root/again/data").stdout.split()[0]
        assert digest == hashlib.sha256(data).hexdigest()
        lab["server"].copy_from("again", tmp_path / "back")
        assert (tmp_path / "back" / "data").read_bytes() == data
        assert (tmp_path / "back" / "sub" / "tool").stat().st_mode & 0o777 == 0o755
    finally:
        lab["client"].execute("rm -rf /root/copied")
        lab["server"].execute("rm -rf /root/again")


def test_cp_says_what_is_wrong(hello_lab: RunningLab, tmp_path: Path) -> None:
    done = hello_lab.cli("cp", "client:/absent", str(tmp_path))
    assert done.returncode == 1
    assert b"guest client: " in done.stderr
    assert b"/absent" in done.stderr
    (tmp_path / "x").touch()
    done = hello_lab.cli("cp", str(tmp_path / "x"), "client:/proc/x")
    assert done.returncode == 1
    assert b"guest client: " in done.stderr
    done = hello_lab.cli("cp", "here", "there")
    assert done.returncode == 2
    assert b"name a guest" in done.stderr


def test_sync(hello_lab: RunningLab, lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (source / "one").write_text("1")
    done = hello_lab.cli("sync", f"{source}/", "client:/root/src")
    assert done.returncode == 3
    assert b"guest client has no rsync" in done.stderr
    try:
        lend_rsync(lab, tmp_path)
        assert hello_lab.cli("sync", f"{source}/", "client:/root/src").returncode == 0
        assert lab["client"].succeed("cat /root/src/one").stdout == "1"
        (source / "one").rename(source / "two")
        done = hello_lab.cli("sync", "--delete", "--verbose", f"{source}/", "client:/root/src")
        assert b"deleting one" in done.stdout
        assert lab["client"].succeed("ls /root/src").stdout == "two\n"
        assert hello_lab.cli("sync", "client:/root/src/", str(tmp_path / "back")).returncode == 0
        assert (tmp_path / "back" / "two").read_text() == "1"
    finally:
        lab["client"].execute("rm -rf /root/src /root/lent /usr/local/bin/rsync")


def lend_rsync(lab: Lab, scratch: Path) -> None:
    """Give the guest client the host's rsync, whose libraries it lacks: the image has none."""
    lent = scratch / "lent"
    lent.mkdir()
    listed = subprocess.run(["ldd", "/usr/bin/rsync"], capture_output=True, text=True, check=True).stdout
    for word in listed.split():
        if word.startswith("/"):
            (lent / Path(word).name).write_bytes(Path(word).read_bytes())
    (lent / "rsync").write_bytes(Path("/usr/bin/rsync").read_bytes())
    loader = "/root/lent/ld-linux-x86-64.so.2 --library-path /root/lent"
    wrapper = f'#!/bin/sh\nexec {loader} /root/lent/rsync "$@"\n'
    (lent / "wrapper").write_text(wrapper)
    for file in lent.iterdir():
        file.chmod(0o755)
    lab["client"].copy_to(lent, "/root/lent")
    lab["client"].succeed("mv /root/lent/wrapper /usr/local/bin/rsync")


# --- lab ssh-config, lab shell, signals


def test_ssh_config(hello_lab: RunningLab, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_bytes(hello_lab.cli("ssh-config").stdout)
    for host in ("client", f"client.{hello_lab.topology.name}"):
        argv = ["ssh", "-F", str(config), host, "hostname"]
        done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, b"client\n"), done.stderr


def test_shell_on_all_guests(hello_lab: RunningLab) -> None:
    done = hello_lab.cli("shell", "--", "sh", "-c", "hostname; [ $(hostname) != server ] || exit 9")
    assert done.returncode == 9
    assert sorted(done.stdout.splitlines()) == [
        b"client   | client",
        b"outsider | outsider",
        b"server   | server",
    ]
    done = hello_lab.cli("shell", "-g", "client", "-g", "server", "-i", "wc", "-c", stdin=b"x" * 100_000)
    assert sorted(done.stdout.splitlines()) == [b"client | 100000", b"server | 100000"]
    done = hello_lab.cli("shell", "-g", "client", stdin=b"hostname | tr a-z A-Z\nfalse\n")
    assert (done.returncode, done.stdout) == (1, b"client | CLIENT\n")


def test_shell_on_a_terminal(hello_lab: RunningLab) -> None:
    """Typed lines, Ctrl-C for one of them, and Ctrl-D."""
    master, terminal = os.openpty()
    argv = [sys.executable, "-m", "lab", "shell", "-t", str(hello_lab.file), "-g", "client", "-g", "server"]
    with subprocess.Popen(
        argv,
        cwd=REPOSITORY,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env={**os.environ, "NO_COLOR": "1"},
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as child:
        os.close(terminal)
        prompt = f"{hello_lab.topology.name}> ".encode()

        def expect(*words: bytes) -> None:
            heard = b""
            while not all(word in heard for word in words):
                heard += os.read(master, 4096)

        expect(prompt)
        os.write(master, b"echo $((6*7)) of $(hostname)\r")
        expect(b"client | 42 of client", b"server | 42 of server", prompt)
        os.write(master, b"echo n''ow; sleep 4325\r")
        expect(b"client | now", b"server | now")
        os.write(master, b"\x03")
        expect(prompt)
        os.write(master, b"pgrep -f 'sleep 432[5]' || echo n''one\r")
        expect(b"client | none", b"server | none", prompt)
        os.write(master, b"\x04")
        assert child.wait(20) == 130
    os.close(master)


@pytest.mark.parametrize(
    ("verb", "number", "code"),
    [
        (["exec", "client"], signal.SIGTERM, 143),
        (["shell", "-g", "client", "-g", "server"], signal.SIGINT, 130),
    ],
)
def test_a_signal_ends_the_command_too(
    hello_lab: RunningLab, lab: Lab, verb: list[str], number: int, code: int
) -> None:
    argv = [sys.executable, "-m", "lab", verb[0], "-t", str(hello_lab.file), *verb[1:], "--", "sleep", "4324"]
    with subprocess.Popen(argv, cwd=REPOSITORY, stderr=subprocess.PIPE) as child:
        lab["client"].wait_until_succeeds("pgrep -f 'sleep 432[4]'")
        if verb[0] == "shell":
            lab["server"].wait_until_succeeds("pgrep -f 'sleep 432[4]'")
        child.send_signal(number)
        assert child.wait(60) == code
    for guest in ("client", "server"):
        assert lab[guest].execute("pgrep -f 'sleep 432[4]'").code == 1


def test_input_that_nobody_closes_holds_nothing_up(hello_lab: RunningLab) -> None:
    argv = [sys.executable, "-m", "lab", "exec", "-t", str(hello_lab.file), "-i", "client", "--", "true"]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.wait(60) == 0
        assert child.stderr is not None
        assert child.stderr.read() == b""


# --- pytest


def test_the_pytest_plugin_with_a_guest(hello_lab: RunningLab, tmp_path: Path) -> None:
    """A lab of one guest, used and broken by a test of a user; the report shows it, and nothing is left."""
    image = hello_lab.topology.image
    (tmp_path / "lab.yaml").write_text(
        f"name: plug\nimage: {{suite: {image.suite}, packages: [{', '.join(image.packages)}]}}\n"
        "guests:\n  one: {memory: 256MiB}\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_user.py").write_text(
        textwrap.dedent(
            """
            def test_use(lab, tmp_path):
                one = lab["one"]
                assert one.succeed(["hostname"]).stdout == "one\\n"
                one.copy_to(__file__, "/tmp/")
                one.copy_from("/tmp/test_user.py", tmp_path / "back")
                assert (tmp_path / "back").read_text() == open(__file__).read()

            def test_break(lab):
                with lab.subtest("the power fails"):
                    lab["one"].crash()
                    assert lab["one"].status().state != "absent"
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-m", "pytest", *plugin_options(), "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path, check=False
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    for words in (
        "in subtest 'the power fails'",
        "console of one (it does not run)",
        "hyperheap: setup done",
    ):
        assert words in done.stdout
    assert not list(Path("/run/netns").glob("hh-plug-*"))


def plugin_options() -> list[str]:
    """What makes pytest load the plugin where the project is not installed, or an older one is."""
    from importlib.metadata import entry_points

    return [] if entry_points(group="pytest11", name="hyperheap") else ["-p", "lab.pytest_plugin"]
