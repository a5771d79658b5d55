"""Files and directories between the host and guests: a tar stream through the guest's ssh session.

Nothing is needed in the guest but tar. A target that is a directory (or ends with a slash) receives what is
copied under its own name; else the target is the copy's name. Directories that the target lacks are made.
Modes and times are kept, symbolic links stay links; who copies owns the copy.
"""

from __future__ import annotations

import io
import os
import posixpath
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.errors import LabError, UserError
from lab.ssh_session import PIPE, Command, Session

#: What is copied so far, in bytes: called now and then.
Report = Callable[[int], None]

#: Unpacks standard input into "$1", which is made.
_RECEIVE = 'mkdir -p -- "$1" && exec tar -x --no-same-owner -f - -C "$1"'

#: Packs "$1", which is followed if it is a link, as what it is called.
_SEND = (
    'path=$(realpath -e -- "$1") || exit 1; [ "$path" != / ] || { echo "/ cannot be copied" >&2; exit 1; }; '
    'exec tar -c -f - -C "$(dirname -- "$path")" -- "$(basename -- "$path")"'
)

_BUFFER = 1 << 18


def put(session: Session, source: Path, target: str, report: Report | None = None) -> None:
    """Copy a file or directory of the host into the guest of the session.

    Raises `UserError` if there is no such source, `LabError` with what tar said if the guest refuses it.
    """
    if not source.exists():
        raise UserError(f"{source}: there is no such file or directory on the host")
    real = source.resolve()
    name = real.name if source.name in ("", "..") else source.name
    directory, name = _place_in_guest(session, name, target)
    with _receiving(session, directory) as stream, _packing(_Counting(stream, report)) as archive:
        archive.add(real, arcname=name, filter=_owned_by_root)


def get(session: Session, source: str, target: str | Path, report: Report | None = None) -> None:
    """Copy a file or directory of the guest of the session to the host.

    Raises `LabError` with what tar said if there is no such source. What a guest sends is not trusted:
    nothing is written outside the target.
    """
    destination = Path(target)
    if destination.is_dir() or str(target).endswith("/"):
        destination /= _name_of(session, source)
    with _sending(session, source) as stream, _unpacking(stream) as archive:
        for member in archive:
            try:
                _unpack(archive, member, destination)
            except OSError as error:
                raise LabError(f"{error.filename or destination}: {error.strerror or error}") from error
            if report is not None:
                report(archive.offset)


def relay(giver: Session, source: str, taker: Session, target: str, report: Report | None = None) -> None:
    """Copy a file or directory of one guest into another. The stream goes through the host, not onto it."""
    directory, name = _place_in_guest(taker, _name_of(giver, source), target)
    with (
        _sending(giver, source) as incoming,
        _unpacking(incoming) as archive,
        _receiving(taker, directory) as outgoing,
        _packing(_Counting(outgoing, report)) as copy,
    ):
        for member in archive:
            member.name = _rename(member.name, name)
            if member.islnk():
                member.linkname = _rename(member.linkname, name)
            copy.addfile(_owned_by_root(member), archive.extractfile(member) if member.isreg() else None)


# --- The guest's side


def _place_in_guest(session: Session, name: str, target: str) -> tuple[str, str]:
    """The directory and the name that a copy gets in the guest."""
    # As with scp, what is no absolute path begins in root's home directory, where the session is.
    plain = target.rstrip("/") or ("/" if target else ".")
    if target.endswith("/") or plain == "." or _ask(session, 'test -d "$1"', plain)[0] == 0:
        return plain, name
    return posixpath.dirname(plain) or ".", posixpath.basename(plain)


def _name_of(session: Session, source: str) -> str:
    name = posixpath.basename(source.rstrip("/"))
    if name in ("", ".", ".."):
        code, out = _ask(session, 'basename -- "$(realpath -e -- "$1")"', source or ".")
        name = out.strip()
        if code or name in ("", "/"):
            raise UserError(
                f"guest {session.guest}: {source or '/'} cannot be copied as a whole; name a part"
            )
    return name


def _ask(session: Session, script: str, *arguments: str) -> tuple[int, str]:
    out = io.BytesIO()
    code = session.execute(
        ["sh", "-c", script, "sh", *arguments], stdin=None, stdout=out, stderr=io.BytesIO()
    )
    return code, out.getvalue().decode(errors="surrogateescape")


