"""Proves the guest driver in two bare guests: a kernel, busybox, the module and kmod_selftest, nothing else.

    python -m tests.e2e.kmod_smoke --kernel /boot/vmlinuz-... --headers /usr/src/linux-headers-...

It builds the module and the self-test, boots both guests against a doorbell server of its own, runs every
part of the self-test in them, unplugs the device under load, and reads the guests' kernel logs for
complaints. Needs qemu-system-x86_64, busybox (static), cpio, gcc and make; no root, no network, no libvirt.
Takes about a minute with TCG. Exit 0 if everything held.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from lab.doorbell import DoorbellServer
from lab.heap_file import HeapFile

ROOT = Path(__file__).resolve().parents[2]
HEAP_SIZE = 16 << 20
VECTORS = 32
BOOT_SECONDS = 120
COMMAND_SECONDS = 60
SELFTEST = "/bin/kmod_selftest"
DEVICE = "/dev/hyperheap0"
DOORBELL_PAGE = "pci=resource_alignment=12@pci:1af4:1110"
"""Makes the guest's kernel give the registers a page of their own."""

# A shell that answers each line with its status: all that is needed to drive a guest over its console.
INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo 1 > /proc/sys/kernel/printk
stty -echo
echo "@ready"
while read -r line; do
    eval "$line"
    echo "@status $?"
done
poweroff -f
"""

APPLETS = (
    "sh",
    "mount",
    "stty",
    "insmod",
    "rmmod",
    "dmesg",
    "poweroff",
    "sleep",
    "readlink",
    "basename",
    "grep",
)

# What an oops, a warning or a hung task looks like in a kernel log.
COMPLAINT = re.compile(
    r"WARNING:|BUG[: ]|Oops|Call Trace|general protection|INFO: task|Bad page|x86/PAT:.*conflict"
)

log = logging.getLogger("kmod_smoke")


class SmokeError(Exception):
    """A guest did not do what it should."""


class Guest:
    """A running guest whose console is a pipe of ours."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, monitor: Path) -> None:
        self.name = name
        self._process = process
        self._monitor = monitor

    async def read_line(self) -> str:
        """The next console line; `SmokeError` at the end."""
        assert self._process.stdout is not None
        raw = await self._process.stdout.readline()
        if not raw:
            raise SmokeError(f"guest {self.name}: QEMU ended")
        return raw.decode(errors="replace").strip()

    async def expect(self, pattern: str, seconds: float) -> re.Match[str]:
        """The first console line that matches; logs all lines up to it."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    line = await self.read_line()
                    if match := re.search(pattern, line):
                        return match
                    log.info("%s| %s", self.name, line)
        except TimeoutError:
            raise SmokeError(f"guest {self.name}: no {pattern!r} within {seconds:.0f} s") from None

    async def send(self, command: str) -> None:
        """Start a command without waiting for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        await self._process.stdin.drain()

    async def run(self, command: str, status: int = 0) -> None:
        """Run a command; anything but this exit status is a `SmokeError`."""
        await self.send(command)
        await self.finish(command, status)

    async def finish(self, command: str, status: int = 0) -> None:
        """Wait for the end of the command that was sent last."""
        got = int((await self.expect(r"@status (\d+)", COMMAND_SECONDS)).group(1))
        if got != status:
            raise SmokeError(f"guest {self.name}: {command!r} ended with {got}, not {status}")

    async def monitor(self, command: str) -> str:
        """Answer of QEMU's human monitor."""
        reader, writer = await asyncio.open_unix_connection(str(self._monitor), limit=1 << 26)
        try:
            await reader.readuntil(b"(qemu) ")
            writer.write(command.encode() + b"\n")
            return (await reader.readuntil(b"(qemu) ")).decode()
        finally:
            writer.close()
            await writer.wait_closed()


