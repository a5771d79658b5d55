"""`lab console`."""

from __future__ import annotations

import click

from lab import console as service
from lab.commands.options import Invocation, pass_invocation, topology_option


@click.command()
@topology_option
@click.argument("guest")
@pass_invocation
@click.pass_context
def console(ctx: click.Context, invocation: Invocation, guest: str) -> None:
    """Attach this terminal to a guest's serial console. Ctrl-] detaches.

    The console works where the network does not: while the guest boots, or when it is broken.

    \b
    Example:
      lab console client
    """
    ctx.exit(service.attach(invocation.load(), guest))
