"""`lab shell`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

import click

from lab.commands.options import Invocation, open_input, pass_invocation, topology_option
from lab.crowd import Crowd, Prefix, worst
from lab.errors import EXIT_INTERRUPTED, UserError

_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "red")


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@topology_option
@click.option(
    "-g", "--guest", "names", multiple=True, metavar="GUEST", help="Only this guest; can be repeated."
)
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Give up after so long.")
@click.option("-i", "--interactive", is_flag=True, help="Pass this command's input on to every guest.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_invocation
@click.pass_context
def shell(
    ctx: click.Context,
    invocation: Invocation,
    names: tuple[str, ...],
    command: tuple[str, ...],
    timeout: float | None,
    interactive: bool,
) -> None:
    """Run a command in several guests at once, or the lines that are typed.

    Every line of output begins with its guest's name. The exit code is the worst: 255 for a guest that was
    lost, 124 for one that took too long. Without a command, each line of the input is run by the guests'
    shells; each line is a shell of its own, so `cd` ends with its line. Ctrl-C ends a line in all guests,
    Ctrl-D or `exit` the session.

    \b
    Examples:
      lab shell -- uname -r
      lab shell -g client -g server -- sh -c 'ss -ltn | wc -l'
      lab shell < commands.txt
    """
    topology = invocation.load()
    words = command[1:] if command[:1] == ("--",) else command
    if interactive and not words:
        raise UserError("-i passes the input on to a command, and there is none")
    with Crowd(topology, names or list(topology.guests), _prefix(names or list(topology.guests))) as crowd:
        if words:
            codes = crowd.run(
                words,
                stdin=open_input() if interactive else None,
                stdout=sys.stdout.buffer,
                stderr=sys.stderr.buffer,
                timeout=timeout,
            )
            ctx.exit(worst(codes))
        ctx.exit(_run_lines(crowd, topology.name, timeout))


def _run_lines(crowd: Crowd, lab: str, timeout: float | None) -> int:
    result = 0
    is_terminal = sys.stdin.isatty()
    for line in _read_lines(f"{lab}> " if is_terminal else ""):
        try:
            codes = crowd.run(
                ["sh", "-c", line], stdout=sys.stdout.buffer, stderr=sys.stderr.buffer, timeout=timeout
            )
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            click.echo(err=True)
            result = max(result, EXIT_INTERRUPTED)
            continue
        bad = ", ".join(f"{name} {code}" for name, code in codes.items() if code)
        if bad and is_terminal:
            click.echo(f"exit codes: {bad}", err=True)
        result = max(result, worst(codes))
    return result


def _read_lines(prompt: str) -> Iterator[str]:
    """Lines of the input, without those that are empty or comments."""
    if prompt:
        import readline  # noqa: F401 - it makes input() edit and remember lines
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            if prompt:
                click.echo(err=True)
            return
        except KeyboardInterrupt:
            if not prompt:
                raise
            click.echo(err=True)
            continue
        if line in ("exit", "quit"):
            return
        if line and not line.startswith("#"):
            yield line


def _prefix(names: Sequence[str]) -> Prefix | None:
    """Coloured names on a terminal; None: plain ones."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return None
    width = max(map(len, names))
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
    return lambda name: f"{click.style(f'{name:<{width}}', fg=colours[name])} | ".encode()
