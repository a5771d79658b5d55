"""The answering side of `lab.control`: one JSON object a line each way over a UNIX socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from lab.errors import LabError

REQUEST_LIMIT = 65536
"""Bytes of one request."""

Operation = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Gets the whole request, returns what is to be said beside `"ok": true`; a LabError is the answer no."""


class ControlServer:
    """Serves operations by name. A context manager; the socket is for root only."""

    def __init__(self, path: Path, operations: Mapping[str, Operation]) -> None:
        self._path = path
        self._operations = operations
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> ControlServer:
        self._path.unlink(missing_ok=True)  # ours to take: the caller holds the lock on its pid file
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, str(self._path), limit=REQUEST_LIMIT)
        finally:
            os.umask(mask)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            try:
                while line := await reader.readline():
                    writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                    await writer.drain()
            except ValueError:
                writer.write(b'{"ok": false, "error": "the request is too long"}\n')
            finally:
                writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            operation = self._operations[request["op"]]
        except (ValueError, TypeError, KeyError):
            return {"ok": False, "error": f"no such operation; there are {', '.join(self._operations)}"}
        try:
            return {"ok": True, **await operation(request)}
        except LabError as error:
            return {"ok": False, "error": str(error)}
