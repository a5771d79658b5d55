"""`lab forward`."""

from __future__ import annotations

import json

import click

from lab import forward as service
from lab.commands.options import Invocation, json_option, pass_invocation, topology_option
from lab.errors import LabError
from lab.paths import LabPaths


@click.command()
@topology_option
@json_option
@click.argument("target", metavar="GUEST:PORT")
@click.argument("host_port", metavar="[HOSTPORT]", type=click.IntRange(0, 65535), required=False)
@pass_invocation
def forward(invocation: Invocation, target: str, host_port: int | None, as_json: bool) -> None:
    """Publish a TCP port of a guest on this host's loopback address, until Ctrl-C.

    HOSTPORT is PORT if it is left out, and 0 means any that is free. One line says where it is as soon as it
    can be used. The guest sees the connections come from the host.

    \b
    Examples:
      lab forward server:80 8080
      lab forward server:6379 & redis-cli -p 6379 ping
      lab forward --json server:80 0
    """
    topology = invocation.load()
    found = service.parse_target(topology, target)
    lab = LabPaths(topology.name)
    if not lab.private_key.exists():
        raise LabError(f"lab {topology.name} is not up", cure="lab up")

    def ready(port: int) -> None:
        if as_json:
            address = {"address": service.LOOPBACK, "port": port}
            click.echo(json.dumps({**address, "guest": found.guest, "guest_port": found.port}))
        else:
            click.echo(f"{service.LOOPBACK}:{port} is port {found.port} of {found.guest}; Ctrl-C ends it")

    def complain(text: str) -> None:
        click.echo(f"lab forward: {text}", err=True)

    port = found.port if host_port is None else host_port
    service.Forward(lab, found, port, complain).run(ready)
