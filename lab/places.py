"""Where a file is: `PATH` on the host, `GUEST:PATH` in a guest."""

from __future__ import annotations

import re
from dataclasses import dataclass

_IN_GUEST = re.compile(r"([a-z](?:[a-z0-9-]*[a-z0-9])?):(.*)", re.DOTALL)


@dataclass(frozen=True)
class Place:
    """A path on the host (`guest` None) or in a guest."""

    guest: str | None
    path: str

    def __str__(self) -> str:
        return self.path if self.guest is None else f"{self.guest}:{self.path}"


def parse(text: str) -> Place:
    """The place that a text names, as scp reads it: a colon with no slash before it ends a guest's name.

    A file of the host with such a name is written `./name:with:colons`.
    """
    match = _IN_GUEST.fullmatch(text)
    return Place(match[1], match[2]) if match else Place(None, text)
