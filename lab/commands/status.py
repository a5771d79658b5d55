"""`lab status`."""

from __future__ import annotations

from dataclasses import asdict

import click

from lab import status as service
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
def status(invocation: Invocation, as_json: bool) -> None:
    """Show what each guest of the lab is doing.

    \b
    Examples:
      lab status
      lab status --json examples/hello.yaml
    """
    report = service.collect(invocation.load(), connect=invocation.connect)
    if as_json:
        print_json(asdict(report))
        return
    click.echo(f"lab {report.lab}: {report.state}, daemon {report.daemon}")
    print_table(
        ("guest", "state", "accelerator", "addresses", "agent", "heaps"),
        (
            (
                guest.name,
                guest.state,
                guest.accelerator or "-",
                " ".join(guest.addresses) or "-",
                guest.agent,
                " ".join(guest.heaps) or "-",
            )
            for guest in report.guests
        ),
    )
