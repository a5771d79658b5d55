from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from local_session import LocalSession

from lab import cli, places, transfer
from lab.errors import LabError, UserError
from lab.places import Place


@pytest.fixture
def guest(tmp_path):
    """A session to a guest whose home is tmp_path/guest."""
    (tmp_path / "guest").mkdir()
    return LocalSession("client", tmp_path / "guest")


@pytest.fixture
def tree(tmp_path):
    """A directory with everything that a copy should keep."""
    top = tmp_path / "tree"
    (top / "sub" / "empty").mkdir(parents=True)
    (top / "plain").write_bytes(bytes(range(256)) * 1000)
    (top / "tool").write_text("#!/bin/sh\n")
    (top / "tool").chmod(0o755)
    (top / "sub" / "Ä b'\"$x").write_text("odd")
    os.utime(top / "plain", (1_000_000_000, 1_000_000_000))
    (top / "link").symlink_to("sub/nowhere")
    os.link(top / "plain", top / "same")
    return top


def look(top):
    """What stands below a directory: kinds, modes and contents."""
    found = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        elif path.is_dir():
            found[name] = ("directory", None)
        else:
            found[name] = (path.stat().st_mode & 0o777, path.read_bytes())
    return found


def test_a_tree_goes_in_and_comes_back(guest, tree, tmp_path):
    transfer.put(guest, tree, "copy")
    assert look(guest.home / "copy") == look(tree)
    transfer.get(guest, "copy", tmp_path / "back")
    assert look(tmp_path / "back") == look(tree)
    assert (tmp_path / "back" / "plain").stat().st_mtime == 1_000_000_000


def test_a_tree_goes_from_guest_to_guest(guest, tree, tmp_path):
    (tmp_path / "other").mkdir()
    other = LocalSession("server", tmp_path / "other")
    transfer.put(guest, tree, "copy")
    transfer.relay(guest, "copy", other, "again")
    assert look(other.home / "again") == look(tree)


@pytest.mark.parametrize(
    ("target", "where"),
    [
        ("", "plain"),
        (".", "plain"),
        ("new", "new"),
        ("directory", "directory/plain"),
        ("directory/", "directory/plain"),
        ("deep/er/", "deep/er/plain"),
        ("deep/er", "deep/er"),
    ],
)
def test_where_a_copy_goes(guest, tree, tmp_path, target, where):
    (guest.home / "directory").mkdir()
    transfer.put(guest, tree / "plain", target)
    assert (guest.home / where).read_bytes() == (tree / "plain").read_bytes()


@pytest.mark.parametrize(
    ("target", "where"),
    [
        ("/", "plain"),
        ("/new", "new"),
        ("/directory", "directory/plain"),
        ("/directory/", "directory/plain"),
        ("/deep/er/", "deep/er/plain"),
        ("/deep/er", "deep/er"),
    ],
)
def test_where_a_copy_goes_on_the_host(guest, tree, tmp_path, target, where):
    transfer.put(guest, tree / "plain", "")
    (tmp_path / "host" / "directory").mkdir(parents=True)
    transfer.get(guest, "plain", f"{tmp_path}/host{target}")
    assert (tmp_path / "host" / where).is_file()


def test_an_existing_directory_receives_a_directory_beside_what_it_has(guest, tree):
    (guest.home / "tree").mkdir()
    (guest.home / "tree" / "mine").touch()
    transfer.put(guest, tree, "")
    assert {"mine", "plain", "sub"} <= {path.name for path in (guest.home / "tree").iterdir()}


def test_a_link_that_is_named_is_followed(guest, tree, tmp_path):
    (tmp_path / "to-plain").symlink_to(tree / "plain")
    transfer.put(guest, tmp_path / "to-plain", "got")
    assert (guest.home / "got").is_file()
    assert not (guest.home / "got").is_symlink()
    (guest.home / "alias").symlink_to("got")
    transfer.get(guest, "alias", tmp_path / "back")
    assert not (tmp_path / "back").is_symlink()
    assert (tmp_path / "back").stat().st_size == 256_000


