"""`lab sync`."""

from __future__ import annotations

import click

from lab import places, rsync
from lab.commands.options import Invocation, pass_invocation, topology_option


@click.command()
@topology_option
@click.option("--delete", is_flag=True, help="Remove from the target what the source does not have.")
@click.option("-n", "--dry-run", is_flag=True, help="Change nothing; with --verbose, say what would be.")
@click.option("-v", "--verbose", is_flag=True, help="Name the files that are sent.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out what matches; can be repeated.")
@click.argument("source", nargs=-1, required=True)
@click.argument("target")
@pass_invocation
@click.pass_context
def sync(
    ctx: click.Context,
    invocation: Invocation,
    source: tuple[str, ...],
    target: str,
    delete: bool,
    dry_run: bool,
    verbose: bool,
    exclude: tuple[str, ...],
) -> None:
    """Make a directory of a guest like one of the host, or the other way, with rsync.

    Only what differs is sent. As with rsync, a slash at a source's end means what is in the directory. The
    host and the guest need rsync (image.packages of the topology); `lab cp` needs none. The exit code is
    rsync's.

    \b
    Examples:
      lab sync ./src/ client:/root/src
      lab sync --delete --exclude .git ./ server:/srv/app
      lab sync client:/var/log/ ./logs
    """
    options = [f"--exclude={pattern}" for pattern in exclude]
    options += ["--delete"] * delete + ["--dry-run"] * dry_run + ["--verbose"] * verbose
    sources = [places.parse(each) for each in source]
    ctx.exit(rsync.sync(invocation.load(), sources, places.parse(target), options))
