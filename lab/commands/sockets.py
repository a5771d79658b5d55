"""`lab sockets`."""

from __future__ import annotations

import click

from lab import sockets as service
from lab.commands.options import (
    Invocation,
    json_option,
    pass_invocation,
    print_json,
    print_table,
    topology_argument,
)


@click.command()
@topology_argument
@json_option
@pass_invocation
def sockets(invocation: Invocation, as_json: bool) -> None:
    """List the connections that the registry knows, those that ended included.

    For each: both ends, their programs, the fast path that was chosen (SharedHypervisor: a heap; SharedVM
    and SharedOS: memory of one guest; External: none), the path that carried most bytes, and the bytes to
    the server / to the client on each path. Connections that ended before they were announced are not here.

    \b
    Examples:
      lab sockets
      lab sockets --json examples/hello.yaml | jq '.[] | select(.ended == null)'
    """
    rows = service.collect(invocation.load().name)
    if as_json:
        print_json(rows)
    elif rows:
        print_table(service.TABLE_COLUMNS, service.format_table(rows))
    else:
        click.echo("no connections yet")
