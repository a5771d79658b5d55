"""KVM if a guest kernel really runs under it on this host, else TCG; and what that means for time limits.

That /dev/kvm opens, and even creates a virtual machine, proves nothing: on a host without usable nested
virtualisation the firmware prints and the kernel never starts. So the question is put to a kernel, once per
boot of the host.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import time
from pathlib import Path
from typing import Literal

from lab import paths
from lab.domain import EMULATOR
from lab.image import Image
from lab.progress import Progress

Accelerator = Literal["kvm", "tcg"]

#: Seconds in which a kernel under working KVM, nested or not, has long spoken.
PROBE_TIME = 6.0

#: How much longer things take under TCG, with as many guests as a small host bears at once.
_TCG_FACTOR = 6.0


def limit(seconds: float, accelerator: str) -> float:
    """A time limit for something in a guest that should take at most `seconds` under KVM."""
    return seconds * (_TCG_FACTOR if accelerator == "tcg" else 1.0)


def choose(image: Image, progress: Progress) -> Accelerator:
    """The accelerator of this host. HYPERHEAP_ACCELERATOR=kvm|tcg overrides; else probed, and remembered
    until the next boot.
    """
    forced = os.environ.get("HYPERHEAP_ACCELERATOR")
    if forced == "kvm":
        return "kvm"
    if forced == "tcg" or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    question = {
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "emulator": Path(EMULATOR).stat().st_mtime,
    }
    cache = paths.cache_root() / "accelerator.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(cache.read_text())
        if known["question"] == question:
            return "kvm" if known["answer"] == "kvm" else "tcg"
    with progress.task("lab", "accelerator") as task:
        task.detail("does a kernel run under KVM here?")
        answer: Accelerator = "kvm" if _kernel_speaks(image) else "tcg"
        task.detail(answer)
    temporary = cache.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps({"question": question, "answer": answer}) + "\n")
    temporary.rename(cache)
    return answer


def _kernel_speaks(image: Image) -> bool:
    """Whether the image's kernel writes anything to its console under KVM."""
    argv = [
        EMULATOR,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-machine",
        "q35,accel=kvm",
        "-cpu",
        "host",
    ]
    argv += [
        "-m",
        "256",
        "-kernel",
        str(image.kernel),
        "-append",
        "console=ttyS0 earlyprintk=ttyS0 panic=-1",
        "-no-reboot",
    ]
    process = subprocess.Popen(
        [*argv, "-serial", "stdio"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    heard = b""
    deadline = time.monotonic() + PROBE_TIME
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                if not selector.select(left):
                    break
                chunk = os.read(process.stdout.fileno(), 4096)
                heard += chunk
                # The kernel's first line; firmware, which is all that a broken KVM runs, does not know these
                # words.
                if b"Linux version" in heard:
                    return True
                if not chunk:
                    break
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    return False
