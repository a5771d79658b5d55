"""`lab up`."""

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
from lab.progress import Progress, format_elapsed


@click.command()
@topology_argument
@json_option
@pass_invocation
def up(invocation: Invocation, as_json: bool) -> None:
    """Bring a lab up and wait until every guest is ready.

    A guest is ready when its agent has registered, sshd answers and its heaps are mapped. A lab that
    already runs is left as it is; what an interrupted `up` left behind is completed. The image is built
    first if its recipe is new.

    \b
    Examples:
      lab up
      lab up examples/hello.yaml
    """
    topology = invocation.load()
    need_root("lab up")
    with Progress("up") as progress:
        report = lifecycle.up(topology, progress, connect=invocation.connect)
    if as_json:
        print_json(asdict(report))
    elif report.changed:
        click.echo(
            f"lab {report.lab} is up after {format_elapsed(report.seconds)} ({report.accelerator}): "
            f"started {', '.join(report.started)}"
        )
    else:
        click.echo(f"lab {report.lab} is up already; nothing was changed")
