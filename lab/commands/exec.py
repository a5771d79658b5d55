"""`lab exec`."""

from __future__ import annotations

import sys

import click

from lab import guest as service
from lab.commands.options import Invocation, open_input, pass_invocation, topology_option


@click.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@topology_option
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Give up after so long.")
@click.option("-i", "--interactive", is_flag=True, help="Pass this command's input on to the command.")
@click.argument("guest")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@pass_invocation
@click.pass_context
def execute(
    ctx: click.Context,
    invocation: Invocation,
    guest: str,
    command: tuple[str, ...],
    timeout: float | None,
    interactive: bool,
) -> None:
    """Run a command in a guest, as root.

    Output, error output and exit code are the command's own. The words are passed as they are; for
    pipes and variables of the guest, run `sh -c '...'`.

    \b
    Examples:
      lab exec client -- uname -r
      lab exec client -- sh -c 'ip addr | grep inet'
      echo hello | lab exec -i server -- tee /tmp/hello
    """
    code = service.execute(
        invocation.load(),
        guest,
        command[1:] if command[0] == "--" else command,
        stdin=open_input() if interactive else None,
        stdout=sys.stdout.buffer,
        stderr=sys.stderr.buffer,
        timeout=timeout,
    )
    ctx.exit(code)
