# SPDX-License-Identifier: Apache-2.0
"""nginx and HAProxy, with curl as their client."""

from __future__ import annotations

import hashlib
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

from conformance.place import CommandFailed, Place, free_port, wait_until
from conformance.suites import Program

SIZES = {"empty": 0, "one": 1, "page": 4096, "odd": 100_003, "big": 16 << 20}
CURL = ("curl", "--silent", "--show-error", "--fail", "--max-time", "60")

NGINX_CONFIG = """
daemon off;
master_process on;
worker_processes 2;
error_log {root}/nginx-error.log info;
pid {root}/nginx.pid;
events {{ worker_connections 512; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000;
    client_body_temp_path {root}/tmp-body;
    proxy_temp_path {root}/tmp-proxy;
    fastcgi_temp_path {root}/tmp-fastcgi;
    uwsgi_temp_path {root}/tmp-uwsgi;
    scgi_temp_path {root}/tmp-scgi;
    upstream files {{ server 127.0.0.1:{port}; keepalive 8; }}
    server {{
        listen 127.0.0.1:{port};
        root {root}/www;
        location /slow/ {{ alias {root}/www/; limit_rate 4m; }}
        location /buffered/ {{ alias {root}/www/; sendfile off; }}
        location /mirror/ {{
            proxy_pass http://files/;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""


def same(path: Path, other: Path) -> None:
    """Assert that two files have the same bytes."""
    one, two = path.read_bytes(), other.read_bytes()
    assert len(one) == len(two), f"{path}: {len(one)} bytes, {other}: {len(two)}"
    assert hashlib.sha256(one).digest() == hashlib.sha256(two).digest(), f"{path} and {other} differ"


def make_files(place: Place) -> None:
    """Write the files that web servers serve."""
    for name, size in SIZES.items():
        place.noise(f"www/{name}", size)
    for number in range(40):
        place.noise(f"www/many/{number}", 3000 + 997 * number)


def fetch(place: Place, url: str, name: str, *options: str) -> None:
    """Fetch a file with curl and compare it with what is served."""
    got = place.path("got") / name
    got.parent.mkdir(parents=True, exist_ok=True)
    place.run(*CURL, *options, "--output", got, url)
    same(got, place.path(f"www/{name}"))


def fetch_many(place: Place, url: str, *options: str) -> None:
    """Fetch many files with one curl."""
    place.run(*CURL, *options, "--create-dirs", "--output", "got/many/#1", f"{url}many/[0-39]")
    for number in range(40):
        same(place.path(f"got/many/{number}"), place.path(f"www/many/{number}"))


def start_nginx(place: Place, stack: ExitStack) -> tuple[str, subprocess.Popen[bytes]]:
    """Start nginx; its address and its master process."""
    port = free_port()
    make_files(place)
    config = place.write("nginx.conf", NGINX_CONFIG.format(root=place.directory, port=port))
    command = ("nginx", "-p", place.directory, "-e", place.path("nginx-error.log"), "-c", config)
    server = place.server(*command, port=port, stop=signal.SIGQUIT)
    return f"http://127.0.0.1:{port}/", stack.enter_context(server)


class Nginx(Program):
    """nginx with two workers: files by sendfile and by copying, keep-alive, as a proxy of itself."""

    name = "nginx"
    needs = ("nginx", "curl")

    def start(self, place: Place, stack: ExitStack) -> None:
        self.url, self.process = start_nginx(place, stack)

    def check_sizes(self, place: Place) -> None:
        for name in SIZES:
            fetch(place, self.url + name, name)

    def check_copied(self, place: Place) -> None:
        for name in SIZES:
            fetch(place, f"{self.url}buffered/{name}", name)

    def check_keep_alive(self, place: Place) -> None:
        for _ in range(5):
            fetch_many(place, self.url)

    def check_parallel(self, place: Place) -> None:
        fetch_many(place, self.url, "--parallel", "--parallel-max", "16")

    def check_proxy(self, place: Place) -> None:
        for name in SIZES:
            fetch(place, f"{self.url}mirror/{name}", name)
        fetch_many(place, f"{self.url}mirror/")

    def check_range(self, place: Place) -> None:
        got = place.run(*CURL, "--range", "1000000-1999999", f"{self.url}big")
        assert got == place.path("www/big").read_bytes()[1_000_000:2_000_000]

    def check_slow(self, place: Place) -> None:
        """With timers of the server between the writes."""
        fetch(place, f"{self.url}slow/big", "big")

    def check_client_that_leaves(self, place: Place) -> None:
        """Clients that go in the middle of an answer leave a server that serves the next one."""
        for _ in range(5):
            place.run(*CURL, "--max-filesize", "1000", f"{self.url}big", code=63)
            place.run(*CURL, "--max-time", "0.2", f"{self.url}slow/big", code=28)
        fetch(place, f"{self.url}page", "page")

    def check_reload_under_load(self, place: Place) -> None:
        """Old workers finish what they serve."""
        client = place.server(
            *CURL, "--output", place.path("reload"), f"{self.url}slow/big", name="reload-curl"
        )
        with client as download:
            self.process.send_signal(signal.SIGHUP)
            for _ in range(3):
                fetch_many(place, self.url)
            assert download.wait(60) == 0
        same(place.path("reload"), place.path("www/big"))


HAPROXY_CONFIG = """
global
    maxconn 200
    {options}
