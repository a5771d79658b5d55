"""hyperheap's host side: topologies, guests, networks, heaps, the registry and the `lab` command.

`from lab import Lab` is the way in from Python (docs/python.md). What it needs is imported when it is first
asked for, so that `import lab` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lab.api import (
        CommandError,
        Connection,
        ExpectationError,
        Guest,
        Lab,
        Result,
        WaitError,
    )
    from lab.errors import LabError, MissingError, PhaseError, TopologyError, UserError

#: Where each public name lives.
_HOMES = {
    **dict.fromkeys(
        ("CommandError", "Connection", "ExpectationError", "Guest", "Lab", "Result", "WaitError"), "lab.api"
    ),
    **dict.fromkeys(("LabError", "MissingError", "PhaseError", "TopologyError", "UserError"), "lab.errors"),
}

__all__ = [
    "CommandError",
    "Connection",
    "ExpectationError",
    "Guest",
    "Lab",
    "LabError",
    "MissingError",
    "PhaseError",
    "Result",
    "TopologyError",
    "UserError",
    "WaitError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """A public name, at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
