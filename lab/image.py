"""Guest images: built from a recipe by mmdebstrap, kept by the recipe's digest.

An image is a directory below the cache: `root.ext4` (read-only base of the guests' overlays), `vmlinuz`,
`initrd.img`, `headers/` (what builds a module for its kernel), `driver/` (built modules) and `manifest.json`.
It is built in a directory of another name and renamed when complete, so whatever has the name of a digest is
whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab import initrd, paths, process
from lab.errors import LabError, MissingError, UserError
from lab.progress import Progress, Task
from lab.recipe import CUSTOMIZE_HOOK, HEADERS_HOOK, INIT_SOURCE, Recipe

_MANIFEST = "manifest.json"
_BUILDING = ".building-"

#: Bytes of the root disk that a guest sees. Sparse: it occupies what is in it.
ROOT_SIZE = 4 << 30

#: File system features that a disk without fsck, journal replay and 16 TiB does better without.
_EXT4_FEATURES = "^has_journal,^metadata_csum,^64bit,^resize_inode"

_UNWANTED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


@dataclass(frozen=True)
class Image:
    """A built image. `size` is what it occupies on the disk in bytes, `built` a UNIX time."""

    digest: str
    name: str
    directory: Path
    kernel_version: str
    suite: str
    packages: tuple[str, ...]
    size: int
    built: float

    @property
    def root(self) -> Path:
        """The read-only base of the guests' root disks, a raw ext4."""
        return self.directory / "root.ext4"

    @property
    def kernel(self) -> Path:
        """The kernel that guests boot directly."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The initial RAM disk."""
        return self.directory / "initrd.img"

    @property
    def headers(self) -> Path:
        """The directory with which a module for the kernel is built (`make -C`)."""
        return self.directory / "headers" / "usr" / "src" / f"linux-headers-{self.kernel_version}"


def find(recipe: Recipe) -> Image | None:
    """The image of this recipe if it is built."""
    return _load(paths.images_dir() / recipe.digest)


def find_all() -> list[Image]:
    """All built images, newest first."""
    with contextlib.suppress(FileNotFoundError):
        images = [_load(entry) for entry in paths.images_dir().iterdir() if not entry.name.startswith(".")]
        return sorted((image for image in images if image), key=lambda image: -image.built)
    return []


def build(recipe: Recipe, progress: Progress, *, again: bool = False) -> Image:
    """The image of this recipe, built now if it is not there (or `again` is set). Two builders wait for
    each other.
    """
    if not again and (image := find(recipe)):
        return image
    if os.geteuid() != 0:
        raise MissingError("building an image needs the rights of root", cure="sudo lab image build")
    paths.images_dir().mkdir(parents=True, exist_ok=True)
    _sweep()
    asked = time.time()
    with progress.task("image", recipe.name) as task, _builder_lock(recipe, task):
        image = find(recipe)
        if image and (not again or image.built > asked):
            return image
        temporary = paths.images_dir() / f"{_BUILDING}{recipe.digest}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(mode=0o755)
        try:
            _make(recipe, temporary, task)
            final = paths.images_dir() / recipe.digest
            if image:
                shutil.rmtree(final)
            temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        built = _load(final)
        assert built is not None
        return built


def remove(digest: str) -> Image:
    """Remove the image whose digest starts with this; returns what it was. Raises `UserError` if none or
    several match.
    """
    matching = [image for image in find_all() if image.digest.startswith(digest)]
    if len(matching) != 1 or not digest:
        known = ", ".join(image.digest[:12] for image in find_all()) or "none"
        raise UserError(
            f"{len(matching)} images have a digest that starts with {digest!r}; there are: {known}"
        )
    (image,) = matching
    if labs := _find_users(image):
        raise UserError(
            f"image {image.digest[:12]} is in use by {', '.join(labs)}", cure=f"lab down --lab {labs[0]}"
        )
    # The rename makes it vanish at once, whatever interrupts the removal; the next build of it sweeps the
    # rest.
    doomed = paths.images_dir() / f"{_BUILDING}{image.digest}"
    shutil.rmtree(doomed, ignore_errors=True)
    image.directory.rename(doomed)
    shutil.rmtree(doomed)
    return image


def _find_users(image: Image) -> list[str]:
    """The labs with a disk on top of the image."""
    base = str(image.root).encode()
    overlays = paths.state_root().glob("*/*/root.qcow2")
    return sorted({overlay.parent.parent.name for overlay in overlays if _backing_file(overlay) == base})


def _backing_file(overlay: Path) -> bytes:
    """The backing file that a qcow2 image names (QEMU's docs/interop/qcow2.txt, header bytes 8 to 19)."""
    with contextlib.suppress(OSError), overlay.open("rb") as handle:
        header = handle.read(20)
        if len(header) == 20:
            offset, size = struct.unpack(">QI", header[8:])
            handle.seek(offset)
            return handle.read(size)
    return b""


