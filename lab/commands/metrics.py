"""`lab metrics`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lab import metrics as service
from lab.commands.options import Invocation, pass_invocation, topology_argument
from lab.errors import UserError


@click.command()
@topology_argument
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Serve http://127.0.0.1:PORT/metrics until Ctrl-C; 0 is any port that is free.",
)
@click.option(
    "--socket",
    "socket_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Serve /metrics on a UNIX socket until Ctrl-C.",
)
@pass_invocation
def metrics(invocation: Invocation, port: int | None, socket_file: Path | None) -> None:
    """Print the lab's counters for Prometheus, or serve them.

    The lab may come and go while they are served; hyperheap_lab_up says whether it is there.

    \b
    Examples:
      lab metrics
      lab metrics --port 9177 &
      lab metrics --socket /run/hello-metrics.sock
    """
    topology = invocation.load()
    if port is not None and socket_file is not None:
        raise UserError("both --port and --socket were given; give one of them")
    where = port if port is not None else socket_file
    if where is None:
        sys.stdout.write(service.text(topology, invocation.connect).decode())
        return
    with service.serving(topology, where, invocation.connect) as server:
        click.echo(f"metrics of lab {topology.name}: {server.place}; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return  # The usual end.
