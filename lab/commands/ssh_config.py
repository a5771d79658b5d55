"""`lab ssh-config`."""

from __future__ import annotations

import click

from lab import ssh_config as service
from lab.commands.options import Invocation, pass_invocation, topology_argument


@click.command("ssh-config")
@topology_argument
@pass_invocation
def ssh_config(invocation: Invocation) -> None:
    """Print the guests as hosts for OpenSSH's configuration.

    Each guest is the host NAME and NAME.LAB, reached through a ProxyCommand, with the lab's keys. What is
    printed is right as long as the lab is up.

    \b
    Examples:
      lab ssh-config > /tmp/lab.ssh; ssh -F /tmp/lab.ssh client
      scp -F /tmp/lab.ssh server:/etc/hostname .
    """
    click.echo(service.text(invocation.load()), nl=False)
