# SPDX-License-Identifier: Apache-2.0
"""socat, rsync's daemon, and OpenSSH with forwarded ports."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from conformance.place import Place, free_port
from conformance.suites import AT_ONCE, Program
from conformance.web_programs import start_file_server
from conformance.web_servers import CURL, SIZES, fetch, same


class Socat(Program):
    """socat: relays, half-close, a forked child with the socket as its standard input and output."""

    name = "socat"
    needs = ("socat",)

    def start(self, place: Place, stack: ExitStack) -> None:
        self.data = place.noise("data", 8_000_003)
        self.echo, self.source, self.relay = free_port(), free_port(), free_port()
        for port, address in (
            (self.echo, "EXEC:cat"),
            (self.source, f"SYSTEM:'cat {self.data}'"),
            (self.relay, f"TCP4:127.0.0.1:{self.echo}"),
        ):
            listen = f"TCP4-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork"
            stack.enter_context(place.server("socat", listen, address, port=port, name=f"socat-{port}"))

    def check_echo(self, place: Place) -> None:
        """All that goes in comes out after the half-close."""
        got = place.run("socat", "-t30", "-", f"TCP4:127.0.0.1:{self.echo}", stdin=self.data.read_bytes())
        assert got == self.data.read_bytes()

    def check_small_writes(self, place: Place) -> None:
        got = place.run("socat", "-t30", "-b100", "-", f"TCP4:127.0.0.1:{self.echo}", stdin=bytes(100_000))
        assert got == bytes(100_000)

    def check_one_way(self, place: Place) -> None:
        got = place.run("socat", "-u", f"TCP4:127.0.0.1:{self.source}", "-")
        assert got == self.data.read_bytes()

    def check_relay(self, place: Place) -> None:
        """Two streams, one after the other."""
        got = place.run("socat", "-t30", "-", f"TCP4:127.0.0.1:{self.relay}", stdin=self.data.read_bytes())
        assert got == self.data.read_bytes()

    def check_many(self, place: Place) -> None:
        for number in range(20):
            message = b"message %d" % number
            assert place.run("socat", "-t30", "-", f"TCP4:127.0.0.1:{self.relay}", stdin=message) == message


RSYNC_CONFIG = """
use chroot = no
port = {port}
address = 127.0.0.1
pid file = {root}/rsyncd.pid
lock file = {root}/rsyncd.lock
[files]
    path = {root}/remote
    read only = no
    uid = {uid}
    gid = {gid}
"""


class Rsync(Program):
    """rsync's daemon: a tree up, changes up, the tree down."""

    name = "rsync"
    needs = ("rsync",)

    def start(self, place: Place, stack: ExitStack) -> None:
        port = free_port()
        self.local, self.remote = place.path("local/x").parent, place.path("remote/x").parent
        for number in range(60):
            place.noise(f"local/{number % 7}/{number}", 1 + number * 1777)
        place.noise("local/big", 20_000_000)
        text = RSYNC_CONFIG.format(port=port, root=place.directory, uid=os.getuid(), gid=os.getgid())
        config = place.write("rsyncd.conf", text)
        stack.enter_context(place.server("rsync", "--daemon", "--no-detach", f"--config={config}", port=port))
        self.url = f"rsync://127.0.0.1:{port}/files/"

    def check_up(self, place: Place) -> None:
        place.run("rsync", "-a", f"{self.local}/", self.url)
        _same_trees(self.local, self.remote)

    def check_delta(self, place: Place) -> None:
        """Some blocks of the large file change, some files come and go."""
        data = bytearray((self.local / "big").read_bytes())
        for at in range(0, len(data), 3_000_000):
            data[at : at + 100] = bytes(100)
        (self.local / "big").write_bytes(data)
        (self.local / "1/1").unlink()
        place.noise("local/new", 123_456)
        place.run("rsync", "-a", "--checksum", "--delete", f"{self.local}/", self.url)
        _same_trees(self.local, self.remote)

    def check_down(self, place: Place) -> None:
        copy = place.path("copy/x").parent
        place.run("rsync", "-a", "-z", self.url, f"{copy}/")
        _same_trees(self.remote, copy)

    def check_list(self, place: Place) -> None:
        lines = place.run("rsync", "-r", self.url).splitlines()
        assert len(lines) > 60


