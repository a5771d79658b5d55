"""A ProxyCommand for ssh: `python -m lab.proxy NETNS ADDRESS PORT` is a connection made inside a network
namespace.

Standard input goes to the connection, what comes from it to standard output. Only the standard library and
`lab.netns`: ssh waits for it.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path

from lab import netns

_CHUNK = 65536
_CONNECT_TIMEOUT = 20.0


def relay(connection: socket.socket, source: int, sink: int) -> None:
    """Copy the file `source` to the connection and the connection to the file `sink`, until the connection
    ends.
    """

    def send() -> None:
        try:
            while chunk := os.read(source, _CHUNK):
                connection.sendall(chunk)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            return

    threading.Thread(target=send, daemon=True).start()
    while chunk := connection.recv(_CHUNK):
        view = memoryview(chunk)
        while view:
            view = view[os.write(sink, view) :]


def main(argv: list[str]) -> int:
    """Run the proxy; returns the exit code."""
    file, address, port = Path(argv[0]), argv[1], int(argv[2])
    try:
        connection = netns.open_connection(file, address, port, _CONNECT_TIMEOUT)
        connection.settimeout(None)
        with connection:
            relay(connection, 0, 1)
    except OSError as error:
        sys.stderr.write(f"lab proxy: {address} port {port}: {error.strerror or error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
