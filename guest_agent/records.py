"""Records that travel as JSON objects, and the strict checks of their fields.

A record is a frozen dataclass; the annotations of its fields say what is valid. Reading one from parsed JSON
refuses unknown and missing keys, other types and values out of range with a `WireError` that names the field.
"""

from __future__ import annotations

import socket
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from typing import Annotated, Any, ClassVar, Final, NamedTuple

MAX_LIST: Final = 512


class WireError(Exception):
    """What was read is not a valid frame or message.

    `what` says what is wrong; `type_name` and `field` say where, when that is known.
    """

    def __init__(self, what: str, *, type_name: str = "", field: str = "") -> None:
        self.what = what
        self.type_name = type_name
        self.field = field
        where = ".".join(part for part in (type_name, field) if part)
        super().__init__(f"{where}: {what}" if where else what)


class Endpoint(NamedTuple):
    """One end of a TCP connection. `address` is in the canonical text form of inet_ntop, without a zone."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


Check = Callable[[Any], Any]


@dataclass(frozen=True)
class _IntRange:
    low: int
    high: int

    def __call__(self, value: Any) -> int:
        if type(value) is not int or not self.low <= value <= self.high:
            raise WireError(f"not an integer of {self.low}..{self.high}")
        return value


@dataclass(frozen=True)
class _TextLimit:
    """Printable text of at most `limit` characters."""

    limit: int

    def __call__(self, value: Any) -> str:
        if type(value) is not str or len(value) > self.limit or not value.isprintable():
            raise WireError(f"not printable text of at most {self.limit} characters")
        return value


class _AddressText:
    def __call__(self, value: Any) -> str:
        if type(value) is not str or len(value) > 45:
            raise WireError("not an address")
        if canonical_address(value) != value:
            raise WireError("not an IP address in canonical form")
        return value


U16 = Annotated[int, _IntRange(0, 2**16 - 1)]
U32 = Annotated[int, _IntRange(0, 2**32 - 1)]
U64 = Annotated[int, _IntRange(0, 2**64 - 1)]
Side = Annotated[int, _IntRange(0, 1)]
Name = Annotated[str, _TextLimit(64)]
Text = Annotated[str, _TextLimit(255)]
Address = Annotated[str, _AddressText()]


def canonical_address(text: str) -> str:
    """Return `text` as inet_ntop writes it, an IPv4-mapped IPv6 address as IPv4; "" if it is no address."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        packed = socket.inet_pton(family, text)
    except (OSError, ValueError):
        return ""
    return address_from_bytes(packed)


def address_from_bytes(packed: bytes) -> str:
    """Return the canonical text of a 4 or 16 byte address, an IPv4-mapped one as IPv4."""
    if len(packed) == 16 and packed.startswith(b"\0" * 10 + b"\xff\xff"):
        packed = packed[12:]
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


_check_address = _AddressText()
_check_port = _IntRange(0, 2**16 - 1)


def _check_endpoint(value: Any) -> Endpoint:
    if type(value) is not list or len(value) != 2:
        raise WireError("not an [address, port] pair")
    return Endpoint(_check_address(value[0]), _check_port(value[1]))


def _check_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise WireError("not a truth value")
    return value


def _check_for(hint: Any) -> Check:
    """Return the function that checks and converts a JSON value for a field annotated with `hint`."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return typing.cast(Check, hint.__metadata__[0])
    if origin is tuple:
        return _list_check(_check_for(typing.get_args(hint)[0]))
    if origin in (typing.Union, types.UnionType):
        inner = _check_for(next(part for part in typing.get_args(hint) if part is not type(None)))
        return lambda value: None if value is None else inner(value)
    if hint is bool:
        return _check_bool
    if hint is Endpoint:
        return _check_endpoint
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum_check(hint)
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json
    raise TypeError(f"no check for {hint!r}")


def _list_check(inner: Check) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) > MAX_LIST:
            raise WireError(f"not a list of at most {MAX_LIST}")
        return tuple(inner(item) for item in value)

    return check


def _enum_check(kind: type[Enum]) -> Check:
    members = {member.value: member for member in kind}

    def check(value: Any) -> Enum:
        if type(value) is not str or value not in members:
            raise WireError(f"not one of {', '.join(members)}")
        return members[value]

    return check


def _plain(value: Any) -> Any:
    """Return `value` as json.dumps takes it."""
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Enum):
        return value.value
    if type(value) is tuple:
        return [_plain(item) for item in value]
    return value


class Record:
    """Something with fields that travels as a JSON object. Subclasses are frozen dataclasses."""

    __slots__ = ()
    _checks: ClassVar[dict[str, Check] | None] = None

    @classmethod
    def _field_checks(cls) -> dict[str, Check]:
        checks = cls.__dict__.get("_checks")
        if checks is None:
            hints = typing.get_type_hints(cls, include_extras=True)
            checks = {field.name: _check_for(hints[field.name]) for field in fields(typing.cast(Any, cls))}
            cls._checks = checks
        return checks

    @classmethod
    def from_json(cls, value: Any) -> Record:
        """Return the record that the parsed JSON `value` describes; WireError if it describes none."""
        if type(value) is not dict:
            raise WireError("not an object", type_name=cls.__name__)
        checks = cls._field_checks()
        if value.keys() != checks.keys():
            strange = sorted(set(value) - set(checks))
            missing = sorted(set(checks) - set(value))
            what = f"unknown key {strange[0][:40]!r}" if strange else f"key {missing[0]!r} is missing"
            raise WireError(what, type_name=cls.__name__)
        converted = {}
        for name, check in checks.items():
            try:
                converted[name] = check(value[name])
            except WireError as error:
                field = f"{name}.{error.field}" if error.field else name
                raise WireError(error.what, type_name=cls.__name__, field=field) from None
        return cls(**converted)

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return {name: _plain(getattr(self, name)) for name in self._field_checks()}
