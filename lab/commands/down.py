"""`lab down`."""

from __future__ import annotations

from dataclasses import asdict

import click

from lab import lifecycle
from lab.commands.options import (
    Invocation,
    json_option,
    need_root,
    pass_invocation,
    print_json,
    topology_argument,
)
from lab.errors import UserError
from lab.progress import Progress, format_elapsed


@click.command()
@topology_argument
@click.option(
    "--lab", "name", metavar="NAME", help="The lab's name, where its topology file is lost or broken."
)
@json_option
@pass_invocation
def down(invocation: Invocation, name: str | None, as_json: bool) -> None:
    """Take a lab down and leave nothing of it behind.

    Guests are switched off hard; their disks, networks, heaps and daemons go with them. Taking down a
    lab that is not there is no error.

    \b
    Examples:
      lab down
      lab down examples/hello.yaml
      lab down --lab hello
    """
    if name is not None and invocation.topology_file is not None:
        raise UserError("both a topology and --lab were given; give one of them")
    lab = name if name is not None else invocation.load().name
    need_root("lab down")
    with Progress("down") as progress:
        report = lifecycle.down(lab, progress, connect=invocation.connect)
    if as_json:
        print_json(asdict(report))
    elif report.changed:
        click.echo(f"lab {report.lab} is down after {format_elapsed(report.seconds)}")
    else:
        click.echo(f"lab {report.lab} is not there; nothing was changed")