def _sweep() -> None:
    """Remove what builders that were killed left behind."""
    for leftover in paths.images_dir().glob(f"{_BUILDING}*"):
        digest = leftover.name.removeprefix(_BUILDING)
        with (
            (paths.images_dir() / f".lock-{digest}").open("w") as handle,
            contextlib.suppress(BlockingIOError),
        ):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(leftover, ignore_errors=True)


def _load(directory: Path) -> Image | None:
    try:
        data = json.loads((directory / _MANIFEST).read_text())
        return Image(
            digest=directory.name,
            name=data["name"],
            directory=directory,
            kernel_version=data["kernel_version"],
            suite=data["suite"],
            packages=tuple(data["packages"]),
            size=data["size"],
            built=data["built"],
        )
    except (OSError, ValueError, KeyError):
        return None


@contextlib.contextmanager
def _builder_lock(recipe: Recipe, task: Task) -> Iterator[None]:
    with (paths.images_dir() / f".lock-{recipe.digest}").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            task.detail("waiting for another builder of the same image")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _make(recipe: Recipe, directory: Path, task: Task) -> None:
    root = directory / "root"
    _bootstrap(recipe, root, task)
    task.detail("making the disk")
    kernels = [entry.name for entry in (root / "lib" / "modules").iterdir()]
    if len(kernels) != 1:
        raise LabError(f"image {recipe.name}: expected one kernel in the image, found {kernels}")
    (version,) = kernels
    shutil.copy(root / "boot" / f"vmlinuz-{version}", directory / "vmlinuz")
    (directory / "initrd.img").write_bytes(
        _make_initrd(recipe, directory, root / "lib" / "modules" / version)
    )
    shutil.rmtree(root / "boot")
    (root / "boot").mkdir()
    make_disk(root, directory / "root.ext4", label="hyperheap-root", size=ROOT_SIZE)
    shutil.rmtree(root)
    manifest = {
        "name": recipe.name,
        "suite": recipe.suite,
        "packages": recipe.packages,
        "kernel_version": version,
        "built": time.time(),
        "size": sum(entry.stat().st_blocks * 512 for entry in directory.rglob("*") if entry.is_file()),
    }
    (directory / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _bootstrap(recipe: Recipe, root: Path, task: Task) -> None:
    mirror = os.environ.get("HYPERHEAP_MIRROR", "http://deb.debian.org/debian")
    security = os.environ.get("HYPERHEAP_SECURITY_MIRROR", "http://deb.debian.org/debian-security")
    # A PID namespace of its own, tied to this process: however this process ends, nothing of the build goes
    # on.
    argv = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--fork",
        "--kill-child",
        "--pid",
        "--mount",
        "--mount-proc",
        "nice",
    ]
    argv += ["mmdebstrap", "--mode=root", "--variant=minbase", "--include=" + ",".join(recipe.packages)]
    argv += [f"--dpkgopt=path-exclude={unwanted}" for unwanted in _UNWANTED]
    argv += ["--aptopt=Acquire::Languages none", "--aptopt=Acquire::Retries 3"]
    argv += [f"--customize-hook={HEADERS_HOOK}", f"--customize-hook={CUSTOMIZE_HOOK}"]
    argv += [recipe.suite, str(root)]
    argv += [f"deb {mirror} {recipe.suite} main", f"deb {mirror} {recipe.suite}-updates main"]
    argv += [f"deb {security} {recipe.suite}-security main"]

    def show(line: str) -> None:
        if line.startswith("I: "):
            task.detail(line[3:])

    what = f"building the image {recipe.name}"
    process.run(argv, what=what, timeout=None, env={**os.environ, "TMPDIR": str(root.parent)}, on_line=show)


def _make_initrd(recipe: Recipe, directory: Path, modules: Path) -> bytes:
    init = directory / "init"
    argv = ["gcc", "-O2", "-static", "-s", "-Wall", "-Wextra", "-Werror", "-o", init, INIT_SOURCE]
    process.run(argv, what="compiling the initrd's init")
    contents = init.read_bytes()
    init.unlink()
    built_in = (modules / "modules.builtin").read_text()
    loaded = []
    for module in recipe.modules:
        file = modules / "kernel" / f"{module}.ko"
        if file.exists():
            loaded.append((file.stem, file.read_bytes()))
        elif f"kernel/{module}.ko" not in built_in:
            raise LabError(f"image {recipe.name}: its kernel has no module {module}")
    return initrd.assemble(contents, loaded)


def make_disk(tree: Path, disk: Path, *, label: str, size: int) -> None:
    """Make an ext4 image of `size` bytes (sparse) with this label and the files of `tree`, without mounting
    anything.
    """
    with disk.open("wb") as handle:
        handle.truncate(size)
    argv = [
        "mke2fs",
        "-q",
        "-F",
        "-t",
        "ext4",
        "-O",
        _EXT4_FEATURES,
        "-E",
        "lazy_itable_init=1,nodiscard",
        "-m",
        "0",
    ]
    process.run([*argv, "-L", label, "-d", tree, disk], what=f"making the disk {label}")
    disk.chmod(0o444)
