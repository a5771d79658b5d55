"""The JSON Schema of topology files, made from the models: editors complete and check by it while one types.

It takes every file that `lab validate` takes. Of what that refuses, it sees what one value alone shows, and
not what parts say of each other (an unknown guest among a heap's members, overlapping subnets, ...).
"""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Any, get_args, get_origin

from pydantic.fields import FieldInfo

from lab.topology_schema import (
    AttachmentSpec,
    HeapSpec,
    NetworkSpec,
    Spec,
    TopologySpec,
    inner_annotation,
)
from lab.topology_values import Value

JsonSchema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

#: The key by which each part's abbreviation gives a value: what a text (or number) alone stands for.
_SHORT_FOR: dict[type[Spec], tuple[str, ...]] = {
    NetworkSpec: ("subnet",),
    HeapSpec: ("size",),
    AttachmentSpec: ("address", "address6"),
}


def generate() -> JsonSchema:
    """The schema of a whole file, with each part under `$defs`."""
    parts: dict[str, JsonSchema] = {}
    whole = _describe_part(TopologySpec, parts)
    return {
        "$schema": DIALECT,
        "title": "hyperheap topology",
        **whole,
        "description": "What a lab consists of; docs/topology.md describes every key.",
        "type": "object",
        "required": ["name", "guests"],
        "$defs": dict(sorted(parts.items())),
    }


def _describe_part(part: type[Spec], parts: dict[str, JsonSchema]) -> JsonSchema:
    """A part as a mapping of its keys; the parts in it are added to `parts`."""
    properties: JsonSchema = {}
    for name, field in part.model_fields.items():
        properties[field.alias or name] = _describe_field(field, parts)
    return {
        "description": _words(part.__doc__ or ""),
        "type": ["object", "null"],
        "properties": properties,
        "additionalProperties": False,
    }


def _describe_field(field: FieldInfo, parts: dict[str, JsonSchema]) -> JsonSchema:
    # pydantic takes the outermost Annotated apart.
    value = next((each for each in field.metadata if isinstance(each, Value)), None)
    schema = value.schema if value is not None else _describe(field.annotation, parts)
    described: JsonSchema = {"description": _words(field.description or ""), **schema}
    if isinstance(field.default, int | str) and not isinstance(field.default, bool):
        described["default"] = field.default
    return described


def _describe(annotation: Any, parts: dict[str, JsonSchema]) -> JsonSchema:
    """What stands where the annotation does, abbreviations included."""
    if get_origin(annotation) is Annotated:
        value = next((each for each in get_args(annotation)[1:] if isinstance(each, Value)), None)
        if value is not None:
            return value.schema
        return _describe(get_args(annotation)[0], parts)
    if type(None) in get_args(annotation):
        inner = next(each for each in get_args(annotation) if each is not type(None))
        return {"anyOf": [{"type": "null"}, _describe(inner, parts)]}
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return _refer_to(annotation, parts)
    if get_origin(annotation) is dict:
        name, part = get_args(annotation)
        return _describe_mapping(name, part, parts)
    if get_origin(annotation) is list:
        entry = _describe(get_args(annotation)[0], parts)
        return {"anyOf": [{"type": "array", "items": entry}, {"type": "null"}, entry]}
    if annotation is bool:
        return {"type": "boolean"}
    raise TypeError(f"no schema for {annotation}")


def _describe_mapping(name: Any, part: Any, parts: dict[str, JsonSchema]) -> JsonSchema:
    """Things by name, or a list of names, or (for attachments) one name alone."""
    name_schema = _describe(name, parts)
    forms: list[JsonSchema] = [
        {"type": "object", "propertyNames": name_schema, "additionalProperties": _describe(part, parts)},
        {"type": "array", "items": name_schema, "uniqueItems": True},
        {"type": "null"},
    ]
    if inner_annotation(part) is AttachmentSpec:
        forms.append(name_schema)
    return {"anyOf": forms}


def _refer_to(part: type[Spec], parts: dict[str, JsonSchema]) -> JsonSchema:
    name = part.__name__.removesuffix("Spec").lower()
    if name not in parts:
        parts[name] = {}  # not again, should a part contain itself
        schema = _describe_part(part, parts)
        short = [_describe_field(part.model_fields[key], {}) for key in _SHORT_FOR.get(part, ())]
        parts[name] = {"anyOf": [schema, *short]} if short else schema
    return {"$ref": f"#/$defs/{name}"}


def _words(text: str) -> str:
    """Text for a tooltip: one line, without Markdown's marks."""
    return re.sub(r"\s+", " ", inspect.cleandoc(text)).replace("`", "")
