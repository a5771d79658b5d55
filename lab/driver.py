"""The guest driver, compiled for an image's kernel and kept beside the image."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from ivshmem import artifacts
from lab import process
from lab.image import Image

NAME = "hyperheap.ko"


def build(image: Image) -> Path | None:
    """The driver for the image's kernel, compiled now unless these sources were before. None if there are
    no sources.
    """
    kmod, headers = sources()
    if not any(path.suffix == ".c" for path in kmod):
        return None
    built = _built_path(image)
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        _compile(image, kmod, headers, built)
    return built


def find_built(image: Image) -> Path | None:
    """The driver for the image's kernel if these sources were compiled for it before."""
    built = _built_path(image)
    return built if built.exists() else None


def sources() -> tuple[list[Path], list[Path]]:
    """The driver's own files, and the headers that it includes as `hyperheap/NAME`."""
    kmod = sorted(
        path
        for path in artifacts.kmod_sources().glob("*")
        if path.suffix in {".c", ".h"} or path.name == "Kbuild"
    )
    return kmod, sorted((artifacts.include_dir() / "hyperheap").glob("*.h"))


def source_digest() -> str:
    """32 hex digits that change whenever a source does."""
    digest = hashlib.sha256()
    for path in [each for files in sources() for each in files]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def _built_path(image: Image) -> Path:
    return image.directory / "driver" / source_digest() / NAME


def _compile(image: Image, kmod: list[Path], headers: list[Path], built: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="hyperheap-driver-") as scratch:
        # The Kbuild file finds the headers where they are in the source tree: beside its own directory.
        modules, include = Path(scratch) / "kmod", Path(scratch) / "include" / "hyperheap"
        modules.mkdir()
        include.mkdir(parents=True)
        for path in kmod:
            shutil.copy(path, modules)
        for path in headers:
            shutil.copy(path, include)
        argv = ["make", "-C", image.headers, f"M={modules}", "CC=gcc", "CCACHE=", "modules"]
        # A make above us must not lend its flags (a job server, -n, variables) to this one.
        env = {
            key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
        }
        process.run(argv, what=f"compiling the guest driver for {image.kernel_version}", env=env)
        # Symbols for a debugger are nine tenths of it, and every guest reads the disk.
        process.run(["strip", "--strip-debug", modules / NAME], what="stripping the guest driver")
        # A rename within one directory: another builder of the same thing sees nothing half-written.
        temporary = built.with_name(f".{NAME}.{os.getpid()}")
        shutil.copy(modules / NAME, temporary)
        temporary.rename(built)
