"""daemon.json: what a lab's daemon serves. `lab up` writes it, the daemon reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from guest_agent.records import canonical_address
from lab.errors import LabError


class DaemonFileError(LabError):
    """daemon.json is missing or not valid."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HeapEntry(_Model):
    """A heap to serve. `buffer` is the ring size of each direction of a channel; sizes in bytes."""

    name: str
    size: int
    file: Path
    socket: Path
    vectors: int = Field(ge=1, le=256)
    buffer: int
    members: tuple[str, ...]

    @field_validator("buffer")
    @classmethod
    def _is_ring(cls, value: int) -> int:
        if value < 4096 or value > 1 << 30 or value & (value - 1):
            raise ValueError("must be a power of two of at least 4096 and at most 1 GiB")
        return value


class GuestEntry(_Model):
    """A guest, the socket of its port, and the addresses that the lab gave it."""

    name: str
    port: Path
    addresses: tuple[str, ...]

    @field_validator("addresses")
    @classmethod
    def _are_addresses(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        found = tuple(canonical_address(value) for value in values)
        if not all(found):
            raise ValueError(f"not an IP address: {values[found.index('')]!r}")
        return found


class PolicyEntry(_Model):
    """When connections that may share memory get it, as in the topology."""

    upgrade: Literal["at-once", "after", "never"] = "at-once"
    after_bytes: int = Field(default=0, ge=0)
    after_calls: int = Field(default=0, ge=0, lt=2**32)


class DaemonFile(_Model):
    """All of daemon.json."""

    version: Literal[1]
    lab: str
    heaps: tuple[HeapEntry, ...] = ()
    guests: tuple[GuestEntry, ...] = ()
    policy: PolicyEntry = PolicyEntry()

    @field_validator("guests")
    @classmethod
    def _own_their_addresses(cls, guests: tuple[GuestEntry, ...]) -> tuple[GuestEntry, ...]:
        owners: dict[str, str] = {}
        for guest in guests:
            for address in guest.addresses:
                if owners.setdefault(address, guest.name) != guest.name:
                    raise ValueError(f"{address} belongs to {owners[address]} and to {guest.name}")
        if len({guest.name for guest in guests}) < len(guests):
            raise ValueError("two guests have the same name")
        return guests


def read(path: Path) -> DaemonFile:
    """Read and check daemon.json.

    Raises:
        DaemonFileError: it is missing or not valid; says where.
    """
    try:
        return DaemonFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DaemonFileError(f"{path}: cannot read: {error.strerror}", cure="lab up") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise DaemonFileError(f"{path}: {faults}", cure="lab up writes it") from error


def is_same_heap(one: HeapEntry, other: HeapEntry) -> bool:
    """Whether two entries differ at most in what can be changed while a heap is served."""
    changeable = {"members", "buffer"}
    return one.model_dump(exclude=changeable) == other.model_dump(exclude=changeable)
