"""`lab validate`."""

from __future__ import annotations

from dataclasses import asdict

import click

from lab.commands.options import Invocation, json_option, pass_invocation, print_json, topology_argument
from lab.errors import TopologyError
from lab.topology_file import load_topology


@click.command()
@topology_argument
@json_option
@pass_invocation
@click.pass_context
def validate(ctx: click.Context, invocation: Invocation, as_json: bool) -> None:
    """Check a topology file and start nothing.

    Every fault is one line, `file:line: key: what is wrong; what is valid`, and the exit code is 2.
    With --json a valid file is printed with all defaults and addresses filled in.

    \b
    Examples:
      lab validate examples/hello.yaml
      lab validate --json examples/hello.yaml
    """
    file = invocation.find_file()
    try:
        topology = load_topology(file)
    except TopologyError as error:
        if not as_json:
            raise
        print_json({"valid": False, "faults": [asdict(fault) for fault in error.faults]})
        ctx.exit(error.exit_code)
    if as_json:
        print_json({"valid": True, "digest": topology.digest(), "topology": topology.model_dump(mode="json")})
        return
    counts = (("guest", topology.guests), ("network", topology.networks), ("heap", topology.heaps))
    words = ", ".join(f"{len(things)} {name}{'' if len(things) == 1 else 's'}" for name, things in counts)
    click.echo(f"{file}: valid: lab {topology.name}, {words}")
