"""Agent, driver and shim in one archive, for Debian guests that were not made by `lab` (playbooks/agent.yml).

    python -m lab.bundle --prefix /opt/hyperheap DIRECTORY

writes DIRECTORY/hyperheap-DIGEST.tar, unless it is there, and prints what it is as JSON. The same
installation always gives the same bytes. In the archive, below PREFIX/releases/DIGEST:

bin/lab-run bin/load-driver        run a program with the shim; load the driver, built here if need be
lib/libivshmem.so lib/libhyperheap.so
python/guest_agent python/ivshmem  the agent and what it uses
src/kmod src/include               the driver's sources
drivers/KERNEL/hyperheap.ko        the driver, for kernels of images that were built on this host
driver-digest                      names these sources; what was built of others is not loaded
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import sys
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path

from ivshmem import artifacts
from lab import driver, image
from lab.recipe import GUEST_FILES

_DEFAULT_PREFIX = "/opt/hyperheap"

#: Where the programs in `guest_files` think they are.
_BUILT_IN_PREFIX = "/opt/hyperheap"

_PROGRAM, _PLAIN = 0o755, 0o644

#: Older archives in the directory are removed.
_KEPT = 4


@dataclass(frozen=True)
class Bundle:
    """An archive. `kernels` are those for which it has a driver that is built."""

    digest: str
    file: str
    driver_digest: str
    kernels: tuple[str, ...]


def make(directory: Path, prefix: str = _DEFAULT_PREFIX) -> Bundle:
    """Write the archive for guests that unpack it in `/` and let `PREFIX/current` lead to what came of it.

    Raises `ArtifactMissing` if the C parts are not built.
    """
    driver_digest = driver.source_digest()
    prefix = prefix.rstrip("/")
    files = _find_files(prefix, driver_digest)
    digest = hashlib.sha256()
    for name, (mode, content) in sorted(files.items()):
        digest.update(f"{name}\0{mode:o}\0{len(content)}\0".encode() + content)
    name = digest.hexdigest()[:16]
    target = directory / f"hyperheap-{name}.tar"
    directory.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        temporary = target.with_suffix(".part")
        temporary.write_bytes(_archive(files, f"{prefix}/releases/{name}".lstrip("/")))
        temporary.rename(target)
    target.touch()
    for old in sorted(directory.glob("hyperheap-*.tar"), key=lambda each: -each.stat().st_mtime_ns)[_KEPT:]:
        old.unlink(missing_ok=True)
    kernels = tuple(sorted(each.split("/")[1] for each in files if each.startswith("drivers/")))
    return Bundle(name, str(target.absolute()), driver_digest, kernels)


def _find_files(prefix: str, driver_digest: str) -> dict[str, tuple[int, bytes]]:
    """Mode and content of each file of the archive."""
    files = {"driver-digest": (_PLAIN, f"{driver_digest}\n".encode())}
    for source, name in ((GUEST_FILES / "tools" / "bin" / "lab-run", "lab-run"), (_LOADER, "load-driver")):
        text = source.read_text().replace(f"{_BUILT_IN_PREFIX}/lib", f"{prefix}/current/lib")
        files[f"bin/{name}"] = (_PROGRAM, text.encode())
    for find in (artifacts.core_library, artifacts.shim_library):
        files[f"lib/{find().name}"] = (_PLAIN, find().read_bytes())
    for package in ("guest_agent", "ivshmem"):
        files |= {f"python/{name}": (_PLAIN, content) for name, content in _sources_of(package)}
    kmod, headers = driver.sources()
    files |= {f"src/kmod/{path.name}": (_PLAIN, path.read_bytes()) for path in kmod}
    files |= {f"src/include/hyperheap/{path.name}": (_PLAIN, path.read_bytes()) for path in headers}
    for each in image.find_all():
        if (built := driver.find_built(each)) is not None:
            files[f"drivers/{each.kernel_version}/{driver.NAME}"] = (_PLAIN, built.read_bytes())
    return files


_LOADER = GUEST_FILES / "bundle" / "load-driver"


def _sources_of(package: str) -> list[tuple[str, bytes]]:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    top = Path(spec.origin).parent
    return [(f"{package}/{path.relative_to(top)}", path.read_bytes()) for path in top.rglob("*.py")]


def _archive(files: dict[str, tuple[int, bytes]], parent: str) -> bytes:
    """A tar file that depends on its contents alone, its names below `parent`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, (mode, content) in sorted(files.items()):
            entry = tarfile.TarInfo(f"{parent}/{name}")
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def main(arguments: list[str]) -> None:
    """Write the archive and print what it is as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.bundle", description="Agent, driver and shim as one archive."
    )
    parser.add_argument("--prefix", default=_DEFAULT_PREFIX, help="where guests keep it (%(default)s)")
    parser.add_argument("directory", type=Path, help="where to write the archive")
    options = parser.parse_args(arguments)
    sys.stdout.write(json.dumps(asdict(make(options.directory, options.prefix))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