def build(scratch: Path, headers: Path, busybox: Path) -> Path:
    """Build module and self-test; returns an initramfs that holds both."""
    for name in ("kmod", "include"):
        shutil.copytree(ROOT / "ivshmem" / name, scratch / name)
    make = ["make", "-s", "-C", str(headers), f"M={scratch / 'kmod'}", "CONFIG_DEBUG_INFO_BTF_MODULES="]
    subprocess.run([*make, "W=1", "modules"], check=True)
    root = scratch / "root"
    for directory in ("bin", "proc", "sys", "dev"):
        (root / directory).mkdir(parents=True)
    source = ROOT / "tests/ivshmem/kmod_selftest.c"
    flags = ["-static", "-O2", "-Wall", "-Wextra", "-Werror", "-I", str(scratch / "include")]
    subprocess.run(["cc", *flags, "-o", str(root / SELFTEST[1:]), str(source)], check=True)
    shutil.copy(scratch / "kmod/hyperheap.ko", root)
    shutil.copy(busybox, root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    init = root / "init"
    init.write_text(INIT)
    init.chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    archive = scratch / "initramfs"
    with archive.open("wb") as out:
        cpio = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"]
        subprocess.run(cpio, cwd=root, input=names.encode(), stdout=out, check=True)
    return archive


@contextlib.asynccontextmanager
async def start_guest(
    name: str, kernel: Path, initramfs: Path, doorbell: Path, *, append: str = "", cpus: int = 1
) -> AsyncIterator[Guest]:
    """Boot a guest with the heap in a hot-plug port; it is killed at the end."""
    monitor = initramfs.with_name(f"{name}.monitor")
    argv = ["qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-cpu", "max,erms=off,fsrm=off"]
    argv += [
        "-m",
        "192",
        "-smp",
        str(cpus),
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
    ]
    argv += ["-monitor", f"unix:{monitor},server=on,wait=off"]
    argv += ["-kernel", str(kernel), "-initrd", str(initramfs)]
    argv += ["-append", f"console=ttyS0 quiet panic=-1 slub_debug=FZPU {append}"]
    argv += ["-device", "pcie-root-port,id=socket0,chassis=1"]
    argv += ["-chardev", f"socket,id=doorbell,path={doorbell}"]
    argv += ["-device", f"ivshmem-doorbell,id=heap,bus=socket0,addr=0,chardev=doorbell,vectors={VECTORS}"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe)
    try:
        guest = Guest(name, process, monitor)
        await guest.expect("@ready", BOOT_SECONDS)
        yield guest
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def read_entries(guest: Guest, file: str) -> dict[str, str]:
    """Flags of the page-table entries that map the heap (and the registers) through a file."""
    await guest.send(f"{SELFTEST} show {file}")
    found = await guest.expect(r"showing heap=(\S+) registers=(\S+)", COMMAND_SECONDS)
    flags: dict[str, str] = {}
    # The monitor shows the tables of whatever the first CPU is at; mostly that is the self-test.
    for _ in range(100):
        tables = await guest.monitor("info tlb")
        for what, address in zip(("heap", "registers"), found.groups(), strict=True):
            if entry := re.search(rf"{address}: \w+ (\S+)", tables):
                flags[what] = entry.group(1)
        if flags:
            break
    else:
        raise SmokeError(f"guest {guest.name}: the page tables never show {found.group(0)}")
    await guest.run("enough")
    for what, entry_flags in flags.items():
        log.info("%s: page-table entry of the %s through %s: %s", guest.name, what, file, entry_flags)
    return flags


async def check_memory_type(guest: Guest) -> None:
    """Write-back for the driver's mapping of the heap, and a look at what sysfs would have made of it.

    QEMU prints XGPSDACTUW: C is PCD, T is PWT, and P (bit 7) is PAT in a 4 KiB entry. None of the three set
    is write-back.
    """
    flags = await read_entries(guest, DEVICE)
    if set("CTP") & set(flags["heap"]):
        raise SmokeError(f"guest {guest.name}: the heap is not mapped write-back: {flags['heap']}")
    if "registers" in flags and "C" not in flags["registers"]:
        raise SmokeError(f"guest {guest.name}: the registers are mapped cached: {flags['registers']}")
    await guest.run("resource=$(echo /sys/bus/pci/drivers/hyperheap/0*/resource2)")
    await guest.run("resource=$(readlink -f $resource); rmmod hyperheap")
    await read_entries(guest, "$resource")
    await guest.run("insmod /hyperheap.ko")


async def check_log(guest: Guest) -> None:
    """No complaint in the guest's kernel log."""
    await guest.send("dmesg; false")
    complaints = []
    while not (line := await guest.read_line()).startswith("@status"):
        if COMPLAINT.search(line):
            complaints.append(line)
    if complaints:
        raise SmokeError(f"guest {guest.name}: its kernel complains:\n" + "\n".join(complaints))


async def check_unplug(guest: Guest) -> None:
    """Take the device away from a program that is busy with it, give it back, take the module away."""
    command = f"{SELFTEST} gone {DEVICE}"
    await guest.send(command)
    await guest.expect("^waiting$", COMMAND_SECONDS)
    await guest.monitor("device_del heap")
    await guest.finish(command)
    await guest.run(f"test ! -e {DEVICE}")


async def check_unload(guest: Guest) -> None:
    """The module cannot go while a file is open; unbinding the driver can always."""
    await guest.run(f"held=$({SELFTEST} hold {DEVICE})")
    await guest.run("rmmod hyperheap 2>/dev/null", status=1)
    await guest.run("kill -9 $held; sleep 1; rmmod hyperheap && insmod /hyperheap.ko")
    unbind = "echo $(basename /sys/bus/pci/drivers/hyperheap/0*) > /sys/bus/pci/drivers/hyperheap/"
    await guest.send(f"(sleep 3; {unbind}unbind) & {SELFTEST} gone {DEVICE}")
    await guest.finish("gone by unbinding")
    await guest.run("wait; rmmod hyperheap; insmod /hyperheap.ko")


async def check_storm(guest: Guest) -> None:
    """The driver comes and goes while four processes open, map, fork, bind, ring and close without pause."""
    driver = "/sys/bus/pci/drivers/hyperheap"
    cycle = f"echo $slot > {driver}/unbind; sleep 0.$((cycle % 5)); echo $slot > {driver}/bind; sleep 0.3"
    await guest.run(f"slot=$(basename {driver}/0*)")
    await guest.send(
        f"{SELFTEST} storm {DEVICE} & storm=$!; cycle=0; "
        f"while kill -0 $storm 2>/dev/null; do cycle=$((cycle + 1)); {cycle}; done; "
        "echo cycles $cycle; wait $storm"
    )
    cycles = int((await guest.expect(r"cycles (\d+)", COMMAND_SECONDS)).group(1))
    await guest.finish("storm")
    if cycles < 5:
        raise SmokeError(f"guest {guest.name}: only {cycles} cycles during the storm")
    await guest.run(f"test -c {DEVICE} && grep hyperheap /proc/interrupts | grep -c . && rmmod hyperheap")
    await guest.run("insmod /hyperheap.ko")


async def check_alone(guest: Guest) -> None:
    """What one guest can show by itself."""
    await guest.run(f"insmod /hyperheap.ko && test -c {DEVICE}")
    await guest.run(f"{SELFTEST} solo {DEVICE}")
    await check_memory_type(guest)


async def check_pair(near: Guest, far: Guest) -> None:
    """Data and doorbells between two guests."""
    sides = (guest.run(f"{SELFTEST} pair {DEVICE} {side}") for side, guest in enumerate((near, far)))
    await asyncio.gather(*sides)


async def smoke(kernel: Path, initramfs: Path, scratch: Path) -> None:
    """All checks: one guest as it comes, then two with a doorbell page."""
    socket = scratch / "heap.sock"
    with HeapFile.create(scratch / "heap", HEAP_SIZE) as heap:
        server = DoorbellServer(heap, socket, VECTORS)
        await server.start()
        try:
            async with start_guest("plain", kernel, initramfs, socket, cpus=2) as plain:
                await check_alone(plain)
                await check_unload(plain)
                await check_storm(plain)
                await check_unplug(plain)
                await check_log(plain)
            async with (
                start_guest("near", kernel, initramfs, socket, append=DOORBELL_PAGE) as near,
                start_guest("far", kernel, initramfs, socket, append=DOORBELL_PAGE) as far,
            ):
                log.info("peers: %s", ", ".join(str(peer) for peer in server.peers))
                guests = (near, far)
                for guest in guests:
                    await check_alone(guest)
                await check_pair(near, far)
                log.info("once more, without the doorbell server")
                await server.close()
                await check_pair(near, far)
                for guest in guests:
                    await check_unplug(guest)
                    await check_log(guest)
        finally:
            await server.close()


def main() -> int:
    """Parse, build, run; the exit code says whether all held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", type=Path, required=True, help="a bootable kernel image")
    parser.add_argument("--headers", type=Path, required=True, help="the same kernel's header directory")
    parser.add_argument("--busybox", type=Path, default=Path("/bin/busybox"), help="a static busybox")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with tempfile.TemporaryDirectory(prefix="kmod-smoke-", dir=os.environ.get("TMPDIR")) as directory:
        scratch = Path(directory)
        try:
            initramfs = build(scratch, arguments.headers, arguments.busybox)
            asyncio.run(smoke(arguments.kernel, initramfs, scratch))
        except (SmokeError, subprocess.CalledProcessError) as error:
            log.error("FAILED: %s", error)
            return 1
    log.info("all held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
