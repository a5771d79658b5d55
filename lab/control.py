"""Questions to a lab's daemon: one JSON object a line each way over `daemon.sock`.

    {"op": "ping"}      is it ready?
    {"op": "status"}    agents by guest, heaps by name
    {"op": "sockets"}   the connections, with counters as fresh as the agents answer
    {"op": "stop"}      end cleanly

Answers are {"ok": true, ...} or {"ok": false, "error": "..."}.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from lab.errors import LabError

TIMEOUT = 10.0
"""Seconds for one answer."""


class ControlError(LabError):
    """The daemon does not answer, or refuses."""


class Unanswered(ControlError):
    """Nobody answers."""


def ask(path: Path, operation: str, *, timeout: float = TIMEOUT, **arguments: Any) -> dict[str, Any]:
    """Return the daemon's answer to an operation; `path` is its control socket.

    Raises:
        ControlError: nobody answers within `timeout` seconds, or the answer is no.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            connection.sendall(json.dumps({"op": operation, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                answer = json.loads(stream.readline())
    except (OSError, ValueError) as error:
        log = path.with_suffix(".log")
        raise Unanswered(
            f"{path}: the lab's daemon does not answer: {error}", cure=f"see {log}; lab up"
        ) from error
    if not isinstance(answer, dict) or answer.get("ok") is not True:
        reason = answer.get("error") if isinstance(answer, dict) else answer
        raise ControlError(f"{path}: the lab's daemon refuses {operation!r}: {reason}")
    return answer