defaults
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    option splice-auto
frontend web
    mode http
    bind 127.0.0.1:{http}
    default_backend web
backend web
    mode http
    option httpchk GET /one
    http-reuse always
    server one 127.0.0.1:{origin} check inter 500
    server two 127.0.0.1:{origin}
listen relay
    mode tcp
    bind 127.0.0.1:{tcp}
    server origin 127.0.0.1:{origin}
"""


class HAProxy(Program):
    """HAProxy before nginx, by HTTP and by TCP with splice."""

    name = "haproxy"
    needs = ("haproxy", "nginx", "curl")

    def start(self, place: Place, stack: ExitStack) -> None:
        origin, _ = start_nginx(place, stack)
        http, tcp = free_port(), free_port()
        config = HAPROXY_CONFIG.format(
            http=http, tcp=tcp, origin=origin.rstrip("/").rpartition(":")[2], options="nbthread 2"
        )
        path = place.write("haproxy.cfg", config)
        stack.enter_context(place.server("haproxy", "-db", "-f", path, port=http, stop=signal.SIGTERM))
        self.http, self.tcp = f"http://127.0.0.1:{http}/", f"http://127.0.0.1:{tcp}/"
        wait_until(lambda: self._answers(place), "HAProxy's backend")

    def _answers(self, place: Place) -> bool:
        try:
            place.run(*CURL, f"{self.http}one")
        except CommandFailed:
            return False
        return True

    def check_http(self, place: Place) -> None:
        for name in SIZES:
            fetch(place, self.http + name, name)

    def check_http_keep_alive(self, place: Place) -> None:
        for _ in range(5):
            fetch_many(place, self.http)

    def check_http_parallel(self, place: Place) -> None:
        fetch_many(place, self.http, "--parallel", "--parallel-max", "16")

    def check_tcp(self, place: Place) -> None:
        for name in SIZES:
            fetch(place, self.tcp + name, name)

    def check_tcp_parallel(self, place: Place) -> None:
        fetch_many(place, self.tcp, "--parallel", "--parallel-max", "16")

    def check_slow(self, place: Place) -> None:
        fetch(place, f"{self.tcp}slow/big", "big")
        fetch(place, f"{self.http}slow/big", "big")

    def check_clients_that_leave(self, place: Place) -> None:
        for url in (self.http, self.tcp):
            for _ in range(5):
                place.run(*CURL, "--max-time", "0.2", f"{url}slow/big", code=28)
        fetch(place, f"{self.http}page", "page")


SUITES = (Nginx(), HAProxy())
