"""`lab capture`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lab import capture as service
from lab import link
from lab.commands.options import Invocation, need_root, pass_invocation, topology_option
from lab.paths import LabPaths


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True})
@topology_option
@click.option(
    "-w",
    "--write",
    "file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write a pcap file; `-` is standard output. Default: print a line for each packet.",
)
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="N", help="End after N packets.")
@click.argument("name", metavar="GUEST:NETWORK")
@click.argument("expression", metavar="[FILTER]...", nargs=-1, type=click.UNPROCESSED)
@pass_invocation
def capture(
    invocation: Invocation, name: str, expression: tuple[str, ...], file: Path | None, count: int | None
) -> None:
    """Record the packets of a guest's link, until Ctrl-C.

    They are those between the guest and its network: what the guest sends before, what it gets after any
    impairment by `lab link`. FILTER is tcpdump's language. Bytes that move through shared memory are in no
    packet. Without tcpdump on this host, a file can be written, but not filtered.

    \b
    Examples:
      lab capture client:lan -w client.pcap
      lab capture client:lan -c 10 tcp port 5201
      lab capture client:lan -w - | tshark -r -
    """
    topology = invocation.load()
    found = link.find(topology, name)
    need_root("lab capture")
    if file is None:
        service.need_tcpdump("printing packets")
    if expression:
        service.need_tcpdump("a filter")
    tap = link.find_tap(topology, found, invocation.connect)
    lab = LabPaths(topology.name)
    if service.has_tcpdump():
        service.run_tcpdump(lab, tap, file=file, count=count, expression=expression)
    assert file is not None
    with sys.stdout.buffer if str(file) == "-" else file.open("wb") as sink:
        written = service.record(lab, tap, sink, count)
    click.echo(f"{written} packets captured", err=True)
