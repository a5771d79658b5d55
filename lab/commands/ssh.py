"""`lab ssh`."""

from __future__ import annotations

import click

from lab import guest as service
from lab.commands.options import Invocation, pass_invocation, topology_option


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@topology_option
@click.argument("guest")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_invocation
def ssh(invocation: Invocation, guest: str, command: tuple[str, ...]) -> None:
    """Open a shell in a guest, as root, with the host's ssh.

    The terminal is the guest's, with its size and its keys; ssh's escapes (~. and others) work. With a
    command, that is run instead, and the exit code is its own; 255 if the connection is lost.

    \b
    Examples:
      lab ssh client
      lab ssh client -- top
    """
    service.ssh(invocation.load(), guest, command[1:] if command[:1] == ("--",) else command)
