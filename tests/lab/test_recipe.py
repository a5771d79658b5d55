from __future__ import annotations

import dataclasses

from lab import recipe
from lab.topology import Image


def make(*packages, name="hello", suite="bookworm"):
    return recipe.from_topology(Image(name=name, suite=suite, packages=packages))


def test_digest_is_that_of_the_meaning():
    assert make("curl", "redis").digest == make("redis", "curl", "curl").digest
    assert make("curl", name="other").digest == make("curl").digest, "a name is not part of an image"
    assert make("systemd").digest == make().digest, "every image has systemd"
    assert len(make().digest) == 64


def test_digest_changes_with_what_shapes_the_image():
    one = make("curl")
    assert make("curl", "redis").digest != one.digest
    assert make("curl", suite="trixie").digest != one.digest
    assert dataclasses.replace(one, format=one.format + 1).digest != one.digest
    assert dataclasses.replace(one, modules=one.modules[:-1]).digest != one.digest
    changed = ((one.files[0][0], "0" * 64), *one.files[1:])
    assert dataclasses.replace(one, files=changed).digest != one.digest


def test_every_file_that_shapes_the_image_counts():
    assert [name for name, _ in make().files] == ["customize", "headers", "init.c"]