@contextmanager
def _receiving(session: Session, directory: str) -> Iterator[Any]:
    """A stream into a tar in the guest that unpacks it there."""
    errors = io.BytesIO()
    argv = ["sh", "-c", _RECEIVE, "sh", directory]
    with session.start(argv, stdin=PIPE, stdout=io.BytesIO(), stderr=errors) as command:
        try:
            yield command.stdin
            command.stdin.finish()
        except OSError as error:
            # The guest's tar went first: it has the better reason.
            raise _failure(session, command, errors) or error from None
        if reason := _failure(session, command, errors):
            raise reason


@contextmanager
def _sending(session: Session, source: str) -> Iterator[Any]:
    """A stream out of a tar in the guest that packs the source."""
    errors = io.BytesIO()
    with session.start(["sh", "-c", _SEND, "sh", source or "."], stdout=PIPE, stderr=errors) as command:
        try:
            yield command.stdout
        except tarfile.TarError as error:
            raise _failure(session, command, errors) or LabError(
                f"guest {session.guest}: what it sent is no archive: {error}"
            ) from None
        # What follows the archive's end: padding. The guest waits until it is read.
        while command.stdout.read(_BUFFER):
            pass
        if reason := _failure(session, command, errors):
            raise reason


def _failure(session: Session, command: Command, errors: io.BytesIO) -> LabError | None:
    code = command.wait()
    if code == 0:
        return None
    said = errors.getvalue().decode(errors="replace").strip().splitlines()
    # tar says the reason first, and that it gives up last.
    reason = "; ".join(line.removeprefix("tar: ") for line in said[:3]) or f"tar ended with {code}"
    return LabError(f"guest {session.guest}: {reason}")


# --- The host's side


class _Counting(io.RawIOBase):
    """A stream that says how much went into it."""

    def __init__(self, stream: Any, report: Report | None) -> None:
        self._stream = stream
        self._report = report
        self._count = 0
        self.is_abandoned = False
        """Whether what still comes is to be dropped: tarfile ends an archive in any case, when it is
        collected.
        """

    def write(self, data: Any) -> int:
        """Pass data on."""
        if self.is_abandoned:
            return len(data)
        self._stream.write(data)
        self._count += len(data)
        if self._report is not None:
            self._report(self._count)
        return len(data)


@contextmanager
def _packing(stream: _Counting) -> Iterator[tarfile.TarFile]:
    archive = tarfile.open(  # noqa: SIM115 - closing it after an error would write an end to what has none
        mode="w|", fileobj=stream, bufsize=_BUFFER, format=tarfile.PAX_FORMAT
    )
    try:
        yield archive
    except BaseException:
        stream.is_abandoned = True
        raise
    archive.close()


@contextmanager
def _unpacking(stream: Any) -> Iterator[tarfile.TarFile]:
    with tarfile.open(mode="r|", fileobj=stream, bufsize=_BUFFER) as archive:
        yield archive


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _rename(path: str, name: str) -> str:
    """The path with another first part."""
    return posixpath.join(name, *path.split("/")[1:])


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Write one member below the target, or as the target if it is the archive's top."""
    path = _inside(target, member.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = member.mode & 0o777
    if member.isdir():
        if path.is_symlink() or not path.is_dir():
            path.mkdir()
        path.chmod(mode | stat.S_IRWXU)
        return
    if path.is_dir() and not path.is_symlink():
        raise LabError(f"{path}: is a directory; {member.name} is none")
    if path.is_symlink() or path.is_file():
        path.unlink()
    if member.issym():
        if path == target:
            raise LabError(f"what the guest sends begins with a link, to {member.linkname}")
        path.symlink_to(member.linkname)
    elif member.islnk():
        shutil.copy2(_inside(target, member.linkname), path, follow_symlinks=False)
    elif member.isreg():
        source = archive.extractfile(member)
        assert source is not None
        with source, path.open("wb") as out:
            shutil.copyfileobj(source, out, _BUFFER)
        if path.is_file():
            path.chmod(mode)
            os.utime(path, (member.mtime, member.mtime))
    # Devices, sockets and pipes stay where they are.


def _inside(target: Path, name: str) -> Path:
    """The path of a member, whose first part is the target. Raises `LabError` if it leads out of it."""
    parts = posixpath.normpath(name).split("/")
    if name.startswith("/") or ".." in parts:
        raise LabError(f"what the guest sends has the path {name!r}, which leads out of {target}")
    path = target
    for part in parts[1:]:
        if path.is_symlink():
            raise LabError(f"what the guest sends goes through the link {path}")
        path /= part
    return path
