"""The kinds of value that stand in a topology file: how each is read, and what is valid for it.

A `Value` is put into a field's annotation. It reads what YAML gave (text, number, ...) into the Python
value, and its words on what is valid end every complaint and stand in docs/topology.md.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, TypeVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

_Network = TypeVar("_Network", IPv4Network, IPv6Network)

_UNITS = {"": 1, "b": 1}
for _letter, _factor in (("k", KIB), ("m", MIB), ("g", GIB), ("t", TIB)):
    _UNITS |= {_letter: _factor, f"{_letter}i": _factor, f"{_letter}ib": _factor}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)
_SIZE_PATTERN = r"^\s*[0-9]+(\.[0-9]+)?\s*([kKmMgGtT]([iI][bB]?)?|[bB])?\s*$"
_LABEL = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")


class InvalidValueError(Exception):
    """What is wrong with a value, in words that follow the key's path."""


class Value:
    """Metadata of an annotation: reads a value with `read`, which raises `InvalidValueError`.

    `valid` says in a few words what is valid. `schema` says it as JSON Schema, as far as that can; it never
    refuses what `read` takes.
    """

    def __init__(
        self, valid: str, read: Callable[[object], Any], schema: Mapping[str, Any] | None = None
    ) -> None:
        self.valid = valid
        self.schema = dict(schema or {})
        self._read = read

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def _validate(self, value: object) -> Any:
        try:
            return self._read(value)
        except InvalidValueError as error:
            raise complaint(f"{error}; {self.valid}") from None


def complaint(text: str) -> PydanticCustomError:
    """An error for pydantic that carries the finished text of a fault."""
    return PydanticCustomError("topology_fault", "{text}", {"text": text})


def describe(value: object) -> str:
    """What YAML gave, in a newcomer's words: "the number 5", "a list", ..."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {shorten(value)!r}" if value else "an empty text"
    if isinstance(value, list):
        return "a list"
    return "a mapping" if isinstance(value, dict) else "something else"


def shorten(text: str, width: int = 60) -> str:
    """The text, or its beginning if it is longer than `width`."""
    return text if len(text) <= width else text[: width - 3] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The words " (did you mean 'x'?)" if one of the known words is close to `word`, else nothing."""
    by_lower = {name.lower().replace("_", "-"): name for name in known}
    close = difflib.get_close_matches(word.lower().replace("_", "-"), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""


def listing(words: Iterable[str], *, limit: int = 12) -> str:
    """The words with commas; of many the first ones and how many more there are."""
    every = list(words)
    shown = ", ".join(every[:limit])
    return shown if len(every) <= limit else f"{shown} and {len(every) - limit} more"


def format_size(size: int) -> str:
    """The shortest exact way to write a size: 64MiB, 1GiB, 4097."""
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def name_value(limit: int) -> Value:
    """A DNS label of at most `limit` characters."""

    def read(value: object) -> str:
        text = _read_text(value)
        if _LABEL.fullmatch(text) and len(text) <= limit:
            return text
        if len(text) > limit:
            raise InvalidValueError(f"{shorten(text)!r} has {len(text)} characters")
        better = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
        hint = f" (did you mean {better!r}?)" if _LABEL.fullmatch(better) else ""
        raise InvalidValueError(f"{shorten(text)!r} is not a name{hint}")

    return Value(
        f"lower-case letters, digits and hyphens, a letter first, no hyphen last, at most {limit} characters",
        read,
        _pattern(_LABEL) | {"maxLength": limit},
    )


def size_value(
    low: int, high: int, example: str, *, power_of_two: bool = False, multiple: int = 1, zero: bool = False
) -> Value:
    """A number of bytes between `low` and `high`. `zero` allows 0 besides."""
    rule = "a power of two" if power_of_two else "a size"
    valid = f"{rule} from {format_size(low)} to {format_size(high)}, such as {example}"

    def read(value: object) -> int:
        size = parse_size(value)
        if zero and size == 0:
            return 0
        if not low <= size <= high:
            in_mib = isinstance(value, int) and low <= size * MIB <= high
            hint = f" (did you mean {size}MiB?)" if in_mib else ""
            unit = " bytes" if format_size(size) == str(size) else ""
            raise InvalidValueError(f"{format_size(size)}{unit} is out of range{hint}")
        if power_of_two and size & (size - 1):
            below = 1 << (size.bit_length() - 1)
            near = " and ".join(format_size(each) for each in (below, 2 * below) if low <= each <= high)
            raise InvalidValueError(f"{format_size(size)} is not a power of two (the nearest: {near})")
        if size % multiple:
            raise InvalidValueError(f"{format_size(size)} is not a multiple of {format_size(multiple)}")
        return size

    number: dict[str, Any] = {"type": "integer", "minimum": 0 if zero else low, "maximum": high}
    if multiple > 1:
        number["multipleOf"] = multiple
    text = {"type": "string", "pattern": _SIZE_PATTERN, "examples": [example]}
    return Value(valid, read, {"anyOf": [text, number]})


def parse_size(value: object) -> int:
    """Bytes from 64MiB, 1.5G, 512k or a whole number. Raises `InvalidValueError`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise InvalidValueError(f"is {describe(value)}, not a size")
    match = _SIZE.fullmatch(value)
    if match is None:
        raise InvalidValueError(f"{shorten(value)!r} is not a size")
    number, unit = match.group(1), match.group(2).lower()
    if unit not in _UNITS:
        if len(unit) == 2 and unit[0] in "kmgt" and unit[1] == "b":
            binary = f"{number}{unit[0].upper()}iB"
            raise InvalidValueError(f"{shorten(value)!r} is decimal (did you mean {binary!r}?)")
        raise InvalidValueError(f"{shorten(value)!r} has the unknown unit {shorten(match.group(2))!r}")
    whole, _, fraction = number.partition(".")
    if len(whole + fraction) > 30:
        raise InvalidValueError(f"{shorten(value)!r} is out of range")
    size, rest = divmod(int(whole + fraction) * _UNITS[unit], int("1" + "0" * len(fraction)))
    if rest:
        raise InvalidValueError(f"{shorten(value)!r} is not a whole number of bytes")
    return size


def count_value(low: int, high: int) -> Value:
    """A whole number between `low` and `high`."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidValueError(f"is {describe(value)}, not a whole number")
        if not low <= value <= high:
            raise InvalidValueError(f"{value} is out of range")
        return value

    schema = {"type": "integer", "minimum": low, "maximum": high}
    return Value(f"a whole number from {low} to {high}", read, schema)


def choice_value(*choices: str) -> Value:
    """One of a few words."""

    def read(value: object) -> str:
        if isinstance(value, str) and value in choices:
            return value
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise InvalidValueError(f"is {describe(value)}{hint}")

    words = " or ".join(choices) if len(choices) < 3 else f"one of {', '.join(choices)}"
    valid = words if len(choices) > 1 else f"only {choices[0]} is valid"
    return Value(valid, read, {"enum": list(choices)})


def package_value() -> Value:
    """The name of a Debian package."""

    def read(value: object) -> str:
        text = _read_text(value)
        if not _PACKAGE.fullmatch(text):
            raise InvalidValueError(f"{shorten(text)!r} is not the name of a Debian package")
        return text

    valid = "lower-case letters, digits and + - . , such as redis-server"
    return Value(valid, read, _pattern(_PACKAGE))


def subnet_value() -> Value:
    """An IPv4 network."""

    def read(value: object) -> IPv4Network:
        text = _read_prefixed(value, "10.77.0.0/24")
        subnet = _read_network(text, IPv4Network)
        if not 8 <= subnet.prefixlen <= 30:
            raise InvalidValueError(f"the prefix length /{subnet.prefixlen} is out of range")
        if subnet.is_multicast or subnet.is_loopback or subnet.is_link_local or int(subnet[0]) >> 24 == 0:
            raise InvalidValueError(f"{subnet} is reserved and cannot be given to guests")
        return subnet

    schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+){3}/([89]|[12][0-9]|30)$"}
    return Value("an IPv4 network from /8 to /30, such as 10.77.0.0/24", read, schema)


