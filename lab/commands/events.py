"""`lab events`."""

from __future__ import annotations

import json

import click

from lab import events as service
from lab.commands.options import Invocation, pass_invocation, topology_argument


@click.command()
@topology_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1, max=60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks at the lab.",
)
@pass_invocation
def events(invocation: Invocation, follow: bool, interval: float) -> None:
    """Print what happens in the lab, one JSON object a line.

    First comes how things are, as if it had all just happened. `event` is daemon, guest, agent, connection
    (its state changed), channel (it got shared memory), path (a direction changed its path) or ended, with
    what belongs to it. The lab may come and go meanwhile.

    \b
    Examples:
      lab events
      lab events --follow | jq 'select(.event == "path")'
    """
    try:
        for found in service.follow(invocation.load(), interval=interval, connect=invocation.connect):
            for event in found:
                click.echo(json.dumps(event))
            if not follow:
                return
    except KeyboardInterrupt:
        return  # The usual end.
