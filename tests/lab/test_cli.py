from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import click
import pytest

from lab import cli
from lab.commands.options import print_table
from lab.errors import LabError, MissingError, PhaseError

GOOD = "name: x\nguests: [client, server]\nheaps: {h: {members: all}}\n"
#: Verbs that are about no lab.
WITHOUT_TOPOLOGY = {"init", "schema", "completion"}
BAD = "name: X\nguests: {client: {memory: 1}}\n"


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    return path


def lab(*words, **options):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "lab", *map(str, words)], capture_output=True, text=True, timeout=30, **options
    )


def test_help_is_quick_and_lists_every_verb():
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        done = lab("--help")
        times.append(time.perf_counter() - begun)
    assert done.returncode == 0
    for verb in cli.VERBS:
        assert re.search(rf"^  {verb}\s+\S", done.stdout, re.MULTILINE)
    assert min(times) <= 0.25


def test_help_imports_no_service():
    code = "import sys, lab.cli; lab.cli.run(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    for module in ("pydantic", "libvirt", "paramiko", "rich", "lab.topology", "lab.lifecycle"):
        assert f"'{module}'" not in done.stderr


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_itself_with_an_example(verb):
    with click.Context(cli.cli) as ctx:
        command = cli.cli.get_command(ctx, verb)
    commands = list(command.commands.values()) if isinstance(command, click.Group) else [command]
    assert cli.VERBS[verb].summary.endswith(".")
    for each in commands:
        assert "Example" in each.help
        assert f"lab {verb}" in each.help


def test_every_verb_that_needs_a_topology_takes_it_on_either_side(good):
    assert lab("-t", good, "validate").returncode == 0
    assert lab("validate", "-t", good).returncode == 0
    assert lab("validate", "--topology", good).returncode == 0
    assert lab("validate", good).returncode == 0
    for verb in cli.VERBS:
        with click.Context(cli.cli) as ctx:
            command = cli.cli.get_command(ctx, verb)
        if not isinstance(command, click.Group) and verb not in WITHOUT_TOPOLOGY:
            assert any("--topology" in parameter.opts for parameter in command.params), verb


def test_lab_yaml_is_found(tmp_path):
    (tmp_path / "lab.yaml").write_text(GOOD)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = lab("validate", cwd=tmp_path, env=environment)
    assert done.stdout == f"{tmp_path}/lab.yaml: valid: lab x, 2 guests, 1 network, 1 heap\n"
    (tmp_path / "lab.yaml").rename(tmp_path / "other.yaml")
    done = lab("validate", cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert f"{tmp_path} has no lab.yaml (there is other.yaml)" in done.stderr


def test_faults_are_lines_on_stderr_and_exit_code_2(bad):
    for verb in ("validate", "up", "status"):
        done = lab(verb, bad)
        assert done.returncode == 2
        assert done.stdout == ""
        assert [line.split(": ")[0] for line in done.stderr.splitlines()] == [f"{bad}:1", f"{bad}:2"]


def test_validate_json(good, bad):
    told = json.loads(lab("validate", "--json", good).stdout)
    assert told["valid"] is True
    assert list(told["topology"]["guests"]) == ["client", "server"]
    done = lab("validate", "--json", bad)
    assert done.returncode == 2
    told = json.loads(done.stdout)
    assert [fault["line"] for fault in told["faults"]] == [1, 2]
    assert told["faults"][1]["path"] == "guests.client.memory"


@pytest.mark.parametrize(
    "words",
    [
        ["validat"],
        ["--nope"],
        ["validate", "--nope"],
        ["exec"],
        ["exec", "client"],
        ["validate", "/does/not/exist.yaml"],
        ["logs", "--source", "daemon", "client"],
        ["logs", "--source", "agent"],
        ["down", "--lab", "x", "file.yaml"],
        ["image", "rm"],
        [],
    ],
)
def test_bad_requests_exit_with_2(words):
    done = lab(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_a_mistyped_verb_is_guessed():
    assert "did you mean 'validate'?" in lab("validat").stderr


@pytest.fixture
def raising(monkeypatch):
    """Make `lab validate` end with an error of choice; gives the exit code."""

    def run(error):
        def fail(*_):
            raise error

        monkeypatch.setattr("lab.commands.validate.load_topology", fail)
        return cli.run(["validate", "x.yaml"])

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LabError("no"), 1),
        (PhaseError("client", "boot", "no kernel"), 1),
        (MissingError("no qemu"), 3),
        (KeyboardInterrupt(), 130),
        (cli._TerminatedError(15), 143),
        (RuntimeError("oops"), 1),
    ],
)
def test_exit_codes(raising, error, code, capsys):
    assert raising(error) == code
    assert capsys.readouterr().err.splitlines()[-1].startswith("lab: ")


