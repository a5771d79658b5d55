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

    The lab is `up` (every guest runs, its agent is connected, its heaps are mapped), `partial`, `down`, or
    `other`: a lab of this name runs, but of another topology. A guest's agent is `connected`, or it says why
    not; its heaps are those that are mapped. The exit code is 0 whatever the state; for scripts there is
    --json.

    \b
    Examples:
      lab status
      lab status --json examples/hello.yaml | jq -r .state
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
