"""Labs from Python: what `from lab import Lab` gives. docs/python.md shows it at work.

with Lab.from_file("lab.yaml") as lab:
    print(lab["client"].execute(["uname", "-r"]).stdout)
"""

from __future__ import annotations

from lab.api.connection import Connection, Direction, End
from lab.api.guest import Guest
from lab.api.lab import Lab
from lab.api.result import Command, CommandError, ExpectationError, Result, WaitError

__all__ = [
    "Command",
    "CommandError",
    "Connection",
    "Direction",
    "End",
    "ExpectationError",
    "Guest",
    "Lab",
    "Result",
    "WaitError",
]
