"""`lab graph`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from lab import graph as service
from lab.commands.options import Invocation, json_option, pass_invocation, print_json, topology_argument
from lab.errors import UserError

_FORMATS = {".svg": "svg", ".mmd": "mermaid", ".mermaid": "mermaid"}


@click.command()
@topology_argument
@click.option(
    "--format",
    "kind",
    type=click.Choice(["svg", "mermaid"]),
    help="Default: by the name of the --output, else mermaid.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Default: standard output.",
)
@click.option("--ended", is_flag=True, help="Show connections that have ended, too.")
@json_option
@pass_invocation
def graph(invocation: Invocation, kind: str | None, output: Path | None, ended: bool, as_json: bool) -> None:
    """Draw the lab: guests, networks, heaps, and live paths.

    If the lab is up, the connections that are open are drawn as paths between guests, with the bytes that
    they have moved: through memory or over the network. If it is not, the topology alone is drawn.

    Mermaid is text that GitHub, GitLab and many editors draw in Markdown; SVG is a picture for every
    browser. With --json, what would be drawn is printed as data.

    \b
    Examples:
      lab graph -o lab.svg
      lab graph --ended -o lab.svg examples/hello.yaml
      (echo '```mermaid'; lab graph; echo '```') >>README.md
    """
    drawn = service.draw(invocation.load(), ended=ended)
    if as_json:
        if output is not None or kind is not None:
            raise UserError("--json is printed as it is; leave out --output and --format")
        print_json(asdict(drawn))
        return
    text = _render(drawn, kind or _FORMATS.get(output.suffix if output else "", "mermaid"))
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text)
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror}") from None


def _render(drawn: service.Graph, kind: str) -> str:
    from lab import graph_mermaid, graph_svg

    return graph_svg.render(drawn) if kind == "svg" else graph_mermaid.render(drawn)
