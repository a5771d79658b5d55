# SPDX-License-Identifier: Apache-2.0
"""curl and wget against Python's http.server; HTTP within Node.js and within the JVM."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from conformance.place import Place, free_port
from conformance.suites import Program
from conformance.web_servers import CURL, SIZES, fetch, fetch_many, make_files, same

FIXTURES = Path(__file__).with_name("fixtures")
HTTP_SERVER = ("/usr/bin/python3", "-m", "http.server", "--bind", "127.0.0.1", "--protocol", "HTTP/1.1")


def start_file_server(place: Place, stack: ExitStack) -> str:
    """Start a small web server with threads; its address."""
    port = free_port()
    make_files(place)
    command = (*HTTP_SERVER, "--directory", place.path("www"), str(port))
    stack.enter_context(place.server(*command, port=port, name="http.server"))
    return f"http://127.0.0.1:{port}/"


class Curl(Program):
    """curl: one stream after another, many at once, uploads."""

    name = "curl"
    needs = ("curl", "node")

    def start(self, place: Place, stack: ExitStack) -> None:
        self.url = start_file_server(place, stack)
        port = free_port()
        stack.enter_context(place.server("node", FIXTURES / "echo_server.js", str(port), port=port))
        self.echo = f"http://127.0.0.1:{port}/"

    def check_sizes(self, place: Place) -> None:
        for name in SIZES:
            fetch(place, self.url + name, name)

    def check_many(self, place: Place) -> None:
        fetch_many(place, self.url)
        fetch_many(place, self.url, "--parallel")

    def check_upload(self, place: Place) -> None:
        """A body of known length comes back."""
        for name in SIZES:
            path = place.path(f"www/{name}")
            assert place.run(*CURL, "--data-binary", f"@{path}", self.echo) == path.read_bytes()

    def check_chunked_upload(self, place: Place) -> None:
        data = place.path("www/big").read_bytes()
        header = ("--header", "Transfer-Encoding: chunked", "--header", "Expect:")
        assert place.run(*CURL, *header, "--upload-file", "-", self.echo, stdin=data) == data

    def check_expect_continue(self, place: Place) -> None:
        path = place.path("www/odd")
        assert (
            place.run(*CURL, "--header", "Expect: 100-continue", "-T", path, self.echo) == path.read_bytes()
        )

    def check_rate_limit(self, place: Place) -> None:
        fetch(place, self.url + "big", "big", "--limit-rate", "16M")


class Wget(Program):
    """wget: single files, a whole tree, and the rest of a file."""

    name = "wget"
    needs = ("wget",)

    def start(self, place: Place, stack: ExitStack) -> None:
        self.url = start_file_server(place, stack)

    def check_sizes(self, place: Place) -> None:
        for name in SIZES:
            got = place.path(f"wget-{name}")
            place.run("wget", "-q", "-O", got, self.url + name)
            same(got, place.path(f"www/{name}"))

    def check_mirror(self, place: Place) -> None:
        place.run(
            "wget", "-q", "--mirror", "--no-host-directories", "-P", place.path("mirror"), self.url + "many/"
        )
        for number in range(40):
            same(place.path(f"mirror/many/{number}"), place.path(f"www/many/{number}"))

    def check_post(self, place: Place) -> None:
        """A server that refuses still reads and answers."""
        place.run("wget", "-q", "--post-file", place.path("www/page"), "-O", "-", self.url, code=8)


class NodeHttp(Program):
    """Node.js: its http server and client, keep-alive, 20 at a time, bodies streamed back."""

    name = "nodejs"
    needs = ("node",)

    def start(self, place: Place, stack: ExitStack) -> None:
        self.port = free_port()
        command = ("node", FIXTURES / "echo_server.js", str(self.port))
        stack.enter_context(place.server(*command, port=self.port))

    def check_echo(self, place: Place) -> None:
        place.run("node", FIXTURES / "echo_client.js", str(self.port), "keep-alive")

    def check_echo_without_keep_alive(self, place: Place) -> None:
        place.run("node", FIXTURES / "echo_client.js", str(self.port), "close")


class JvmHttp(Program):
    """The JVM: com.sun.net.httpserver and java.net.http in two processes."""

    name = "jvm"
    needs = ("java", "javac")

    def start(self, place: Place, stack: ExitStack) -> None:
        self.port = free_port()
        self.classes = place.path("classes")
        place.run("javac", "-d", self.classes, FIXTURES / "EchoServer.java", FIXTURES / "EchoClient.java")
        stack.enter_context(place.server(*self._java(), "EchoServer", str(self.port), port=self.port))

    def _java(self) -> tuple[str | Path, ...]:
        return ("java", "-Xmx256m", "-Xshare:auto", "-cp", self.classes)

    def check_echo(self, place: Place) -> None:
        place.run(*self._java(), "EchoClient", str(self.port))

    def check_two_clients(self, place: Place) -> None:
        with place.server(*self._java(), "EchoClient", str(self.port), name="second") as second:
            place.run(*self._java(), "EchoClient", str(self.port))
            assert second.wait(60) == 0

    def check_curl(self, place: Place) -> None:
        data = place.noise("body", 3_000_001)
        url = f"http://127.0.0.1:{self.port}/"
        assert place.run(*CURL, "--data-binary", f"@{data}", url) == data.read_bytes()


SUITES = (Curl(), Wget(), NodeHttp(), JvmHttp())
