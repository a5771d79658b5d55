"""`lab link`: set, reset, down, up, show."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from lab import impairment
from lab import link as service
from lab.commands.options import (
    Invocation,
    json_option,
    need_root,
    pass_invocation,
    print_json,
    print_table,
    topology_argument,
    topology_option,
)


@click.group()
@topology_option
def link() -> None:
    """Impair, cut and mend a guest's link to a network while the lab runs.

    A link is named GUEST:NETWORK; GUEST alone will do for a guest on one network. It keeps what it was given
    until it is reset or its guest is started anew. Connections in shared memory do not pass here: impair them
    by keeping them on the network (`policy: {upgrade: never}`).
    """


@link.command("set", context_settings={"ignore_unknown_options": True})
@topology_option
@click.option(
    "--direction",
    type=click.Choice(["both", "to-guest", "from-guest"]),
    default="both",
    show_default=True,
    help="Which frames: those that the guest gets, those that it sends, or both, each with all of it.",
)
@json_option
@click.argument("name", metavar="GUEST:NETWORK")
@click.argument("values", metavar="KEY=VALUE...", nargs=-1, required=True)
@pass_invocation
def set_(invocation: Invocation, name: str, values: tuple[str, ...], direction: str, as_json: bool) -> None:
    """Delay, lose or slow down the frames of a link.

    delay=20ms jitter=5ms loss=1% rate=10mbit, each alone or together. What is not named stays as it is; 0
    takes one away. By default it is done to both directions, so a delay of 20ms makes a round trip 40 ms
    longer. loss counts frames as the guest hands them over, which for bulk TCP are up to 64 KiB.

    \b
    Examples:
      lab link set client:lan delay=20ms loss=1% rate=10mbit
      lab link set client:lan --direction to-guest rate=1mbit
      lab link set client:lan loss=0
    """
    topology = invocation.load()
    parsed = impairment.parse(values)
    found = service.find(topology, name)
    need_root("lab link")
    directions = impairment.DIRECTIONS if direction == "both" else (direction,)
    status = service.impair(topology, found, parsed, directions=directions, connect=invocation.connect)
    if as_json:
        print_json(_as_json(status))
    else:
        click.echo(f"link {status.guest}:{status.network}: {_describe(status)}")


@link.command()
@topology_option
@click.argument("name", metavar="GUEST:NETWORK")
@pass_invocation
def reset(invocation: Invocation, name: str) -> None:
    """Take every impairment from a link, and plug it in.

    \b
    Example:
      lab link reset client:lan
    """
    topology = invocation.load()
    found = service.find(topology, name)
    need_root("lab link")
    service.reset(topology, found, invocation.connect)
    click.echo(f"link {found}: up, nothing impairs it")


@link.command()
@topology_option
@click.argument("name", metavar="GUEST:NETWORK")
@pass_invocation
def down(invocation: Invocation, name: str) -> None:
    """Pull a link's cable out: the guest loses the carrier, and no frame passes.

    With its first link down, a guest is out of reach of `lab exec` and `lab ssh`; `lab console` still works.

    \b
    Example:
      lab link down client:lan
    """
    _set_carrier(invocation, name, False)


@link.command()
@topology_option
@click.argument("name", metavar="GUEST:NETWORK")
@pass_invocation
def up(invocation: Invocation, name: str) -> None:
    """Plug a link's cable in again. Its impairments are as they were.

    \b
    Example:
      lab link up client:lan
    """
    _set_carrier(invocation, name, True)


def _set_carrier(invocation: Invocation, name: str, wanted: bool) -> None:
    topology = invocation.load()
    found = service.find(topology, name)
    need_root("lab link")
    service.set_carrier(topology, found, wanted, invocation.connect)
    click.echo(f"link {found}: {'up' if wanted else 'down'}")


@link.command()
@topology_argument
@json_option
@pass_invocation
def show(invocation: Invocation, as_json: bool) -> None:
    """List the links of the lab and what impairs each.

    `by` is netem where the kernel does it, relay where the kernel has no netem and a process does.

    \b
    Examples:
      lab link show
      lab link show --json
    """
    statuses = service.show(invocation.load(), invocation.connect)
    if as_json:
        print_json([_as_json(status) for status in statuses])
        return
    print_table(
        ("link", "state", "to guest", "from guest", "by", "interface"),
        (
            (
                f"{each.guest}:{each.network}",
                each.state,
                each.impairment.to_guest.words(),
                each.impairment.from_guest.words(),
                each.by,
                each.tap,
            )
            for each in statuses
        ),
    )


def _describe(status: service.LinkStatus) -> str:
    both = status.impairment
    if both.to_guest == both.from_guest:
        words = both.to_guest.words() + ("" if both.is_none() else " each way")
    else:
        words = f"to the guest {both.to_guest.words()}, from it {both.from_guest.words()}"
    return f"{status.state}, {words}" + (f" (by {status.by})" if status.by else "")


def _as_json(status: service.LinkStatus) -> dict[str, Any]:
    """Seconds, shares from 0 to 1, bits per second."""
    return asdict(status)
