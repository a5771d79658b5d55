"""`lab init`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default="lab.yaml")
@click.option("--name", metavar="NAME", help="The lab's name. Default: that of the file's directory.")
def init(file: Path, name: str | None) -> None:
    """Write a topology to start from, with comments.

    It has two guests with a heap in common and one without; what else can be said stands in it as comments. A
    file that is there is never overwritten.

    \b
    Examples:
      lab init
      lab init --name demo /tmp/demo.yaml
    """
    from lab import starting_topology as service

    topology = service.write(file, name)
    where = "" if file == Path("lab.yaml") else f" {shlex.quote(str(file))}"
    click.echo(f"wrote {file}: lab {topology.name}; start it with `lab up{where}`")
