"""YAML text to plain data, with the line of every key and every fault that YAML itself can have.

The text is composed into nodes by ruamel.yaml and converted here, because the converted data alone knows
neither lines nor duplicate keys. Keys are always text, exactly as written (`on`, `1` and `null` included).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from lab.topology_values import shorten

Location = tuple[str | int, ...]

MAX_BYTES = 1 << 20
_MAX_NODES = 200_000
_MAX_DEPTH = 40
_MERGE = "<<"
_YAML_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Finding:
    """A fault before its line is known. `location` is a path of keys and list indexes."""

    location: Location
    message: str
    line: int | None = None


@dataclass
class Document:
    """A file's data, and for each path of keys the line (from 1) where it stands."""

    data: Any = None
    lines: dict[Location, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def line_of(self, location: Location) -> int:
        """The line of the path, or of the nearest thing around it that is written down."""
        for length in range(len(location), -1, -1):
            line = self.lines.get(location[:length])
            if line is not None:
                return line
        return 1


class SyntaxFaultError(Exception):
    """The text is not YAML at all. `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


def parse(raw: bytes) -> Document:
    """The document in `raw`. Raises `SyntaxFaultError` if it cannot be read as YAML."""
    if len(raw) > MAX_BYTES:
        raise SyntaxFaultError(
            1,
            f"the file has {len(raw)} bytes; a topology has at most {MAX_BYTES} (is this another file?)",
        )
    text = _decode(raw)
    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(text)
    except YAMLError as error:
        raise _explain(error, text) from None
    except RecursionError:
        raise SyntaxFaultError(1, "is nested too deeply; a topology has at most four levels") from None
    document = Document()
    if node is not None:
        document.data = _Converter(yaml, document).convert(node, ())
    return document


def _decode(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{raw[error.start]:02x} is not UTF-8"
        raise SyntaxFaultError(line, f"{what}; save the file with the encoding UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise SyntaxFaultError(line, "holds a NUL byte; a topology is a text file in UTF-8")
    return text


def _explain(error: YAMLError, text: str) -> SyntaxFaultError:
    """A YAML error in a newcomer's words."""
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return SyntaxFaultError(line, f"holds the control character {error.character!r}; write plain text")
    if not isinstance(error, MarkedYAMLError):
        return SyntaxFaultError(1, str(error).splitlines()[0])
    context = error.context or ""
    is_open = "flow" in context or "quoted scalar" in context
    mark = (error.context_mark if is_open else error.problem_mark) or error.problem_mark
    line = mark.line + 1 if mark is not None else 1
    source = text.splitlines()
    row = source[line - 1] if 0 < line <= len(source) else ""
    problem = error.problem or error.context or "cannot be read as YAML"
    if "'\\t'" in problem or row[: len(row) - len(row.lstrip())].count("\t"):
        return SyntaxFaultError(line, "a tab character; YAML is indented with spaces only")
    if "expected a single document" in f"{error.context} {problem}":
        return SyntaxFaultError(line, "a second document begins; a topology file holds one (remove `---`)")
    if "flow" in context:
        return SyntaxFaultError(line, "a [ or { is not closed, or a comma is missing; as in [one, two]")
    if "quoted scalar" in context:
        return SyntaxFaultError(line, 'a quotation mark is not closed; close it, as in "text"')
    if "mapping values are not allowed" in problem:
        advice = (
            "one `key: value` per line (does the line before lack its colon?); quote a text that has `: `"
        )
    elif "could not find expected ':'" in problem:
        advice = "each line of a mapping is `key: value`; see whether the line before lacks its colon"
    elif "expected <block end>" in problem:
        advice = "keys of one mapping begin in the same column"
    elif "undefined alias" in problem or "found undefined alias" in problem:
        advice = "define it before its use, with `&name`"
    else:
        advice = "see docs/topology.md for the form"
    return SyntaxFaultError(line, f"{problem.strip()}; {advice}")


class _Converter:
    """Nodes to plain data, noting lines, duplicate keys and what plain data cannot express."""

    def __init__(self, yaml: YAML, document: Document) -> None:
        self._constructor = yaml.constructor
        self._document = document
        self._open: set[int] = set()
        self._count = 0

    def convert(self, node: Node, location: Location) -> Any:
        """The data of a node that stands at `location`."""
        line = node.start_mark.line + 1
        self._document.lines.setdefault(location, line)
        self._count += 1
        if self._count > _MAX_NODES or len(location) > _MAX_DEPTH:
            raise SyntaxFaultError(line, "expands to too much data; use fewer or smaller aliases")
        if id(node) in self._open:
            raise SyntaxFaultError(line, "an alias contains itself; repeat what is meant instead")
        if isinstance(node, ScalarNode):
            return self._scalar(node, location)
        self._open.add(id(node))
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, location)
            assert isinstance(node, SequenceNode)
            return self._sequence(node, location)
        finally:
            self._open.discard(id(node))

    def _scalar(self, node: ScalarNode, location: Location) -> Any:
        try:
            value = self._constructor.construct_object(node)
        except (ConstructorError, ValueError):
            tag = str(node.tag).replace(_YAML_TAG, "!!")
            self._find(location, f"has the tag {tag}; write plain text, a number, a list or a mapping", node)
            return None
        if isinstance(value, str) and _has_surrogate(value):
            self._find(location, "holds half of a surrogate pair; write the character itself", node)
            return None
        # Timestamps and other extensions mean nothing here: what was written is meant.
        return value if value is None or isinstance(value, str | int | float | bool) else str(node.value)

    def _sequence(self, node: SequenceNode, location: Location) -> list[Any]:
        data = [self.convert(item, (*location, index)) for index, item in enumerate(node.value)]
        for index, item in enumerate(data):
            if isinstance(item, str):  # a list of names is short for a mapping
                self._document.lines.setdefault((*location, item), self._document.lines[*location, index])
        return data

    def _mapping(self, node: MappingNode, location: Location) -> dict[str, Any]:
        data: dict[str, Any] = {}
        written: dict[str, int] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                self._find(
                    location, "a key is a list or mapping; a key is plain text (quote braces)", key_node
                )
                continue
            key = str(key_node.value)
            if _has_surrogate(key):
                self._find(location, "a key holds half of a surrogate pair; a key is plain text", key_node)
                continue
            if key == _MERGE:
                merged |= self._merge(value_node, location)
                continue
            where = (*location, key)
            if key in written:
                self._find(where, f"is given twice, first in line {written[key]}; each key once", key_node)
                continue
            written[key] = line
            is_text = isinstance(value_node, ScalarNode) and value_node.value != ""
            self._document.lines[where] = value_node.start_mark.line + 1 if is_text else line
            data[key] = self.convert(value_node, where)
        return {**{key: value for key, value in merged.items() if key not in data}, **data}

    def _merge(self, node: Node, location: Location) -> dict[str, Any]:
        sources = list(node.value) if isinstance(node, SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for source in sources:
            if not isinstance(source, MappingNode):
                self._find((*location, _MERGE), "merges something else; `<<` takes a mapping's alias", node)
                continue
            for key, value in self.convert(source, location).items():
                merged.setdefault(key, value)
        return merged

    def _find(self, location: Location, message: str, node: Node) -> None:
        self._document.findings.append(Finding(location, shorten(message, 200), node.start_mark.line + 1))


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
