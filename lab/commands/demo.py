"""`lab demo`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from lab import demo as service
from lab import lifecycle
from lab.commands.options import (
    Invocation,
    json_option,
    need_root,
    pass_invocation,
    print_json,
    print_table,
    topology_argument,
)
from lab.errors import LabError
from lab.progress import Progress

_COLUMNS = ("program", "pair", "path", "shared", "network", "throughput", "p50", "with/without shim")


@click.command()
@topology_argument
@json_option
@click.option("--keep", is_flag=True, help="Leave the lab running afterwards.")
@pass_invocation
def demo(invocation: Invocation, as_json: bool, keep: bool) -> None:
    """Bring the lab up, run unmodified programs in it, and show what carried their bytes.

    For the topology examples/hello.yaml, or any other with guests named client, server and outsider, of
    which client and server share a heap. Ends with 1 if a connection took another path than it should
    have, or a byte differs.

    \b
    Example:
      lab demo examples/hello.yaml
    """
    topology = invocation.load()
    need_root("lab demo")
    with Progress("demo") as progress:
        try:
            lifecycle.up(topology, progress, connect=invocation.connect)
            outcomes = service.run(topology, progress)
        finally:
            if not keep:
                lifecycle.down(topology.name, progress, connect=invocation.connect)
    if as_json:
        print_json([asdict(outcome) | {"ratio": outcome.ratio} for outcome in outcomes])
    else:
        print_table(_COLUMNS, map(_row, outcomes))
    faults = [f"{o.program} {o.client} -> {o.server}: {fault}" for o in outcomes for fault in o.faults]
    if faults:
        raise LabError(
            "\n".join(faults), cure=f"lab up --topology {Path(str(invocation.topology_file))}; lab sockets"
        )


def _row(outcome: service.Outcome) -> tuple[str, ...]:
    measured = outcome.measured
    return (
        outcome.program,
        f"{outcome.client} -> {outcome.server}",
        f"{outcome.path} ({outcome.fast_path})",
        _bytes(outcome.shared),
        _bytes(outcome.network),
        f"{_bytes(measured.throughput)}/s"
        if measured.unit == "B"
        else f"{measured.throughput:.0f} {measured.unit}/s",
        f"{measured.p50_ms:.3f} ms" if measured.p50_ms is not None else "-",
        f"{outcome.ratio:.1f}x" if outcome.ratio is not None else "-",
    )


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    raise AssertionError
