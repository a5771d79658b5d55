"""A lab's life: `up` makes the host agree with the topology, `down` leaves nothing of the lab behind."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from lab import (
    accelerator,
    daemon_process,
    domain,
    image,
    keys,
    libvirtd,
    lock,
    netns,
    network,
    process,
    readiness,
    recipe,
    tools_disk,
    tsc,
    uplink,
)
from lab.cleanup import remove_everything
from lab.errors import UserError
from lab.image import Image
from lab.paths import LabPaths
from lab.progress import Progress
from lab.topology import Guest, Topology


@dataclass(frozen=True)
class UpReport:
    """What `up` did. `changed` is false if the lab already ran as asked. `seconds` is the whole time."""

    lab: str
    changed: bool
    seconds: float
    accelerator: str
    started: tuple[str, ...]
    """Guests that were started by this call."""


@dataclass(frozen=True)
class DownReport:
    """What `down` did. `changed` is false if there was nothing of this lab."""

    lab: str
    changed: bool
    seconds: float


def up(topology: Topology, progress: Progress, *, connect: str | None = None) -> UpReport:
    """Bring the lab up and wait until each guest is ready: booted, sshd answers, agent registered, heaps
    mapped.

    `connect` is the URI of an existing libvirt to use instead of a private daemon. A lab that runs already is
    left alone; what an interrupted `up` left is completed. Raises `PhaseError` for a guest that did not
    become ready, `UserError` if the lab runs with another topology, `LabError` if another `up` or `down`
    works on it.
    """
    begun = time.monotonic()
    with lock.hold(LabPaths(topology.name), "up"):
        return _Up(topology, progress, connect).bring_up(begun)


def down(lab: str, progress: Progress, *, connect: str | None = None) -> DownReport:
    """Remove everything of the lab from this host, whatever state it is in. Guests are switched off hard."""
    begun = time.monotonic()
    paths = LabPaths(lab)
    with lock.hold(paths, "down"), progress.task("lab", "down"):
        changed = remove_everything(paths, connect)
    return DownReport(lab, changed, time.monotonic() - begun)


class _Up:
    """One call of `up`."""

    def __init__(self, topology: Topology, progress: Progress, connect: str | None) -> None:
        self.topology = topology
        self.progress = progress
        self.connect = connect
        self.lab = LabPaths(topology.name)

    def bring_up(self, begun: float) -> UpReport:
        running = self._survey()
        if not running:
            # What an interrupted `up` or a killed daemon left is not worth mending as long as no guest lives
            # in it.
            with self.progress.task("lab", "clean up") as task:
                if not remove_everything(self.lab, self.connect):
                    task.skip("nothing is left of an earlier one")
        absent = [guest for guest in self.topology.guests.values() if guest.name not in running]
        changed = bool(absent)
        if absent:
            chosen = self._start(absent)
        else:
            chosen = next(iter(running.values())).accelerator
            if not daemon_process.answers(self.lab):
                changed = True
                with self.progress.task("lab", "daemon"):
                    daemon_process.start(self.topology)
        self._wait_for_all(chosen)
        started = tuple(guest.name for guest in absent)
        return UpReport(self.topology.name, changed, time.monotonic() - begun, chosen, started)

    def _survey(self) -> dict[str, domain.Marked]:
        """The guests that run. Raises `UserError` if they are those of another topology."""
        if self.connect is None and not (netns.is_usable(self.lab.netns_file) and libvirtd.answers(self.lab)):
            return {}
        with libvirtd.connect(self.lab, self.connect) as connection:
            found = list(domain.find_all(connection, self.lab.lab))
            if any(each.digest != self.topology.digest() for each in found):
                raise UserError(
                    f"lab {self.lab.lab} runs with another topology than the one given",
                    cure=f"lab down --lab {self.lab.lab}; lab up",
                )
            for each in found:
                if each.state == "paused":
                    # Perhaps only because libvirt is just starting it, for an `up` that was killed.
                    with contextlib.suppress(libvirt.libvirtError):
                        each.handle.resume()
                elif each.state != "running":
                    domain.destroy(each)
            return {each.guest: each for each in found if each.state in {"running", "paused"}}

    def _start(self, guests: list[Guest]) -> str:
        built = image.build(recipe.from_topology(self.topology.image), self.progress)
        chosen = accelerator.choose(built, self.progress)
        boot = domain.Boot(built.kernel, built.initrd, chosen, tsc.frequency_khz())
        with self.progress.task("lab", "host"), ThreadPoolExecutor(3) as pool:
            # Sockets that speak for a guest, and disks with its host key, are nobody else's business; but the
            # QEMU of an existing libvirt is perhaps not root.
            private = 0o700 if self.connect is None else 0o755
            for directory in (self.lab.root / "guests", self.lab.disks):
                directory.parent.mkdir(parents=True, exist_ok=True)
                directory.mkdir(mode=private, exist_ok=True)
            if self.connect is None:
                netns.create(self.lab.netns)
            parts = [pool.submit(self._prepare_networks), pool.submit(self._prepare_disks, built, guests)]
            if not daemon_process.answers(self.lab):
                parts.append(pool.submit(daemon_process.start, self.topology))
            _finish(parts)
        with libvirtd.connect(self.lab, self.connect) as connection, ThreadPoolExecutor(len(guests)) as pool:
            _finish([pool.submit(self._start_guest, connection, guest, boot) for guest in guests])
        return chosen

    def _prepare_networks(self) -> None:
        if self.connect is None:
            libvirtd.start(self.lab)
        with libvirtd.connect(self.lab, self.connect) as connection:
            network.ensure(connection, self.topology)
        uplink.ensure(self.topology, self.connect)

    def _prepare_disks(self, built: Image, guests: Iterable[Guest]) -> None:
        authorized = keys.ensure(self.lab.private_key) + "\n"
        known = []
        for guest in self.topology.guests.values():
            public = keys.ensure(self.lab.host_key(guest.name))
            known += [f"{address} {public}\n" for address in guest.addresses]
        self.lab.known_hosts.write_text("".join(known))
        with tools_disk.common_tree(built, self.lab.root) as tree:
            for guest in guests:
                files = self.lab.guest(guest.name)
                files.directory.mkdir(parents=True, exist_ok=True)
                files.disks.mkdir(parents=True, exist_ok=True)
                # The log says when the guest has booted: it must not be an earlier one's.
                files.console_log.unlink(missing_ok=True)
                tools_disk.make(
                    tree,
                    files.tools_disk,
                    self.topology,
                    guest,
                    host_key=self.lab.host_key(guest.name),
                    authorized_key=authorized,
                )
                _make_overlay(built.root, files.overlay)

    def _start_guest(self, connection: Any, guest: Guest, boot: domain.Boot) -> None:
        with self.progress.task(guest.name, "start"):
            domain.start(connection, self.topology, guest, boot)

    def _wait_for_all(self, chosen: str) -> None:
        stop = threading.Event()
        guests = self.topology.guests.values()
        with libvirtd.connect(self.lab, self.connect) as connection, ThreadPoolExecutor(len(guests)) as pool:
            watches = [readiness.Watch(self.lab, guest, chosen, connection, stop) for guest in guests]
            try:
                _finish([pool.submit(readiness.wait, watch, self.progress) for watch in watches])
            except BaseException:
                # An interrupt, since failures of guests come after the last of them: let the other threads
                # go.
                stop.set()
                raise


def _make_overlay(base: Path, overlay: Path) -> None:
    overlay.unlink(missing_ok=True)
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay]
    process.run(argv, what=f"making the disk {overlay}")


def _finish(parts: Iterable[Future[Any]]) -> None:
    """Wait for all parts; then raise what the first of those that failed raised."""
    failures = [error for part in parts if (error := part.exception()) is not None]
    if failures:
        raise failures[0]
