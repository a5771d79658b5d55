"""`lab doctor`."""

from __future__ import annotations

from dataclasses import asdict

import click

from lab import doctor as service
from lab.commands.options import Invocation, json_option, pass_invocation, print_json, topology_argument
from lab.errors import EXIT_MISSING
from lab.progress import Progress


@click.command()
@topology_argument
@click.option("--quick", is_flag=True, help="Do not boot a test guest to see whether KVM works.")
@json_option
@pass_invocation
@click.pass_context
def doctor(ctx: click.Context, invocation: Invocation, quick: bool, as_json: bool) -> None:
    """See whether this machine can run labs, and what to mend.

    Each finding comes with its reason and, where something is wrong, with the command that mends it. The
    exit code is 3 if something is missing that labs need. With a topology, it is also seen whether that lab
    has room here.

    \b
    Examples:
      lab doctor
      lab doctor --json
    """
    topology = invocation.load() if invocation.topology_file is not None else None
    with Progress("doctor") as progress:
        findings = service.examine(progress, topology=topology, quick=quick)
    if as_json:
        print_json(
            {
                "ok": not any(each.level is service.Level.MISSING for each in findings),
                "findings": [{**asdict(each), "level": each.level.value} for each in findings],
            }
        )
    else:
        for finding in findings:
            click.echo(
                f"{click.style(f'{finding.level.value:<8}', fg=_COLOURS[finding.level])} "
                f"{finding.subject:<14} {finding.text}"
            )
            if finding.cure:
                click.echo(f"{'':<24}to mend it: {finding.cure}")
    if any(each.level is service.Level.MISSING for each in findings):
        ctx.exit(EXIT_MISSING)


_COLOURS = {service.Level.OK: "green", service.Level.ADVICE: "yellow", service.Level.MISSING: "red"}
