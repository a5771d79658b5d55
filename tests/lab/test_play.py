"""Playbooks through ansible-runner, against "guests" that are this machine; tests/e2e has real ones."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab import cli, inventory, paths, play
from lab.errors import LabError, UserError
from lab.progress import Progress
from lab.topology_file import parse_topology

TOPOLOGY = "name: play\nguests: {client: {groups: [web]}, server: }\n"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def topology(monkeypatch, tmp_path):
    """A lab that seems to be up, whose guests are this machine."""
    monkeypatch.setenv("HYPERHEAP_RUNTIME", str(tmp_path / "run"))
    real = inventory.host_variables

    def local(topology, guest):
        # For shape's sake: everything that a guest has, but no ssh.
        wanted = {key: value for key, value in real(topology, guest).items() if "ssh" not in key}
        return wanted | {
            "ansible_connection": "local",
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            "ansible_remote_tmp": str(tmp_path / "remote"),
        }

    monkeypatch.setattr(inventory, "host_variables", local)
    key = paths.LabPaths("play").private_key
    key.parent.mkdir(parents=True)
    key.touch()
    return parse_topology(TOPOLOGY, "t.yaml")


@pytest.fixture
def playbook(tmp_path):
    def write(text):
        path = tmp_path / "site.yml"
        path.write_text(text)
        return path

    return write


GOOD = """
- name: First
  hosts: all
  gather_facts: false
  tasks:
    - name: Change
      ansible.builtin.command: /bin/echo {{ word | default('none') }}
      register: done
    - name: Say
      ansible.builtin.debug: {msg: "said {{ done.stdout }}"}
    - name: Leave out
      ansible.builtin.command: /bin/false
      when: inventory_hostname == 'nobody'
"""
BAD = """
- name: Second
  hosts: all
  gather_facts: false
  tasks:
    - name: Fall over
      ansible.builtin.command: "sh -c 'echo why >&2; exit 3'"
      when: inventory_hostname == 'client'
    - name: Ignore
      ansible.builtin.command: /bin/false
      ignore_errors: true
"""


def test_results_events_and_progress(topology, playbook, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    events, stream = [], io.StringIO()
    with Progress("play", stream=stream) as progress:
        report = play.run(
            topology, playbook(GOOD), progress, play.Wishes(("word=hello",)), on_event=events.append
        )
    assert report.exit_code == 0, report.output
    assert [(each.name, each.ok, each.changed, each.failed, each.skipped) for each in report.hosts] == [
        ("client", 2, 1, 0, 1),
        ("server", 2, 1, 0, 1),
    ]
    kinds = [event.event for event in events if event.host in ("", "client")]
    assert kinds == "play task start changed task start ok task start skipped".split()
    said = next(event for event in events if event.message.startswith("said"))
    assert (said.play, said.task, said.message) == ("First", "Say", "said hello")
    assert said.seconds is not None
    text = stream.getvalue()
    assert "server: Change ..." in text
    assert "server: Change done" in text
    assert "client: said hello" in text
    assert not list(tmp_path.glob("hh-play-*")), "the private directory is still there"
    assert not list(home.iterdir())


def test_failures_are_told_with_their_reason(topology, playbook):
    report = play.run(topology, playbook(BAD), Progress.silent())
    client, server = report.hosts
    assert report.exit_code == 2
    assert (client.failed, server.failed, server.ignored) == (1, 0, 1)
    assert [failure.task for failure in client.failures] == ["Fall over"]
    assert client.failures[0].message == "non-zero return code\nwhy"
    assert server.failures == ()


def test_what_is_rescued_is_no_failure(topology, playbook):
    text = """
- hosts: client
  gather_facts: false
  tasks:
    - block:
        - ansible.builtin.fail: {msg: oops}
      rescue:
        - ansible.builtin.debug: {msg: saved}
"""
    report = play.run(topology, playbook(text), Progress.silent())
    (client,) = report.hosts
    assert (report.exit_code, client.rescued, client.failures) == (0, 1, ())


def test_a_killed_ansible_is_no_success(topology, playbook, monkeypatch):
    monkeypatch.setattr(play, "_run_ansible", lambda *_: SimpleNamespace(rc=None))
    assert play.run(topology, playbook(GOOD), Progress.silent()).exit_code == 1


def test_limit_and_check(topology, playbook):
    report = play.run(topology, playbook(GOOD), Progress.silent(), play.Wishes(limit="web", check=True))
    assert [(each.name, each.changed) for each in report.hosts] == [("client", 0)]


def test_a_playbook_that_is_none(topology, playbook):
    report = play.run(topology, playbook("- hosts: all\n  task: [\n"), Progress.silent())
    assert report.exit_code in (1, 4)
    assert report.hosts == ()
    assert "yaml" in report.output.lower()


def test_what_cannot_be_run(topology, playbook, tmp_path):
    with pytest.raises(UserError, match="there is no such playbook"):
        play.run(topology, tmp_path / "no.yml", Progress.silent())
    other = parse_topology("name: other\nguests: [a]\n", "t.yaml")
    with pytest.raises(LabError, match="lab other is not up"):
        play.run(other, playbook(GOOD), Progress.silent())


def test_an_interrupt_ends_ansible_first(topology, playbook, tmp_path):
    mark = tmp_path / "begun"
    slow = playbook(
        f"- hosts: client\n  gather_facts: false\n  tasks:\n"
        f"    - ansible.builtin.command: sh -c 'echo $$ >{mark}; sleep 100; echo no >{mark}'\n"
    )

    def on_event(event):
        if event.event == "start":
            threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        play.run(topology, slow, Progress.silent(), on_event=on_event)
    if mark.exists():
        assert not _is_running(int(mark.read_text()))


def _is_running(pid):
    try:
        return "sleep" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_the_verb(topology, playbook, tmp_path, monkeypatch, capsys):
    file = tmp_path / "lab.yaml"
    file.write_text(TOPOLOGY)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    words = ["-t", str(file), "play", str(playbook(GOOD))]
    assert cli.run([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["hosts"][0]["name"] == "client"
    assert cli.run([*words, "--events", "--limit", "client"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events if event.get("task") == "Say"] == ["task", "start", "ok"]
    words[-1] = str(playbook(BAD))
    assert cli.run(words) == 2
    captured = capsys.readouterr()
    assert "client: Fall over: non-zero return code\nwhy" in captured.err
    assert "site.yml: ended with 2 after" in captured.out


def test_reports_are_plain_data():
    assert asdict(play.PlayReport("l", "p", 0, 1.0, (), ""))["hosts"] == ()
