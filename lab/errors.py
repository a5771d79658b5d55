"""The errors of hyperheap's host side.

    LabError                      exit 1   something that was asked for failed
    ├── PhaseError                exit 1   a guest did not get through a phase (boot, agent, sshd, ...)
    ├── UserError                 exit 2   the request or its input is wrong; nothing was started
    │   └── TopologyError         exit 2   a topology file with faults, one line each
    └── MissingError              exit 3   this machine lacks something that the request needs

Only the entry point (`lab.cli.main`) turns an error into words on stderr and an exit code; everything
below raises. An error says what failed, on what and why; `cure` says what to do next, as a command
where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_MISSING = 3
EXIT_INTERRUPTED = 130


class LabError(Exception):
    """Something that was asked for failed: `message` says what, on what and why.

    `cure` is what to do next, or None where nothing useful is known.
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, cure: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.message}\n  to mend it: {self.cure}" if self.cure else self.message


class PhaseError(LabError):
    """A guest did not get through a phase of its start.

    `console` holds the last lines that the guest wrote to its serial console, oldest first.
    """

    def __init__(
        self, guest: str, phase: str, reason: str, *, console: Sequence[str] = (), cure: str | None = None
    ) -> None:
        super().__init__(f"guest {guest}: {phase}: {reason}", cure=cure)
        self.guest = guest
        self.phase = phase
        self.reason = reason
        self.console = tuple(console)

    def __str__(self) -> str:
        text = super().__str__()
        if self.console:
            lines = "".join(f"\n  | {line}" for line in self.console)
            text += f"\n  last console lines of {self.guest}:{lines}"
        return text


class UserError(LabError):
    """The request or its input is wrong. Nothing was started."""

    exit_code = EXIT_BAD_INPUT


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong in a topology file.

    `line` counts from 1. `path` is the key's path with dots, or a word such as `syntax` where no key is
    to blame. `message` is "what is wrong; what is valid".
    """

    file: str
    line: int
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.path}: {self.message}"


class TopologyError(UserError):
    """A topology with faults. `faults` holds all of them, sorted by line."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class MissingError(LabError):
    """This machine lacks something that the request needs: a program, a right, a kernel feature."""

    exit_code = EXIT_MISSING