def test_what_is_not_there(guest, tmp_path):
    with pytest.raises(UserError, match="no such file or directory on the host"):
        transfer.put(guest, tmp_path / "absent", "x")
    with pytest.raises(LabError, match=r"guest client: .*absent.*No such file"):
        transfer.get(guest, "absent", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_written(guest, tree, tmp_path):
    (guest.home / "file").touch()
    with pytest.raises(LabError, match="guest client: "):
        transfer.put(guest, tree, "file/below")
    transfer.put(guest, tree, "copy")
    (tmp_path / "blocked").touch()
    with pytest.raises(LabError, match="blocked"):
        transfer.get(guest, "copy", tmp_path / "blocked" / "below")


def test_a_device_of_the_host_is_written_to_and_stays(guest, tree):
    transfer.put(guest, tree / "plain", "x")
    transfer.get(guest, "x", "/dev/null")
    assert Path("/dev/null").is_char_device()


def test_the_count_rises(guest, tree, tmp_path):
    counts = []
    transfer.put(guest, tree, "copy", counts.append)
    transfer.get(guest, "copy", tmp_path / "back", counts.append)
    assert counts
    assert max(counts) >= 256_000


class Liar(LocalSession):
    """A guest that sends what it likes."""

    def __init__(self, home, *members):
        super().__init__("liar", home)
        stream = io.BytesIO()
        with tarfile.open(mode="w", fileobj=stream) as archive:
            for name, kind, link in members:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, link
                member.size = 4 if kind == tarfile.REGTYPE else 0
                archive.addfile(member, io.BytesIO(b"evil") if member.size else None)
        (home / "archive").write_bytes(stream.getvalue())

    def start(self, argv, **streams):
        return super().start(["cat", "archive"], **streams)


@pytest.mark.parametrize(
    "members",
    [
        [("x", tarfile.DIRTYPE, ""), ("x/../../evil", tarfile.REGTYPE, "")],
        [("/x/evil", tarfile.REGTYPE, "")],
        [("x", tarfile.SYMTYPE, ".."), ("x/evil", tarfile.REGTYPE, "")],
        [("x", tarfile.DIRTYPE, ""), ("x/up", tarfile.SYMTYPE, "../.."), ("x/up/evil", tarfile.REGTYPE, "")],
        [("x", tarfile.DIRTYPE, ""), ("x/hard", tarfile.LNKTYPE, "../../secret")],
    ],
)
def test_nothing_is_written_outside_the_target(tmp_path, members):
    (tmp_path / "guest").mkdir()
    (tmp_path / "secret").write_text("secret")
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    with pytest.raises(LabError):
        transfer.get(Liar(tmp_path / "guest", *members), "x", inner / "x")
    assert not list(tmp_path.rglob("evil"))
    assert not (inner / "x" / "hard").exists()


def test_nonsense_is_no_archive(tmp_path):
    (tmp_path / "guest").mkdir()
    liar = Liar(tmp_path / "guest")
    (liar.home / "archive").write_bytes(b"nonsense" * 1000)
    with pytest.raises(LabError, match="no archive"):
        transfer.get(liar, "x", tmp_path / "x")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("client:/etc/hosts", Place("client", "/etc/hosts")),
        ("web-1:", Place("web-1", "")),
        ("client:a:b", Place("client", "a:b")),
        ("./client:x", Place(None, "./client:x")),
        ("/tmp/a:b", Place(None, "/tmp/a:b")),
        ("plain", Place(None, "plain")),
        ("C:\\x", Place(None, "C:\\x")),
    ],
)
def test_places(text, place):
    assert places.parse(text) == place
    assert str(place) == text


# --- The verb


@pytest.fixture
def verb(tmp_path, monkeypatch):
    """`lab cp` in a lab whose guests are directories of tmp_path; gives the exit code."""
    (tmp_path / "lab.yaml").write_text("name: x\nguests: [client, server]\n")
    monkeypatch.chdir(tmp_path)

    def open_session(topology, name):
        home = tmp_path / topology.guest(name).name
        home.mkdir(exist_ok=True)
        return LocalSession(name, home)

    monkeypatch.setattr("lab.guest.open_session", open_session)
    return lambda *words: cli.run(["cp", *words])


def test_cp_of_several(verb, tree, tmp_path):
    (tmp_path / "one").write_text("1")
    assert verb("one", "tree", "client:in") == 0
    assert (tmp_path / "client" / "in" / "one").read_text() == "1"
    assert look(tmp_path / "client" / "in" / "tree") == look(tree)
    assert verb("client:in/one", "one", "server:") == 0
    assert verb("server:one", "client:in/tree", "back") == 0
    assert (tmp_path / "back" / "one").read_text() == "1"
    assert look(tmp_path / "back" / "tree") == look(tree)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("one", "two"), 2, "both places are on the host"),
        (("absent", "client:x"), 2, "no such file"),
        (("client:absent", "x"), 1, "guest client: "),
        (("x", "nobody:x"), 2, "its guests are client, server"),
        (("x",), 2, "TARGET"),
    ],
)
def test_cp_says_what_is_wrong(verb, capsys, words, code, said):
    assert verb(*words) == code
    assert said in capsys.readouterr().err
