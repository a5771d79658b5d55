"""Playbooks against real guests: by Ansible's ssh, through the lab's namespace, with the lab's keys."""

from __future__ import annotations

import json
import time

import pytest

from lab import status

PREFIX = "/opt/hyperheap-ansible"
UNIT = "hyperheap-agent-ansible"


@pytest.fixture
def bare(hello_lab):
    """The outsider without the agent of its tools disk, as if somebody else had made it."""
    hello_lab.run("outsider", "systemctl", "stop", "hyperheap-agent")
    yield "outsider"
    script = f"""
        systemctl disable --now {UNIT}; rm -rf {PREFIX} /etc/systemd/system/{UNIT}.service
        systemctl daemon-reload; rmmod hyperheap; insmod /opt/hyperheap/lib/hyperheap.ko
        systemctl start hyperheap-agent"""
    hello_lab.run("outsider", "sh", "-c", script, check=False)
    _await_agent(hello_lab, "outsider")


def _await_agent(hello_lab, guest):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        told = {each.name: each.agent for each in status.collect(hello_lab.topology).guests}
        if told[guest] == "connected":
            return
        time.sleep(0.2)
    pytest.fail(f"the agent of {guest} is not back: {told[guest]}")


def _play(hello_lab, guest):
    variables = {"hyperheap_prefix": PREFIX, "hyperheap_unit": UNIT, "hyperheap_link": False}
    words = ["--json", "--limit", guest, "-e", json.dumps(variables)]
    done = hello_lab.cli("play", "playbooks/agent.yml", *words)
    assert done.returncode == 0, done.stderr.decode()
    (result,) = json.loads(done.stdout)["hosts"]
    assert result["name"] == guest
    return result


@pytest.mark.timeout(300)
def test_the_agent_is_installed_once(hello_lab, bare):
    """A second run changes nothing, and the agent that runs is the one that was installed."""
    assert _play(hello_lab, bare)["changed"] > 0
    _await_agent(hello_lab, bare)
    show = ["systemctl", "show", "--value", "--property=MainPID", UNIT]
    pid = hello_lab.run(bare, *show).stdout.decode().strip()
    environment = hello_lab.run(bare, "cat", f"/proc/{pid}/environ").stdout
    assert f"PYTHONPATH={PREFIX}/current/python".encode() in environment.split(b"\0")
    again = _play(hello_lab, bare)
    assert (again["changed"], again["failed"]) == (0, 0)
    assert hello_lab.run(bare, *show).stdout.decode().strip() == pid