def test_an_error_says_what_why_and_what_to_do(raising, capsys):
    raising(PhaseError("client", "boot", "no kernel", console=["one", "[  1.0] two"], cure="lab logs client"))
    assert capsys.readouterr().err.splitlines() == [
        "lab: guest client: boot: no kernel",
        "  to mend it: lab logs client",
        "  last console lines of client:",
        "  | one",
        "  | [  1.0] two",
    ]


def test_a_fault_of_ours_shows_where(raising, capsys):
    raising(RuntimeError("oops"))
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "please report it: RuntimeError: oops" in err


def test_a_signal_ends_it_in_order(tmp_path):
    code = (
        "import lab.commands.validate as v, time, sys\n"
        "from lab import cli\n"
        "def slow(_):\n"
        "    try:\n        print('ready', flush=True)\n        time.sleep(20)\n"
        "    finally:\n        print('tidied', flush=True)\n"
        "v.load_topology = slow\n"
        "sys.argv = ['lab', 'validate', 'x']\n"
        "cli.main()\n"
    )
    for number, exit_code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)):
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
        assert (process.returncode, out) == (exit_code, "tidied\n")
        assert "Traceback" not in err


def test_a_reader_that_goes_away_is_no_fault(good):
    process = subprocess.Popen(
        [sys.executable, "-m", "lab", "validate", "--json", str(good)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(20) in (0, 1)
    assert err == ""


def test_exec_passes_words_streams_and_exit_code(good, monkeypatch):
    seen = {}

    def execute(topology, guest, argv, **options):
        seen.update(guest=guest, argv=list(argv), **options)
        return 42

    monkeypatch.setattr("lab.guest.execute", execute)
    assert cli.run(["-t", str(good), "exec", "client", "--", "ls", "-l", "--", "-t", "x"]) == 42
    assert (seen["guest"], seen["argv"]) == ("client", ["ls", "-l", "--", "-t", "x"])
    assert seen["stdin"] is None
    assert cli.run(["-t", str(good), "exec", "--timeout", "3", "client", "uname", "--help"]) == 42
    assert (seen["argv"], seen["timeout"]) == (["uname", "--help"], 3)


def test_up_and_down_call_the_service(good, monkeypatch, capsys):
    from lab import lifecycle

    calls = []

    def up(topology, progress, *, connect):
        calls.append(("up", topology.name, connect))
        return lifecycle.UpReport("x", True, 12.3, "tcg", ("client", "server"))

    def down(name, progress, *, connect):
        calls.append(("down", name, connect))
        return lifecycle.DownReport(name, False, 0.1)

    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(lifecycle, "up", up)
    monkeypatch.setattr(lifecycle, "down", down)
    assert cli.run(["up", str(good)]) == 0
    assert cli.run(["--connect", "test:///default", "down", "--json", str(good)]) == 0
    assert cli.run(["down", "--lab", "other"]) == 0
    assert calls == [("up", "x", None), ("down", "x", "test:///default"), ("down", "other", None)]
    out = capsys.readouterr().out
    assert "lab x is up after 12.3s (tcg): started client, server\n" in out
    assert '"changed": false' in out
    assert "lab other is not there; nothing was changed\n" in out


def test_without_root_up_says_so_and_starts_nothing(good, monkeypatch, capsys):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert cli.run(["up", str(good)]) == 3
    assert "needs root" in capsys.readouterr().err


def test_tables_are_whole_lines_where_no_terminal_is(capsys):
    print_table(("guest", "agent"), [("client", "x" * 300), ("s", None)])
    assert capsys.readouterr().out.splitlines() == [
        "guest   agent",
        "client  " + "x" * 300,
        "s       -",
    ]


def test_no_colours_where_no_terminal_is(good):
    done = lab("doctor", "--quick", good, env={**os.environ, "TERM": "xterm-256color"})
    assert "\x1b" not in done.stdout + done.stderr
    assert done.returncode in (0, 3)
