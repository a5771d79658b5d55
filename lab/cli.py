"""The command `lab`: finds the verb, runs it, and turns every outcome into an exit code.

Exit codes: 0 done; 1 failed; 2 the request or its input is wrong, nothing was started; 3 this machine
lacks something; 130 interrupted (143 terminated). `lab exec` and `lab ssh` end with the code of the command.

A verb's module is imported when the verb is used, so that `lab --help` costs no more than click.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NamedTuple

import click
from click.shell_completion import CompletionItem

from lab import __version__
from lab.commands.options import Invocation, topology_option
from lab.errors import EXIT_FAILED, EXIT_INTERRUPTED, LabError

EXIT_TERMINATED = 143


class Verb(NamedTuple):
    """Where a verb lives (`module:function`), and its line in `lab --help`."""

    target: str
    summary: str


VERBS: dict[str, Verb] = {
    "init": Verb("lab.commands.init:init", "Write a topology to start from, with comments."),
    "doctor": Verb("lab.commands.doctor:doctor", "See whether this machine can run labs, and what to mend."),
    "validate": Verb("lab.commands.validate:validate", "Check a topology file and start nothing."),
    "schema": Verb("lab.commands.schema:schema", "Print the JSON Schema of topology files, for editors."),
    "graph": Verb("lab.commands.graph:graph", "Draw the lab: guests, networks, heaps, and live paths."),
    "image": Verb("lab.commands.image:image", "Build, list and remove the images that guests boot."),
    "up": Verb("lab.commands.up:up", "Bring a lab up and wait until every guest is ready."),
    "down": Verb("lab.commands.down:down", "Take a lab down and leave nothing of it behind."),
    "status": Verb("lab.commands.status:status", "Show what each guest of the lab is doing."),
    "exec": Verb("lab.commands.exec:execute", "Run a command in a guest."),
    "ssh": Verb("lab.commands.ssh:ssh", "Open a shell in a guest."),
    "shell": Verb("lab.commands.shell:shell", "Run a command, or lines, in several guests at once."),
    "cp": Verb("lab.commands.cp:cp", "Copy files between the host and guests."),
    "sync": Verb("lab.commands.sync:sync", "Make directories of host and guest alike, with rsync."),
    "ssh-config": Verb("lab.commands.ssh_config:ssh_config", "Print the guests as hosts for OpenSSH."),
    "console": Verb("lab.commands.console:console", "Attach this terminal to a guest's serial console."),
    "logs": Verb("lab.commands.logs:logs", "Show what a guest, its agent or the lab's daemons logged."),
    "sockets": Verb("lab.commands.sockets:sockets", "List the connections that the registry knows."),
    "inventory": Verb("lab.commands.inventory:inventory", "Print the lab as an inventory of Ansible."),
    "play": Verb("lab.commands.play:play", "Run an Ansible playbook against the guests."),
    "completion": Verb("lab.commands.completion:completion", "Print the completion of a shell."),
    "top": Verb("lab.commands.top:top", "Watch what the guests use."),
    "stats": Verb("lab.commands.stats:stats", "Show what each guest has used."),
    "events": Verb("lab.commands.events:events", "Print what happens in the lab, as JSON lines."),
    "metrics": Verb("lab.commands.metrics:metrics", "Print or serve the lab's counters for Prometheus."),
    "link": Verb("lab.commands.link:link", "Impair, cut and mend a guest's link to a network."),
    "forward": Verb(
        "lab.commands.forward:forward", "Publish a port of a guest on this host's loopback address."
    ),
    "capture": Verb("lab.commands.capture:capture", "Record the packets of a link."),
    "demo": Verb(
        "lab.commands.demo:demo", "Run unmodified programs in a lab and show what carried their bytes."
    ),
}


class LazyGroup(click.Group):
    """A group whose verbs are imported when they are used. Help is printed from the summaries."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order in which a newcomer meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb, or None if there is no such verb."""
        if cmd_name not in VERBS:
            return None
        is_completing = ctx.resilient_parsing
        if is_completing:
            from lab import completion

            completion.put_off_services()
        module, _, function = VERBS[cmd_name].target.partition(":")
        command = getattr(importlib.import_module(module), function)
        assert isinstance(command, click.Command)
        if is_completing:
            completion.teach(command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The verbs that begin so, with their summaries; the options of `lab` after a hyphen."""
        verbs = [
            CompletionItem(name, help=verb.summary)
            for name, verb in VERBS.items()
            if name.startswith(incomplete)
        ]
        return [*verbs, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, without importing any of them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a guess at what an unknown verb was meant to be."""
        verb = args[0]
        if self.get_command(ctx, verb) is None and not verb.startswith("-"):
            from lab.topology_values import did_you_mean

            ctx.fail(f"there is no verb {verb!r}{did_you_mean(verb, VERBS)}; verbs are {', '.join(VERBS)}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 bad request or topology, 3 this machine lacks something, "
    "130 interrupted.",
)
@topology_option
@click.option(
    "--connect",
    metavar="URI",
    envvar="LAB_CONNECT",
    help="Use this libvirt (such as qemu:///system) instead of a private one.",
)
@click.version_option(__version__, prog_name="lab", message="%(prog)s (hyperheap) %(version)s")
@click.pass_context
def cli(ctx: click.Context, connect: str | None) -> None:
    """Bring up a lab of virtual machines whose TCP streams move through shared memory.

    \b
    Try it:
      lab doctor
      lab up examples/hello.yaml
      lab -t examples/hello.yaml exec client -- ping -c 1 server
      lab down examples/hello.yaml

    Without --topology, verbs use the file that LAB_TOPOLOGY names in the environment, or lab.yaml in the
    current directory. `lab VERB --help` explains a verb, with examples.
    """
    ctx.ensure_object(Invocation).connect = connect
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        ctx.color = False


def run(arguments: Sequence[str] | None = None) -> int:
    """Run `lab` with these arguments (default: the process's) and return its exit code."""
    try:
        result = cli.main(args=arguments, prog_name="lab", standalone_mode=False, obj=Invocation())
        sys.stdout.flush()
    except LabError as error:
        complain(str(error))
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        return EXIT_INTERRUPTED
    except _TerminatedError:
        complain("terminated")
        return EXIT_TERMINATED
    except BrokenPipeError:
        # Whoever read our output has gone; keep the interpreter from complaining about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        traceback.print_exc()
        complain(f"this is a fault of hyperheap itself, please report it: {type(error).__name__}: {error}")
        return EXIT_FAILED
    return result if isinstance(result, int) else 0


def complain(text: str) -> None:
    """Write an error to stderr. Faults of a file keep their own `file:line:` beginning."""
    is_located = text.partition(" ")[0].count(":") >= 2
    click.echo(text if is_located else f"lab: {text}", err=True, color=False)


class _TerminatedError(BaseException):
    """SIGTERM or SIGHUP arrived: unwinds like an interrupt, so that what was begun is left in order."""


def _terminate(signal_number: int, _frame: FrameType | None) -> None:
    raise _TerminatedError(signal_number)


def main() -> None:
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGHUP, _terminate)
    sys.exit(run())
