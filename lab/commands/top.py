"""`lab top`."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

import click

from lab import stats as service
from lab.commands.options import Invocation, pass_invocation, print_table, topology_argument
from lab.stats_table import COLUMNS, format_rows

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table


@click.command()
@topology_argument
@click.option(
    "-d",
    "--delay",
    type=click.FloatRange(min=0.2, max=3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks.",
)
@click.option("-n", "--count", type=click.IntRange(min=1), metavar="N", help="End after N looks.")
@pass_invocation
def top(invocation: Invocation, delay: float, count: int | None) -> None:
    """Watch what the guests use: CPU, memory, disk, network and shared memory per second. Ctrl-C ends it.

    100% is one processor of the host. Where output is no terminal, each look is a table of its own.

    \b
    Examples:
      lab top
      lab top -d 0.5 -n 10
    """
    with contextlib.suppress(KeyboardInterrupt):  # The usual end.
        _watch(invocation, delay, count)


def _watch(invocation: Invocation, delay: float, count: int | None) -> None:
    topology = invocation.load()
    before = service.collect(topology, connect=invocation.connect)
    live = _live(before, count is None) if sys.stdout.isatty() else None
    with live or contextlib.nullcontext():
        while count is None or count > 0:
            time.sleep(delay)
            now = service.collect(topology, connect=invocation.connect)
            rates = now.rates(before)
            if live is not None:
                live.update(_table(now, rates), refresh=True)
            else:
                print_table(COLUMNS, format_rows(now, rates))
            before, count = now, None if count is None else count - 1


def _live(stats: service.LabStats, is_endless: bool) -> Live:
    from rich.live import Live

    return Live(_table(stats, {}), screen=is_endless, auto_refresh=False)


def _table(stats: service.LabStats, rates: dict[str, service.Counters]) -> Table:
    from rich.table import Table

    clock = time.strftime("%H:%M:%S", time.localtime(stats.time))
    table = Table(title=f"lab {stats.lab}  {clock}", box=None, header_style="bold", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "guest" else "right")
    for row in format_rows(stats, rates) if rates else []:
        table.add_row(*row)
    return table
