"""What a guest image is made of: the topology's packages, what every image has, and this project's own
files.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import initrd, topology

#: Packages of every image: a kernel, an init, and what the agent and the harness use in a guest.
BASE_PACKAGES = (
    "dbus",
    "iproute2",
    "iputils-ping",
    "kmod",
    "linux-image-cloud-amd64",
    "openssh-server",
    "procps",
    "python3",
    "systemd",
    "systemd-sysv",
    "udev",
)

#: Changes whenever `lab.image` makes something else of the same recipe.
FORMAT = 1

GUEST_FILES = Path(__file__).parent / "guest_files"
CUSTOMIZE_HOOK = GUEST_FILES / "image" / "customize"
HEADERS_HOOK = GUEST_FILES / "image" / "headers"
INIT_SOURCE = GUEST_FILES / "initrd" / "init.c"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is in an image. Made by `from_topology`."""

    name: str
    suite: str
    packages: tuple[str, ...]
    """All packages, sorted, each once."""
    files: tuple[tuple[str, str], ...]
    """(name, SHA-256) of the project's files that shape the image."""
    modules: tuple[str, ...] = initrd.MODULES
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """64 hex digits; equal for recipes that make the same image. The name is not part of it."""
        meaning = {key: value for key, value in asdict(self).items() if key != "name"}
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def from_topology(image: topology.Image) -> Recipe:
    """The recipe of a topology's image."""
    files = tuple(
        (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in (CUSTOMIZE_HOOK, HEADERS_HOOK, INIT_SOURCE)
    )
    packages = tuple(sorted({*BASE_PACKAGES, *image.packages}))
    return Recipe(image.name, image.suite, packages, files)
