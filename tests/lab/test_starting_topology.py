from __future__ import annotations

import re

import pytest

from lab import cli, starting_topology
from lab.errors import UserError
from lab.topology_file import load_topology, parse_topology


@pytest.mark.parametrize(
    ("directory", "name"),
    [("My Project_2", "my-project-2"), ("1234", "lab"), ("-", "lab"), ("x" * 30, "x" * 24), ("ünï", "n")],
)
def test_the_lab_is_called_as_its_directory(tmp_path, directory, name):
    (tmp_path / directory).mkdir()
    file = tmp_path / directory / "lab.yaml"
    assert starting_topology.write(file).name == name
    assert load_topology(file).name == name


def test_what_is_commented_out_is_valid_too(tmp_path):
    file = tmp_path / "lab.yaml"
    starting_topology.write(file, "x")
    text = re.sub(r"^( *)# ([a-z-]+: .*|  after-bytes: .*)$", r"\1\2", file.read_text(), flags=re.MULTILINE)
    assert text != file.read_text()
    topology = parse_topology(text.replace("# policy:", "policy:"), "x")
    assert topology.guest("server").shim == "all"
    assert topology.policy.upgrade == "after"


def test_nothing_is_overwritten(tmp_path):
    file = tmp_path / "lab.yaml"
    file.write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        starting_topology.write(file)
    assert file.read_text() == "mine"


def test_the_verb(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["init", "--name", "demo"]) == 0
    assert capsys.readouterr().out == "wrote lab.yaml: lab demo; start it with `lab up`\n"
    assert cli.run(["validate"]) == 0
    assert cli.run(["init"]) == 2
    assert cli.run(["init", "--name", "No Name", "other.yaml"]) == 2
    assert cli.run(["init", str(tmp_path / "no" / "x.yaml")]) == 2
    assert not (tmp_path / "other.yaml").exists()
    assert cli.run(["init", "other.yaml"]) == 0
    assert "lab up other.yaml" in capsys.readouterr().out
