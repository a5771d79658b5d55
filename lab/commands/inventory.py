"""`lab inventory`."""

from __future__ import annotations

import click

from lab import inventory as service
from lab.commands.options import Invocation, pass_invocation, print_json, topology_option
from lab.errors import UserError


@click.command()
@topology_option
@click.option("--list", "is_list", is_flag=True, help="All groups and the variables of all guests.")
@click.option("--host", "guest", metavar="GUEST", help="The variables of one guest.")
@pass_invocation
def inventory(invocation: Invocation, is_list: bool, guest: str | None) -> None:
    """Print the lab as an inventory of Ansible, in JSON.

    It has the options that Ansible's dynamic inventories have; --list is meant if none is given. Guests are
    in the groups `lab`, `network_NAME`, `heap_NAME`, and in those under their `groups` in the topology, where
    hyphens become underscores. The lab need not be up.

    playbooks/inventory.sh calls this verb: Ansible takes it as it is, and finds the topology by
    $LAB_TOPOLOGY.

    \b
    Examples:
      lab inventory --list
      lab inventory --host client
      LAB_TOPOLOGY=examples/hello.yaml ansible -i playbooks/inventory.sh heap_shared -m ping
    """
    if is_list and guest is not None:
        raise UserError("both --list and --host were given; give one of them")
    topology = invocation.load()
    if guest is not None:
        print_json(service.host_variables(topology, topology.guest(guest)))
    else:
        print_json(service.make_list(topology))
