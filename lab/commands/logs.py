"""`lab logs`."""

from __future__ import annotations

import sys

import click

from lab import console as service
from lab.commands.options import Invocation, pass_invocation, topology_option
from lab.errors import UserError

_OF_GUEST = ("console", "agent")
_OF_LAB = ("daemon", "libvirt")


@click.command()
@topology_option
@click.option(
    "--source",
    type=click.Choice([*_OF_GUEST, *_OF_LAB]),
    help="console or agent of a guest, daemon or libvirt of the lab. "
    "Default: console with a guest, daemon without.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on showing what is added, until interrupted.")
@click.argument("guest", required=False)
@pass_invocation
def logs(invocation: Invocation, guest: str | None, source: str | None, follow: bool) -> None:
    """Show what a guest, its agent or the lab's daemons logged.

    The console of a guest has its kernel and its services from the first moment on, and is there when the
    guest does not answer. Logs end with the lab; to keep them, see playbooks/collect.yml.

    \b
    Examples:
      lab logs client
      lab logs --source agent client
      lab logs --source daemon --follow
    """
    source = source or (_OF_GUEST if guest else _OF_LAB)[0]
    if (guest is None) == (source in _OF_GUEST):
        whose = "a guest's; name the guest" if guest is None else "the lab's; name no guest"
        raise UserError(f"the log {source!r} is {whose}")
    service.show_log(invocation.load(), guest, source=source, out=sys.stdout.buffer, follow=follow)
