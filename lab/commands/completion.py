"""`lab completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_VARIABLE = "_LAB_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion of a shell: verbs, options, files, and the names of guests.

    Names are those of the topology that the command line says, or of the one that would be taken:
    $LAB_TOPOLOGY or lab.yaml. bash has to be 4.4 or newer.

    \b
    Examples, for this shell and for all that are to come:
      eval "$(lab completion bash)"
      lab completion bash >/etc/bash_completion.d/lab
      lab completion zsh >"${fpath[1]}/_lab"
      lab completion fish >~/.config/fish/completions/lab.fish
    """
    root = ctx.find_root()
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(root.command, {}, "lab", _VARIABLE)
    click.echo(script.source_template % script.source_vars())
