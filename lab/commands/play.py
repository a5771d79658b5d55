"""`lab play`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from lab import play as service
from lab.commands.options import (
    Invocation,
    json_option,
    need_root,
    pass_invocation,
    print_json,
    print_table,
    topology_option,
)
from lab.errors import UserError
from lab.play_events import Event
from lab.progress import Progress, format_elapsed

_COLUMNS = ("guest", "ok", "changed", "failed", "unreachable", "skipped")


@click.command()
@topology_option
@click.argument("playbook", type=click.Path(path_type=Path))
@click.option(
    "-e",
    "--extra-vars",
    multiple=True,
    metavar="VARS",
    help="Variables: NAME=VALUE, JSON, or @FILE. Repeatable.",
)
@click.option(
    "-l", "--limit", metavar="PATTERN", help="Only these guests and groups, such as client:heap_shared."
)
@click.option("--tags", metavar="TAGS", help="Only tasks with these tags.")
@click.option("-C", "--check", is_flag=True, help="Change nothing; say what would change.")
@click.option("--events", is_flag=True, help="Print every event as a line of JSON, as it happens.")
@json_option
@pass_invocation
@click.pass_context
def play(
    ctx: click.Context,
    invocation: Invocation,
    playbook: Path,
    extra_vars: tuple[str, ...],
    limit: str | None,
    tags: str | None,
    check: bool,
    events: bool,
    as_json: bool,
) -> None:
    """Run an Ansible playbook against the guests of the lab.

    The inventory is that of `lab inventory`; Ansible reaches the guests through the lab's network namespace,
    with the lab's keys. Tasks are shown as they run, and the results of each guest at the end. Nothing of the
    run is left in your home directory.

    The exit code is that of ansible-playbook: 0 done, 1 the playbook is at fault, 2 a task failed, 4 a guest
    was unreachable (or the playbook cannot be parsed).

    \b
    Examples:
      lab play playbooks/workload.yml
      lab play playbooks/collect.yml -e collect_to=/tmp/report
      lab play site.yml --limit heap_shared --check
      lab play site.yml --events | jq -r 'select(.event == "changed") | .task'
    """
    if events and as_json:
        raise UserError("both --events and --json were given; give one of them")
    topology = invocation.load()
    need_root("lab play")
    wishes = service.Wishes(extra_vars, limit, tags, check)
    with Progress("play") as progress:
        report = service.run(
            topology,
            playbook,
            progress,
            wishes,
            file=invocation.find_file(),
            on_event=_print_event if events else None,
        )
    if as_json:
        print_json(asdict(report))
    elif not events:
        _print_results(report)
    ctx.exit(report.exit_code)


def _print_event(event: Event) -> None:
    click.echo(json.dumps({key: value for key, value in asdict(event).items() if value not in ("", None)}))


def _print_results(report: service.PlayReport) -> None:
    if report.hosts:
        print_table(
            _COLUMNS,
            ([each.name, *(getattr(each, column) for column in _COLUMNS[1:])] for each in report.hosts),
        )
    for host in report.hosts:
        for failure in host.failures:
            click.echo(f"{host.name}: {failure.task}: {failure.message}", err=True)
    if report.exit_code and not any(host.failures for host in report.hosts):
        click.echo(report.output.strip(), err=True)
    words = "done" if report.exit_code == 0 else f"ended with {report.exit_code}"
    click.echo(f"{Path(report.playbook).name}: {words} after {format_elapsed(report.seconds)}")
