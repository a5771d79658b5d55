"""What the long-running processes of a lab have in common: arguments, log, pid file, exit code."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from lab import pid_file
from lab.errors import LabError


def run(
    argv: list[str] | None,
    *,
    module: str,
    what: str,
    pid_name: str,
    serve: Callable[[Path], Awaitable[None]],
) -> int:
    """Serve the lab of `--lab-dir` until `serve` ends; returns the exit code.

    `module` is what `python -m` was told, `what` names the process in messages, and there is one per lab: who
    holds the pid file `pid_name`.
    """
    parser = argparse.ArgumentParser(prog=module, description=f"{what[0].upper()}{what[1:]}.")
    parser.add_argument("--lab-dir", type=Path, required=True, help="the lab's runtime directory")
    parser.add_argument("--debug", action="store_true", help="log more")
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if arguments.debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)

    async def until_it_ends() -> None:
        await serve(arguments.lab_dir)

    try:
        with pid_file.hold(arguments.lab_dir / pid_name, what):
            asyncio.run(until_it_ends())
    except (LabError, OSError) as error:
        logging.getLogger(module).critical("%s", error)
        return error.exit_code if isinstance(error, LabError) else 1
    return 0
