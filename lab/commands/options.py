"""What all verbs have in common: the topology option, `--json`, tables, and who needs root."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

if TYPE_CHECKING:
    from lab.topology import Topology

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass
class Invocation:
    """What was said before the verb, or by the verb's own --topology."""

    topology_file: Path | None = None
    connect: str | None = None

    def find_file(self) -> Path:
        """The topology file to use: the one that was named, or LAB_TOPOLOGY, or lab.yaml. Raises `UserError`
        if there is none.
        """
        from lab.topology_file import find_topology

        by_environment = os.environ.get("LAB_TOPOLOGY")
        named = self.topology_file or (Path(by_environment) if by_environment else None)
        return find_topology(named, Path.cwd())

    def load(self) -> Topology:
        """The topology to use. Raises `TopologyError` with all its faults."""
        from lab.topology_file import load_topology

        return load_topology(self.find_file())


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)


def _keep_topology(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.ensure_object(Invocation).topology_file = value


def topology_option(function: Function) -> Function:
    """--topology/-t, before the verb or after it."""
    return click.option(
        "-t",
        "--topology",
        type=click.Path(path_type=Path),
        metavar="FILE",
        expose_value=False,
        is_eager=True,
        callback=_keep_topology,
        help="The topology of the lab. Default: $LAB_TOPOLOGY, or lab.yaml in the current directory.",
    )(function)


def topology_argument(function: Function) -> Function:
    """The topology as the verb's argument, beside --topology."""
    function = click.argument(
        "topology_file",
        type=click.Path(path_type=Path),
        metavar="[TOPOLOGY]",
        required=False,
        expose_value=False,
        callback=_keep_topology,
    )(function)
    return topology_option(function)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def need_root(what: str) -> None:
    """Raise `MissingError` unless this process may make namespaces and mounts."""
    from lab.errors import MissingError

    if os.geteuid() != 0:
        raise MissingError(f"{what} needs root (network namespaces, mounts, libvirt)", cure=_with_sudo())


def _with_sudo() -> str:
    import shlex

    return shlex.join(["sudo", *sys.argv])


def open_input() -> BinaryIO:
    """This process's input, for a thread that may still read from it when all else is done.

    Not `sys.stdin.buffer`: Python dies at its end if a thread has the lock of that.
    """
    return io.FileIO(sys.stdin.fileno(), closefd=False)


def print_json(data: object) -> None:
    """Print data as JSON, with dates, paths and addresses as text."""
    click.echo(json.dumps(data, indent=2, default=str))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their headings: folded to the terminal's width, or one whole line each elsewhere."""
    texts = [["-" if cell in (None, "") else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_folded(columns, texts)
        return
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    for row in (columns, *texts):
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_folded(columns: Sequence[str], texts: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in texts:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)
