from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest

from lab import cli

TOPOLOGY = "name: x\nguests: {client: , server: {memory: 5}}\nheaps: {h: {members: all}}\n"


@pytest.fixture
def complete(tmp_path):
    """What is offered after these words, the last of which is being typed."""
    (tmp_path / "lab.yaml").write_text(TOPOLOGY)

    def run(*words, directory=tmp_path):
        environment = {
            **os.environ,
            "_LAB_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["lab", *words]),
            "COMP_CWORD": str(len(words)),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        argv = [sys.executable, "-c", "import sys; sys.argv = ['lab']; from lab.cli import main; main()"]
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=30, env=environment, cwd=directory
        )
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    return run


def test_verbs(complete):
    assert complete("va") == ["validate"]
    assert set(complete("")) == set(cli.VERBS)
    assert complete("--conn") == ["--connect"]


@pytest.mark.parametrize("verb", ["exec", "ssh", "console", "logs"])
def test_guests_come_from_the_topology(complete, verb):
    """Even from one that is not valid yet."""
    assert complete(verb, "") == ["client", "server"]
    assert complete(verb, "s") == ["server"]


def test_verbs_of_verbs(complete):
    assert complete("link", "se") == ["set"]
    assert complete("link", "set", "c") == ["client"]
    assert complete("shell", "-g", "s") == ["server"]


def test_the_topology_that_is_named(complete, tmp_path):
    (tmp_path / "other.yaml").write_text("name: y\nguests: [one, two]\n")
    assert complete("-t", "other.yaml", "exec", "") == ["one", "two"]
    assert complete("exec", "-t", "other.yaml", "t") == ["two"]


def test_without_a_topology_nothing_is_offered(complete, tmp_path):
    (tmp_path / "empty").mkdir()
    assert complete("exec", "", directory=tmp_path / "empty") == []
    (tmp_path / "lab.yaml").write_text("guests: [\n")
    assert complete("exec", "") == []
    (tmp_path / "lab.yaml").write_text("- 1\n")
    assert complete("exec", "") == []


def test_options_and_their_values(complete):
    assert complete("logs", "--source", "d") == ["daemon"]
    assert "--topology" in complete("up", "--")


def test_it_is_quick(complete):
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        complete("exec", "")
        times.append(time.perf_counter() - begun)
    assert min(times) <= 0.4


def test_no_service_is_imported_for_it():
    code = (
        "import sys, lab.cli, click\n"
        "with click.Context(lab.cli.cli, resilient_parsing=True) as ctx:\n"
        "    for verb in ('exec', 'ssh', 'up', 'status', 'play'): lab.cli.cli.get_command(ctx, verb)\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert not {"paramiko", "libvirt", "ansible_runner"} & set(done.stdout.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_are_the_shells(shell, capsys, tmp_path):
    assert cli.run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_LAB_COMPLETE={shell}_complete" in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here to parse it")
    path = tmp_path / "script"
    path.write_text(script)
    subprocess.run([shell, "-n", str(path)], check=True, timeout=10)


def test_an_unknown_shell(capsys):
    assert cli.run(["completion", "tcsh"]) == 2
