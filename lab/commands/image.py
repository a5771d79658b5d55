"""`lab image`: build, list, rm."""

from __future__ import annotations

import time
from dataclasses import asdict

import click

from lab import image as service
from lab import recipe as recipes
from lab.commands.options import (
    Invocation,
    json_option,
    need_root,
    pass_invocation,
    print_json,
    print_table,
    topology_argument,
)
from lab.progress import Progress
from lab.topology_values import MIB


@click.group()
def image() -> None:
    """Build, list and remove the images that guests boot.

    An image is built from the recipe under `image` in the topology and kept by the recipe's digest;
    labs with the same recipe share it.
    """


@image.command()
@topology_argument
@click.option("--again", is_flag=True, help="Build it even if it is there, for newer packages.")
@json_option
@pass_invocation
def build(invocation: Invocation, again: bool, as_json: bool) -> None:
    """Build the image of a topology, unless it is there.

    \b
    Examples:
      lab image build examples/hello.yaml
      lab image build --again
    """
    recipe = recipes.from_topology(invocation.load().image)
    need_root("lab image build")
    with Progress("image") as progress:
        built = service.build(recipe, progress, again=again)
    if as_json:
        print_json(asdict(built))
    else:
        click.echo(
            f"image {built.name} {built.digest[:12]}: {built.directory}, kernel {built.kernel_version}"
        )


@image.command("list")
@topology_argument
@json_option
def list_images(as_json: bool) -> None:
    """List the images that are built, newest first.

    \b
    Example:
      lab image list
    """
    images = service.find_all()
    if as_json:
        print_json([asdict(each) for each in images])
        return
    print_table(
        ("digest", "name", "kernel", "size", "built"),
        (
            (
                each.digest[:12],
                each.name,
                each.kernel_version,
                f"{each.size // MIB} MiB",
                time.strftime("%Y-%m-%d %H:%M", time.localtime(each.built)),
            )
            for each in images
        ),
    )


@image.command()
@click.argument("digests", metavar="DIGEST...", nargs=-1, required=True)
def rm(digests: tuple[str, ...]) -> None:
    """Remove images by the first characters of their digests.

    \b
    Example:
      lab image rm 3f2a9c
    """
    need_root("lab image rm")
    for digest in digests:
        removed = service.remove(digest)
        click.echo(f"removed image {removed.name} {removed.digest[:12]}")
