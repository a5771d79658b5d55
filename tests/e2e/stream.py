# SPDX-License-Identifier: Apache-2.0
"""Runs in a guest: one end of a TCP stream whose bytes can be checked. Prints one line of JSON at the end.

``stream.py serve PORT ROLE ...`` accepts one connection, ``stream.py connect HOST PORT ROLE ...`` makes one.
Roles: ``send BYTES`` sends numbered blocks, ``receive`` reads to the end, ``echo`` returns what comes,
``ask COUNT`` sends numbered messages and checks the answers. ``--slow SECONDS`` pauses after each MiB (after
each message of ``ask``).
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import random
import socket
import sys
import time

BLOCK = 65536
BODY = random.Random(7).randbytes(BLOCK - 8)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["serve", "connect"])
    parser.add_argument("words", nargs="+")
    parser.add_argument("--slow", type=float, default=0)
    arguments = parser.parse_args()
    words = arguments.words
    if arguments.mode == "serve":
        sock = serve(int(words.pop(0)))
    else:
        sock = socket.create_connection((words.pop(0), int(words.pop(0))), timeout=30)
        sock.settimeout(None)
    begin = time.monotonic()
    report: dict[str, object] = {"error": None}
    digest, moved = hashlib.sha256(), [0]
    try:
        role(sock, words, arguments.slow, digest, moved)
    except OSError as error:
        report["error"] = errno.errorcode.get(error.errno or 0, str(error))
    report |= {"bytes": moved[0], "sha256": digest.hexdigest(), "seconds": time.monotonic() - begin}
    print(json.dumps(report))


def serve(port: int) -> socket.socket:
    with socket.create_server(("", port)) as listener:
        print("listening", flush=True)
        sock, _ = listener.accept()
    return sock


def role(sock: socket.socket, words: list[str], slow: float, digest: hashlib._Hash, moved: list[int]) -> None:
    what = words.pop(0)
    if what == "send":
        number, left = 0, int(words.pop(0))
        while left > 0:
            block = (number.to_bytes(8, "big") + BODY)[:left]
            sock.sendall(block)
            digest.update(block)
            moved[0] += len(block)
            left -= len(block)
            number += 1
            if slow and number % 16 == 0:
                time.sleep(slow)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
    elif what == "receive":
        while data := sock.recv(BLOCK):
            digest.update(data)
            moved[0] += len(data)
    elif what == "echo":
        while data := sock.recv(BLOCK):
            sock.sendall(data)
            moved[0] += len(data)
    elif what == "ask":
        for number in range(int(words.pop(0))):
            message = b"%012d" % number
            sock.sendall(message)
            answer = sock.recv(12, socket.MSG_WAITALL)
            if answer != message:
                sys.exit(f"asked {message!r}, got {answer!r}")
            digest.update(answer)
            moved[0] += 12
            if slow:
                time.sleep(slow)
    else:
        sys.exit(f"unknown role {what!r}")


if __name__ == "__main__":
    main()
