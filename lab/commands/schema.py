"""`lab schema`."""

from __future__ import annotations

import click

from lab.commands.options import print_json


@click.command()
def schema() -> None:
    """Print the JSON Schema of topology files, for editors.

    Editors that know YAML (those with yaml-language-server, such as VS Code, Neovim and Emacs, and the IDEs
    of JetBrains) complete keys, show what they mean, and mark mistakes as you type. What parts of a file
    say of each other is beyond a schema: `lab validate` checks that.

    \b
    Example:
      lab schema >lab.schema.json

    and as the first line of the topology:

    \b
      # yaml-language-server: $schema=lab.schema.json
    """
    from lab.topology_json_schema import generate

    print_json(generate())
