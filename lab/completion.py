"""What a shell is told when one presses Tab: fast, so without the services that the verbs would call."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

import click
from click.shell_completion import CompletionItem

from lab.commands.options import Invocation
from lab.errors import LabError

#: What the parameters of these names take, in any verb; by the section of the topology that has the names.
_SECTIONS = {
    "guest": "guests",
    "guests": "guests",
    "heap": "heaps",
    "heaps": "heaps",
    "network": "networks",
    "networks": "networks",
}


class _LazyServices(MetaPathFinder):
    """Puts off the import of services until somebody uses them, which no completion does.

    To know a verb's options, its module has to be imported, and that imports the service, with libvirt,
    paramiko and pydantic behind it: half a second between a key and its effect.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A module of `lab` that is run at the first look into it."""
        if not fullname.startswith("lab.") or fullname.startswith("lab.commands"):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None and spec.submodule_search_locations is None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


def put_off_services() -> None:
    """Make the imports of this process cheap from now on. For completion alone."""
    if not any(isinstance(finder, _LazyServices) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LazyServices())


def teach(command: click.Command) -> None:
    """Let the verb's parameters that name parts of a topology complete these names."""
    if isinstance(command, click.Group):
        for each in command.commands.values():
            teach(each)
    for parameter in command.params:
        section = _SECTIONS.get(parameter.name or "")
        # GUEST:PORT and the like begin with a guest.
        if section is None and (parameter.metavar or "").startswith("GUEST"):
            section = "guests"
        if section is not None and type(parameter.type) is click.types.StringParamType:
            parameter.type = Names(section)


class Names(click.ParamType[str]):
    """The name of a part of the topology: any text, but completed from the file."""

    name = "text"

    def __init__(self, section: str) -> None:
        self._section = section

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is; whether it names anything is for the service to say."""
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin so. None if there is no topology, or it cannot be read."""
        invocation = ctx.find_object(Invocation) or Invocation()
        return [
            CompletionItem(name) for name in _names(invocation, self._section) if name.startswith(incomplete)
        ]


def _names(invocation: Invocation, section: str) -> Sequence[str]:
    """Names declared in a section, read without checking anything else of the file."""
    from lab.topology_yaml import SyntaxFaultError, parse

    try:
        data = parse(invocation.find_file().read_bytes()).data
    except (LabError, OSError, SyntaxFaultError):
        return ()
    named = data.get(section) if isinstance(data, dict) else None
    return [name for name in named if isinstance(name, str)] if isinstance(named, dict | list) else ()