def subnet6_value() -> Value:
    """An IPv6 network."""

    def read(value: object) -> IPv6Network:
        text = _read_prefixed(value, "fd77::/64")
        subnet = _read_network(text, IPv6Network)
        if not 16 <= subnet.prefixlen <= 112:
            raise InvalidValueError(f"the prefix length /{subnet.prefixlen} is out of range")
        if subnet.is_multicast or subnet.is_link_local or int(subnet[0]) >> 112 == 0:
            raise InvalidValueError(f"{subnet} is reserved and cannot be given to guests")
        return subnet

    schema = {"type": "string", "pattern": "^[0-9a-fA-F:.]*:[0-9a-fA-F:.]*/[0-9]{2,3}$"}
    return Value("an IPv6 network from /16 to /112, such as fd77::/64", read, schema)


def address_value() -> Value:
    """An IPv4 address."""
    schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+){3}$"}
    valid = "an IPv4 address without a prefix length, such as 10.77.0.11"
    return Value(valid, _address_reader(IPv4Address), schema)


def address6_value() -> Value:
    """An IPv6 address."""
    schema = {"type": "string", "pattern": "^[0-9a-fA-F:.]*:[0-9a-fA-F:.]*$"}
    valid = "an IPv6 address without a prefix length, such as fd77::11"
    return Value(valid, _address_reader(IPv6Address), schema)


def _pattern(compiled: re.Pattern[str]) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^{compiled.pattern}$"}


def _address_reader(kind: type[IPv4Address] | type[IPv6Address]) -> Callable[[object], Any]:
    def read(value: object) -> IPv4Address | IPv6Address:
        text = _read_text(value)
        try:
            return kind(text)
        except ValueError:
            hint = f" (did you mean {text.split('/')[0]!r}?)" if "/" in text else ""
            raise InvalidValueError(
                f"{shorten(text)!r} is not an IPv{_version(kind)} address{hint}"
            ) from None

    return read


def _read_network(text: str, kind: type[_Network]) -> _Network:
    try:
        return kind(text)
    except ValueError:
        pass
    try:
        better = kind(text, strict=False)
    except ValueError:
        raise InvalidValueError(f"{shorten(text)!r} is not an IPv{_version(kind)} network") from None
    raise InvalidValueError(f"{text!r} is an address inside a network (did you mean {str(better)!r}?)")


def _version(kind: type[object]) -> int:
    return 6 if kind in (IPv6Address, IPv6Network) else 4


def _read_prefixed(value: object, example: str) -> str:
    text = _read_text(value)
    if "/" not in text:
        length = example.partition("/")[2]
        raise InvalidValueError(f"{shorten(text)!r} lacks its prefix length (such as /{length})")
    return text


def _read_text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidValueError(f"is {describe(value)}, not text")
    return value
