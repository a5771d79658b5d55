"""The agent as a program: `python -m guest_agent --port PATH`."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import resource
import signal
import sys
from pathlib import Path

from guest_agent.agent import VERSION, Agent
from guest_agent.loop import READ, Loop
from ivshmem import core

DEFAULT_RUN = "/run/hyperheap"


def main(argv: list[str] | None = None) -> int:
    """Run the agent until SIGTERM or SIGINT; returns the exit code."""
    arguments = _parse(argv)
    logging.basicConfig(
        stream=sys.stdout,
        level=logging.DEBUG if arguments.debug else logging.INFO,
        format="%(levelname)s %(name)s %(message)s",
    )
    log = logging.getLogger("agent")
    _raise_descriptor_limit()
    run: Path = arguments.run
    try:
        run.mkdir(mode=0o755, parents=True, exist_ok=True)
        with (run / "agent.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _serve(arguments, run)
    except BlockingIOError:
        log.critical("run=%s failed reason=%r", run, "another agent runs there")
        return 1
    except OSError as error:
        log.critical("run=%s failed reason=%r", run, str(error))
        return 1
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="guest_agent", description="The hyperheap agent of a guest.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--port", type=Path, help="the guest's port: a character device or a UNIX socket")
    where.add_argument("--listen", type=Path, help="be the listening side of a UNIX socket instead (tests)")
    default_run = Path(os.environ.get("HYPERHEAP_RUN", DEFAULT_RUN))
    parser.add_argument("--run", type=Path, default=default_run, help="runtime directory (%(default)s)")
    parser.add_argument(
        "--spin-ns",
        type=int,
        default=core.spin_ns(),
        help="longest spin of a process (%(default)s)",
    )
    parser.add_argument("--debug", action="store_true", help="log every announcement")
    parser.add_argument("--version", action="version", version=VERSION)
    return parser.parse_args(argv)


def _serve(arguments: argparse.Namespace, run: Path) -> None:
    loop = Loop()
    # A signal's handler runs between two steps of the interpreter; the pipe ends the wait.
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stop())
    loop.watch(reader, READ, lambda _: None)
    port = arguments.port or arguments.listen
    agent = Agent(loop, run, port, listen=arguments.listen is not None, spin_ns=arguments.spin_ns)
    try:
        loop.run()
    finally:
        agent.close()
        loop.close()
        signal.set_wakeup_fd(-1)
        os.close(reader)
        os.close(writer)


def _raise_descriptor_limit() -> None:
    """Each process with the shim costs a few descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
