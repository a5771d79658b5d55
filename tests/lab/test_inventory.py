from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lab import cli, inventory
from lab.topology_file import parse_topology

TEXT = """
name: inv
networks: [lan, storage-1]
heaps: {shared: {members: [client, server]}}
guests:
  client: {networks: [lan], groups: [web-servers, front]}
  server: {groups: front}
  other: {networks: [lan]}
"""


@pytest.fixture
def topology():
    return parse_topology(TEXT, "t.yaml")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(TEXT)
    return path


def test_groups(topology):
    assert inventory.groups_of(topology) == {
        "lab": ["client", "server", "other"],
        "network_lan": ["client", "server", "other"],
        "heap_shared": ["client", "server"],
        "web_servers": ["client"],
        "front": ["client", "server"],
        "network_storage_1": ["server"],
    }


def test_groups_are_not_part_of_what_the_lab_is(topology):
    without = parse_topology(TEXT.replace(", groups: [web-servers, front]", ""), "t.yaml")
    assert topology.guest("client").groups == ("web-servers", "front")
    assert topology.digest() == without.digest()
    assert topology.digest() != parse_topology(TEXT.replace("other:", "another:"), "t.yaml").digest()


def test_ssh_goes_through_the_labs_namespace_with_its_keys(topology):
    variables = inventory.host_variables(topology, topology.guest("client"))
    words = shlex.split(variables["ansible_ssh_common_args"])
    proxy = next(word for word in words if word.startswith("ProxyCommand="))
    assert "-m lab.proxy /run/netns/hh-inv %h %p" in proxy
    assert variables["ansible_host"] == "10.77.0.11"
    assert variables["hyperheap_heaps"] == ["shared"]
    json.dumps(variables)


def test_shared_connections_of_two_labs_do_not_meet(topology):
    other = parse_topology(TEXT.replace("name: inv", "name: inw"), "t.yaml")
    paths = {
        inventory.host_variables(each, each.guest(name))["ansible_control_path"]
        for each in (topology, other)
        for name in ("client", "server")
    }
    assert len(paths) == 4


def test_ansible_understands_it(file, repository, tmp_path):
    """As a program, which is how Ansible takes a dynamic inventory."""
    lab = tmp_path / "lab"
    lab.write_text(f'#!/bin/sh\nexec {sys.executable} -m lab "$@"\n')
    lab.chmod(0o755)
    environment = {
        **os.environ,
        "LAB": str(lab),
        "LAB_TOPOLOGY": str(file),
        "ANSIBLE_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    program = Path(sys.executable).parent / "ansible-inventory"
    argv = [str(program), "-i", str(repository / "playbooks" / "inventory.sh"), "--list"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    told = json.loads(done.stdout)
    assert told["front"]["hosts"] == ["client", "server"]
    assert told["_meta"]["hostvars"]["server"]["ansible_host"] == "10.77.0.12"


def test_the_verb(file, capsys, monkeypatch):
    assert cli.run(["inventory", "-t", str(file)]) == 0
    whole = json.loads(capsys.readouterr().out)
    monkeypatch.setenv("LAB_TOPOLOGY", str(file))
    assert cli.run(["inventory", "--list"]) == 0
    assert json.loads(capsys.readouterr().out) == whole
    assert cli.run(["inventory", "--host", "server"]) == 0
    assert json.loads(capsys.readouterr().out) == whole["_meta"]["hostvars"]["server"]
    assert cli.run(["inventory", "--host", "nobody"]) == 2
    assert cli.run(["inventory", "--list", "--host", "server"]) == 2