def _same_trees(one: Path, other: Path) -> None:
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert names == {path.relative_to(other) for path in other.rglob("*") if path.is_file()}
    for name in names:
        same(one / name, other / name)


SSHD_CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {root}/host_key
PidFile {root}/sshd.pid
AuthorizedKeysFile {root}/user_key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
MaxStartups 100
"""


class OpenSSH(Program):
    """sshd on a port of the loopback; ssh, scp and sftp to it, also through ports that it forwards."""

    name = "openssh"
    needs = ("ssh", "scp", "sshd", "ssh-keygen", "curl")
    policy = AT_ONCE  # sshd enters a sandbox after the greetings, where most system calls are forbidden

    def start(self, place: Place, stack: ExitStack) -> None:
        self.files = start_file_server(place, stack)
        self.port, self.forwarded, self.socks = free_port(), free_port(), free_port()
        for key in ("host_key", "user_key"):
            place.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place.path(key))
        config = place.write("sshd_config", SSHD_CONFIG.format(port=self.port, root=place.directory))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        sshd = shutil.which("sshd", path=place.env["PATH"]) or "sshd"
        stack.enter_context(place.server(sshd, "-D", "-e", "-f", config, port=self.port, name="sshd"))
        tunnel = (
            *("ssh", *self._options(place, "-p", self.port), "-N", "-L"),
            *(
                f"127.0.0.1:{self.forwarded}:127.0.0.1:{self.port}",
                "-D",
                f"127.0.0.1:{self.socks}",
                "127.0.0.1",
            ),
        )
        stack.enter_context(place.server(*tunnel, port=self.socks, name="tunnel"))

    def _options(self, place: Place, flag: str, port: int) -> tuple[str, ...]:
        settings = (
            "UserKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=no",
            "LogLevel=ERROR",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
        )
        options = [word for setting in settings for word in ("-o", setting)]
        return ("-F", "/dev/null", "-i", str(place.path("user_key")), *options, flag, str(port))

    def check_command(self, place: Place) -> None:
        data = place.path("www/odd").read_bytes()
        ssh = ("ssh", *self._options(place, "-p", self.port), "127.0.0.1")
        assert place.run(*ssh, "cat", stdin=data) == data
        place.run(*ssh, "exit 7", code=7)

    def check_scp(self, place: Place) -> None:
        self._copy(place, self.port, "scp")

    def check_scp_through_forwarded_port(self, place: Place) -> None:
        self._copy(place, self.forwarded, "scp-forwarded")

    def check_old_scp_through_forwarded_port(self, place: Place) -> None:
        self._copy(place, self.forwarded, "scp-old", "-O")

    def _copy(self, place: Place, port: int, name: str, *options: str) -> None:
        """Up and down again."""
        up, down = place.path(f"{name}/up"), place.path(f"{name}/down")
        command = ("scp", "-q", *options, *self._options(place, "-P", port))
        for size in SIZES:
            source = place.path(f"www/{size}")
            place.run(*command, source, f"127.0.0.1:{up}")
            same(source, up)
            place.run(*command, f"127.0.0.1:{up}", down)
            same(source, down)

    def check_socks(self, place: Place) -> None:
        """curl through the dynamic forwarding, several streams in one."""
        for size in SIZES:
            fetch(place, self.files + size, size, "--socks5", f"127.0.0.1:{self.socks}")
        options = ("--socks5", f"127.0.0.1:{self.socks}", "--parallel")
        place.run(*CURL, *options, "--create-dirs", "--output", "got/socks/#1", f"{self.files}many/[0-39]")
        for number in range(40):
            same(place.path(f"got/socks/{number}"), place.path(f"www/many/{number}"))


SUITES = (Socat(), Rsync(), OpenSSH())
