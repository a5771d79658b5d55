"""What a command in a guest gave, and the errors that say that it was not what was expected."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from lab.errors import LabError

#: A command: its words as they are, or one text for the guest's shell.
Command = str | Sequence[str]

#: Characters of each stream that an error shows; the end of a stream tells more than its beginning.
_SHOWN = 2000


class ExpectationError(LabError):
    """Something in a lab is not as it was expected to be."""


class WaitError(ExpectationError):
    """What was waited for did not come in time."""


class CommandError(ExpectationError):
    """A command ended with another exit code than expected. `result` has all of it."""

    def __init__(self, result: Result, expected: str) -> None:
        said = "".join(
            f"\n  {name}: {_shorten(text)}"
            for name, text in (("stdout", result.stdout), ("stderr", result.stderr))
            if text.strip()
        )
        super().__init__(
            f"guest {result.guest}: {result.words!r} ended with {result.code}, not {expected}{said}"
        )
        self.result = result


@dataclass(frozen=True)
class Result:
    """A command that ended. `code` is its exit code, 128+n if signal n ended it."""

    guest: str
    command: Command
    code: int
    stdout_bytes: bytes
    stderr_bytes: bytes

    @property
    def stdout(self) -> str:
        """What it wrote, as text; bytes that are no UTF-8 are replaced. `stdout_bytes` has them as they
        are.
        """
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """What it complained, as text."""
        return self.stderr_bytes.decode(errors="replace")

    @property
    def words(self) -> str:
        """The command as one would type it."""
        return self.command if isinstance(self.command, str) else shlex.join(self.command)

    def __bool__(self) -> bool:
        """Whether the command succeeded."""
        return self.code == 0

    def check(self) -> Result:
        """This result. Raises `CommandError` if the command did not succeed."""
        if self.code:
            raise CommandError(self, "0")
        return self


def argv_of(command: Command) -> list[str]:
    """The words that are run in the guest."""
    if isinstance(command, str):
        return ["sh", "-c", command]
    if not command:
        raise ValueError("an empty command")
    return [str(word) for word in command]


def _shorten(text: str) -> str:
    text = text.strip()
    if len(text) > _SHOWN:
        text = f"[...] {text[-_SHOWN:]}"
    return text.replace("\n", "\n    ")
