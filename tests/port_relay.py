"""A guest's port without a guest: QEMU's virtio-serial port between two UNIX sockets.

It has QEMU's manners, which are what the protocol has to survive: what the guest writes while the host is not
connected is dropped, what the host writes while the guest's side is closed waits, and a side that closes
loses what it had not read.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from pathlib import Path

CHUNK = 4096


class PortRelay:
    """Listens on `host` for the registry and on `guest` for the agent, until closed."""

    def __init__(self, host: Path, guest: Path) -> None:
        self._selector = selectors.DefaultSelector()
        self._listeners = {"host": _listen(host), "guest": _listen(guest)}
        self._connections: dict[str, socket.socket] = {}
        self._wake, self._woken = socket.socketpair()
        self._stopping = False
        for side, listener in self._listeners.items():
            self._selector.register(listener, selectors.EVENT_READ, (side, True))
        self._selector.register(self._woken, selectors.EVENT_READ, ("", False))
        self._thread = threading.Thread(target=self._run, name="port relay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End as QEMU ends: both sides are gone, and nobody listens any more."""
        self._stopping = True
        for connection in list(self._connections.values()):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # the thread may be writing to one that nobody reads
        with contextlib.suppress(OSError):
            self._wake.send(b"x")
        self._thread.join()
        for each in (*self._listeners.values(), *self._connections.values(), self._wake, self._woken):
            each.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select():
                side, is_listener = key.data
                if is_listener:
                    self._accept(side)
                elif side:
                    self._pass_on(side)

    def _accept(self, side: str) -> None:
        connection, _ = self._listeners[side].accept()
        self._drop(side)
        self._connections[side] = connection
        if side == "guest":
            self._selector.register(connection, selectors.EVENT_READ, (side, False))
            host = self._connections.get("host")
            if host is not None:
                self._selector.register(host, selectors.EVENT_READ, ("host", False))
        elif "guest" in self._connections:
            self._selector.register(connection, selectors.EVENT_READ, (side, False))
        # Else nobody reads until the guest opens its side; that the host went away is noticed then.

    def _drop(self, side: str) -> None:
        connection = self._connections.pop(side, None)
        if connection is None:
            return
        self._forget(connection)
        connection.close()
        host = self._connections.get("host")
        if side == "guest" and host is not None:
            self._forget(host)

    def _forget(self, connection: socket.socket) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)

    def _pass_on(self, side: str) -> None:
        connection = self._connections.get(side)
        if connection is None:
            return
        other = self._connections.get("guest" if side == "host" else "host")
        try:
            data = connection.recv(CHUNK)
        except OSError:
            data = b""
        if not data:
            self._drop(side)
        elif other is not None:
            with contextlib.suppress(OSError):
                other.sendall(data)


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener
