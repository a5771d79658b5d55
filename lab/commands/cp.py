"""`lab cp`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import click

from lab import guest as guests
from lab import places, transfer
from lab.commands.options import Invocation, pass_invocation, topology_option
from lab.errors import UserError
from lab.places import Place
from lab.progress import Progress, is_live_terminal
from lab.ssh_session import Session


@click.command()
@topology_option
@click.argument("source", nargs=-1, required=True)
@click.argument("target")
@pass_invocation
def cp(invocation: Invocation, source: tuple[str, ...], target: str) -> None:
    """Copy files and directories between the host and guests, or between guests.

    A place in a guest is GUEST:PATH; a path without a leading slash begins in /root. A target that is a
    directory, or ends with a slash, receives the copies under their own names; else it is the copy's name.
    Modes, times and symbolic links are kept; directories that the target lacks are made.

    \b
    Examples:
      lab cp ./config.yaml server:/etc/app/
      lab cp client:/var/log ./logs
      lab cp client:data.bin server:data.bin
    """
    topology = invocation.load()
    sources, destination = [places.parse(each) for each in source], places.parse(target)
    if destination.guest is None and any(each.guest is None for each in sources):
        raise UserError(
            "both places are on the host; name a guest, as in client:/tmp/file",
            cure="./name:with:colons is a file of the host",
        )
    if len(sources) > 1 and not destination.path.endswith("/"):
        # All or none go into a directory: else they would overwrite each other.
        destination = Place(destination.guest, f"{destination.path}/" if destination.path else "")
    shown = Progress("cp") if is_live_terminal(sys.stderr) else Progress.silent()
    with shown as progress, ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for name in (place.guest for place in (*sources, destination)):
            if name is not None and name not in sessions:
                sessions[name] = stack.enter_context(guests.open_session(topology, name))
        for each in sources:
            _copy(sessions, each, destination, progress)


def _copy(sessions: dict[str, Session], source: Place, target: Place, progress: Progress) -> None:
    with progress.task(str(source), f"to {target}") as task:

        def report(count: int) -> None:
            task.detail(f"{count / (1 << 20):.1f} MiB")

        if source.guest is None:
            assert target.guest is not None
            transfer.put(sessions[target.guest], Path(source.path), target.path, report)
        elif target.guest is None:
            # Not a Path's text: it would lose the slash at the end.
            transfer.get(sessions[source.guest], source.path, target.path, report)
        else:
            transfer.relay(sessions[source.guest], source.path, sessions[target.guest], target.path, report)
