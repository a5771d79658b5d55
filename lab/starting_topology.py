"""The topology that `lab init` writes."""

from __future__ import annotations

import re
from pathlib import Path

from lab.errors import TopologyError, UserError
from lab.topology import Topology
from lab.topology_file import parse_topology

_TEMPLATE = Path(__file__).parent / "templates" / "lab.yaml"
_NAME = re.compile(r"^name: .*$", re.MULTILINE)
_LONGEST_NAME = 24


def write(file: Path, name: str | None = None) -> Topology:
    """Write it and return what it means. Without a name, the lab is called as the file's directory.

    Raises `UserError` if the file exists or cannot be written, or the name is no name of a lab.
    """
    text = _NAME.sub(f"name: {name or _name_of(file.absolute().parent)}", _TEMPLATE.read_text(), count=1)
    try:
        topology = parse_topology(text, str(file))
    except TopologyError as error:
        raise UserError(f"{name!r} is no name of a lab: {error.faults[0].message}") from None
    try:
        with file.open("x") as stream:
            stream.write(text)
    except FileExistsError:
        raise UserError(
            f"{file} is there already and was left as it is", cure="lab init OTHER-FILE"
        ) from None
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None
    return topology


def _name_of(directory: Path) -> str:
    """The directory's name as one of a lab: lower-case letters, digits and hyphens."""
    words = re.sub(r"[^a-z0-9]+", "-", directory.name.lower()).lstrip("-0123456789")
    return words[:_LONGEST_NAME].strip("-") or "lab"
