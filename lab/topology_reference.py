"""Generates docs/topology.md from the models of a topology file.

python -m lab.topology_reference docs/topology.md
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic.fields import FieldInfo

from lab.topology_schema import (
    AttachmentSpec,
    GuestSpec,
    HeapSpec,
    ImageSpec,
    NetworkSpec,
    PolicySpec,
    Spec,
    TopologySpec,
    inner_annotation,
)
from lab.topology_values import Value, format_size

_PARTS: tuple[tuple[str, type[Spec]], ...] = (
    ("The file", TopologySpec),
    ("`image`", ImageSpec),
    ("`networks.NAME`", NetworkSpec),
    ("`heaps.NAME`", HeapSpec),
    ("`guests.NAME`", GuestSpec),
    ("`guests.NAME.networks.NAME`", AttachmentSpec),
    ("`policy`", PolicySpec),
)

_HEAD = """\
<!-- Generated from lab/topology_schema.py by `make docs`. Do not edit. -->
# The topology file

A topology is one YAML file that says what a lab consists of. `lab validate FILE` checks it and starts
nothing; `lab validate --json FILE` shows it with everything filled in that was left out.

The least that a lab needs is a name and its guests:

```yaml
{least}```

[examples/hello.yaml](../examples/hello.yaml) is the usual form. What is left out has a default, and the same
file always gives the same addresses: a guest that is added at the end moves no other.

Sizes are written as `64MiB`, `1.5GiB` or `512K` (always binary), or as a number of bytes. Names of labs,
networks, heaps and guests are lower-case letters, digits and hyphens, and begin with a letter; `all`, `host`
and `localhost` are no names for guests. YAML's anchors, aliases and merges (`<<: *common`) may be used.

## Faults

A file is checked as a whole, and every fault is one line. The exit code is 2, and nothing was started.

```
{faults}```
"""

_LEAST = "name: short\nguests: [client, server]\n"

_FAULTY = """\
name: demo
heaps:
  shared:
    size: 48MiB
    members: [client, sever]
guests:
  client: {memory: 384}
  server: {cpu: 2}
"""


def generate() -> str:
    """The whole text of docs/topology.md."""
    sections = [_HEAD.format(least=_LEAST, faults=_faults_of(_FAULTY))]
    sections += [_describe_part(title, part) for title, part in _PARTS]
    return "\n".join(sections)


def _faults_of(text: str) -> str:
    from lab.errors import TopologyError
    from lab.topology_file import parse_topology

    try:
        parse_topology(text, "lab.yaml")
    except TopologyError as error:
        return f"{error}\n"
    raise AssertionError("the example of a faulty file has no faults")


def _describe_part(title: str, part: type[Spec]) -> str:
    rows = ""
    for name, field in part.model_fields.items():
        cells = (f"`{field.alias or name}`", _valid(field), _default(field), _cell(field.description or ""))
        rows += f"| {' | '.join(cells)} |\n"
    about = "" if part is TopologySpec else f"\n{inspect.cleandoc(part.__doc__ or '')}\n"
    return f"## {title}\n{about}\n| key | value | default | |\n|---|---|---|---|\n{rows}"


def _valid(field: FieldInfo) -> str:
    values = [each for each in field.metadata if isinstance(each, Value)]
    return _cell(values[0].valid if values else _describe_annotation(field.annotation))


def _describe_annotation(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        value = next((each for each in get_args(annotation)[1:] if isinstance(each, Value)), None)
        if value is not None:
            return value.valid
    inner = inner_annotation(annotation)
    if get_origin(annotation) is None and isinstance(inner, type) and issubclass(inner, Spec):
        return "a mapping, see below"
    if get_origin(inner) is dict:
        return "a mapping of names, see below"
    if get_origin(inner) is list:
        return f"a list, each entry: {_describe_annotation(get_args(inner)[0])}"
    for each in get_args(annotation):
        if get_origin(each) is Annotated:
            return _describe_annotation(each)
    raise TypeError(f"no words for {annotation}")


def _default(field: FieldInfo) -> str:
    default = field.default
    if field.is_required():
        return "required"
    if default is None or isinstance(default, Spec) or default in ({}, []):
        return ""
    return f"`{format_size(default) if isinstance(default, int) and default else default}`"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def main(arguments: list[str]) -> None:
    """Write the reference to the file that is named."""
    Path(arguments[0]).write_text(generate())


if __name__ == "__main__":
    main(sys.argv[1:])
