from __future__ import annotations

import json
import struct

import pytest

from lab import image, recipe, topology
from lab.errors import UserError
from lab.progress import Progress


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HYPERHEAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HYPERHEAP_STATE", str(tmp_path / "state"))
    return tmp_path / "cache" / "images"


def put(cache, digest, built=1.0):
    directory = cache / digest
    directory.mkdir(parents=True)
    manifest = {"name": "n", "suite": "bookworm", "packages": ["curl"], "kernel_version": "6.1", "size": 5}
    (directory / "manifest.json").write_text(json.dumps({**manifest, "built": built}))
    return directory


def test_images_are_listed_newest_first(cache):
    put(cache, "aa", built=1)
    put(cache, "bb", built=2)
    (cache / ".building-cc").mkdir()
    (cache / "dd").mkdir()
    assert [each.digest for each in image.find_all()] == ["bb", "aa"]


def test_no_images(cache):
    assert image.find_all() == []


def test_an_image_that_is_there_is_not_built(cache):
    wanted = recipe.from_topology(topology.Image(name="n", suite="bookworm", packages=()))
    assert image.find(wanted) is None
    put(cache, wanted.digest)
    assert image.build(wanted, Progress.silent()).digest == wanted.digest


def test_remove_by_the_start_of_the_digest(cache):
    put(cache, "ab12")
    put(cache, "ac34")
    with pytest.raises(UserError, match="2 images have a digest that starts with 'a'"):
        image.remove("a")
    with pytest.raises(UserError, match="0 images"):
        image.remove("ff")
    assert image.remove("ab").digest == "ab12"
    assert [each.digest for each in image.find_all()] == ["ac34"]


def test_an_image_in_use_is_not_removed(cache, tmp_path):
    directory = put(cache, "ab12")
    base = str(directory / "root.ext4").encode()
    overlay = tmp_path / "state" / "hello" / "client" / "root.qcow2"
    overlay.parent.mkdir(parents=True)
    overlay.write_bytes(b"QFI\xfb" + struct.pack(">IQI", 3, 100, len(base)) + bytes(80) + base)
    with pytest.raises(UserError, match="in use by hello"):
        image.remove("ab")


def test_a_label_needs_no_mount(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("x")
    image.make_disk(tree, tmp_path / "disk", label="HYPERHEAP", size=4 << 20)
    disk = (tmp_path / "disk").read_bytes()
    # What the initrd's init looks for: the superblock's magic and label.
    assert disk[1024 + 0x38 : 1024 + 0x3A] == b"\x53\xef"
    assert disk[1024 + 0x78 : 1024 + 0x88].rstrip(b"\0") == b"HYPERHEAP"
