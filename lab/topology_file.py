"""Topology files: reading one, and saying everything that is wrong with it.

A bad file gives one `TopologyError` with all faults, each as `file:line: key.path: what is wrong; what is
valid`, sorted by line.
"""

from __future__ import annotations

import re
from pathlib import Path

from lab.errors import Fault, TopologyError, UserError
from lab.topology import Topology
from lab.topology_check import check
from lab.topology_values import shorten
from lab.topology_yaml import Location, SyntaxFaultError, parse

DEFAULT_NAME = "lab.yaml"
_WORD = re.compile(r"[\w.<-]+")


def load_topology(path: Path) -> Topology:
    """The topology in a file.

    Raises `TopologyError` if the file has faults, `UserError` if it cannot be read.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such file", cure="give a topology with --topology FILE (-t)"
        ) from None
    except IsADirectoryError:
        raise UserError(
            f"{path}: is a directory", cure=f"name the file in it, such as {path / DEFAULT_NAME}"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_topology(raw, str(path))


def parse_topology(raw: bytes | str, file: str) -> Topology:
    """The topology in a text; `file` is its name in faults. Raises `TopologyError`."""
    try:
        document = parse(raw.encode() if isinstance(raw, str) else raw)
    except SyntaxFaultError as error:
        raise TopologyError([Fault(file, error.line, "syntax", error.message)]) from None
    topology, findings = check(document.data)
    explained = {each.location for each in document.findings}
    findings = [each for each in findings if each.location not in explained]
    faults = {
        Fault(
            file,
            each.line or document.line_of(each.location),
            format_path(each.location),
            _one_line(each.message),
        )
        for each in (*document.findings, *findings)
    }
    if faults or topology is None:
        raise TopologyError(sorted(faults, key=lambda fault: (fault.line, fault.path, fault.message)))
    return topology


def find_topology(given: Path | None, directory: Path) -> Path:
    """The topology file to use: the one that was given, else `lab.yaml` in the directory.

    Raises `UserError` that names what could have been meant.
    """
    if given is not None:
        return given
    candidate = directory / DEFAULT_NAME
    if candidate.is_file():
        return candidate
    others = sorted(path.name for path in directory.glob("*.y*ml") if path.suffix in (".yaml", ".yml"))
    seen = f" (there is {', '.join(others[:5])})" if others else ""
    raise UserError(
        f"no topology: {directory} has no {DEFAULT_NAME}{seen}",
        cure="name one: lab --topology examples/hello.yaml ...",
    )


def format_path(location: Location) -> str:
    """A path of keys as it is shown: guests.client.networks[0]. A key that is no word is quoted."""
    text = ""
    for key in location:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            word = key if _WORD.fullmatch(key) else repr(shorten(key))
            text += f".{word}" if text else word
    return text or "topology"


def _one_line(text: str) -> str:
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
