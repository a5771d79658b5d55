# SPDX-License-Identifier: Apache-2.0
"""Where the built C parts and their sources are.

Installed (meson-python), everything lies in this package. In the tree and on a guest's tools disk the
libraries are found through HYPERHEAP_LIB, beside the package (``../build``, ``../../lib``), or in the
package itself.
"""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


class ArtifactMissing(RuntimeError):
    """A C part that has not been built, or is not where it should be."""

    def __init__(self, name: str, searched: list[Path]) -> None:
        self.name = name
        self.searched = searched
        places = ", ".join(str(path) for path in searched)
        super().__init__(f"{name} is not built (looked in {places}); run `make build`")


def _library(name: str) -> Path:
    searched = [_PACKAGE / "lib", _PACKAGE.parent / "build" / "ivshmem", _PACKAGE.parent.parent / "lib"]
    override = os.environ.get("HYPERHEAP_LIB")
    if override:
        searched.insert(0, Path(override))
    for directory in searched:
        if (directory / name).is_file():
            return directory / name
    raise ArtifactMissing(name, searched)


def core_library() -> Path:
    """Path of libivshmem.so; ArtifactMissing if it is not built."""
    return _library("libivshmem.so")


def shim_library() -> Path:
    """Path of libhyperheap.so, the preloaded shim; ArtifactMissing if it is not built."""
    return _library("libhyperheap.so")


def kmod_sources() -> Path:
    """Directory of the guest driver's sources."""
    return _PACKAGE / "kmod"


def include_dir() -> Path:
    """Directory that holds ``hyperheap/*.h``."""
    return _PACKAGE / "include"
