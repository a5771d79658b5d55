"""`lab stats`."""

from __future__ import annotations

import time
from dataclasses import asdict

import click

from lab import stats as service
from lab.commands.options import (
    Invocation,
    json_option,
    pass_invocation,
    print_json,
    print_table,
    topology_argument,
)
from lab.stats_table import COLUMNS, format_rows


@click.command()
@topology_argument
@click.option(
    "--interval",
    type=click.FloatRange(min=0.05, max=3600),
    metavar="SECONDS",
    help="Look twice, so far apart, and give rates besides.",
)
@json_option
@pass_invocation
def stats(invocation: Invocation, interval: float | None, as_json: bool) -> None:
    """Show what each guest has used: CPU, memory, disk, network and shared memory.

    Counters of a guest count from its start, those of its connections from the start of the lab's daemon,
    which forgets all but the last thousand that ended. With --interval, `rates` (in the table: the numbers)
    are per second.

    \b
    Examples:
      lab stats
      lab stats --json --interval 1
    """
    topology = invocation.load()
    first = service.collect(topology, connect=invocation.connect)
    now, rates = first, None
    if interval is not None:
        time.sleep(interval)
        now = service.collect(topology, connect=invocation.connect)
        rates = now.rates(first)
    if not as_json:
        print_table(COLUMNS, format_rows(now, rates))
        return
    data = asdict(now)
    if rates is not None:
        for guest in data["guests"]:
            guest["rates"] = asdict(rates[guest["name"]])
    print_json(data)
