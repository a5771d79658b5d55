from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from lab import lifecycle, status
from lab.errors import MissingError, PhaseError
from lab.paths import LabPaths
from lab.status import GuestStatus, LabStatus

TOPOLOGY = "name: hello\nguests: [client, server]\n"

#: Where the project is installed, pytest finds the plugin itself.
OPTIONS = [] if entry_points(group="pytest11", name="hyperheap") else ["-p", "lab.pytest_plugin"]


@pytest.fixture
def labs(monkeypatch, tmp_path):
    """What became of labs: they go up and down in words only."""
    happened = []
    monkeypatch.setenv("HYPERHEAP_RUNTIME", str(tmp_path / "run"))

    def up(topology, progress, *, connect):
        happened.append(("up", topology.name))
        console = LabPaths(topology.name).guest("client").console_log
        console.parent.mkdir(parents=True, exist_ok=True)
        console.write_text("a word on the console\n")
        return lifecycle.UpReport(topology.name, True, 1.0, "kvm", tuple(topology.guests))

    def down(name, progress, *, connect):
        happened.append(("down", name))
        return lifecycle.DownReport(name, True, 1.0)

    def collect(topology, *, connect=None):
        guests = (GuestStatus("client", "running", "kvm", (), "connected", ()),)
        return LabStatus(topology.name, "partial", "running", guests)

    monkeypatch.setattr(lifecycle, "up", up)
    monkeypatch.setattr(lifecycle, "down", down)
    monkeypatch.setattr(status, "collect", collect)
    monkeypatch.setattr("lab.api.Guest.journal", lambda *_: "a word of the agent\n")
    return happened


@pytest.fixture
def suite(pytester, labs):
    """A directory of tests with lab.yaml beside its configuration; call it to run them."""
    pytester.makefile(".yaml", lab=TOPOLOGY)
    pytester.makeini("[pytest]\n")

    def run(*options):
        return pytester.runpytest_inprocess(*OPTIONS, "-p", "no:cacheprovider", *options)

    run.pytester = pytester
    return run


def verbs(labs):
    return [verb for verb, _ in labs]


def test_the_plugin_is_light():
    code = "import sys, lab.pytest_plugin; print(*sorted(sys.modules), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name.split(".")[0] in ("lab", "libvirt", "paramiko")}
    assert loaded == {"lab", "lab.pytest_plugin"}


def test_one_lab_per_module_under_a_name_of_its_own(suite, labs):
    test = "def test_one(lab):\n    assert lab['client'].name == 'client'\ndef test_two(lab): pass\n"
    suite.pytester.makepyfile(test_a=test, test_b=test)
    suite().assert_outcomes(passed=4)
    assert verbs(labs) == ["up", "down", "up", "down"]
    names = [name for _, name in labs]
    assert names[0] == names[1] != names[2] == names[3]
    assert all(re.fullmatch(r"hello-\d+-\d+", name) and len(name) <= 24 for name in names)


def test_a_run_without_labs_starts_none(suite, labs):
    suite.pytester.makepyfile("def test(): pass")
    result = suite("--strict-markers")
    result.assert_outcomes(passed=1)
    assert labs == []


@pytest.mark.parametrize(
    "source",
    [
        "{'name': 'inline', 'guests': {'client': {'memory': '256MiB'}}}",
        "'name: inline\\nguests:\\n  client: {memory: 256MiB}\\n'",
        "'topologies/inline.yaml'",
    ],
)
def test_a_marker_gives_the_topology(suite, labs, source):
    (suite.pytester.mkdir("topologies") / "inline.yaml").write_text("name: inline\nguests: [client]\n")
    suite.pytester.makepyfile(
        f"""
        import pytest
        pytestmark = pytest.mark.lab({source})
        def test(lab):
            assert list(lab.guests) == ["client"]
        """
    )
    suite("--strict-markers").assert_outcomes(passed=1)
    assert labs[0][1].startswith("inline-")


def test_a_fixture_gives_the_topology(suite, labs):
    suite.pytester.makepyfile(
        """
        import pytest
        @pytest.fixture(scope="module")
        def lab_topology():
            return {"name": "mine", "guests": ["one"]}
        def test(lab):
            assert list(lab.guests) == ["one"]
        """
    )
    suite().assert_outcomes(passed=1)


def test_option_and_setting_give_the_topology(suite, labs):
    suite.pytester.makefile(
        ".yaml", other="name: other\nguests: [one]\n", third="name: third\nguests: [one]\n"
    )
    suite.pytester.makeini("[pytest]\nlab_topology = third.yaml\n")
    suite.pytester.makepyfile("def test(lab): assert list(lab.guests) == ['one']")
    suite("--lab-topology", "other.yaml").assert_outcomes(passed=1)
    suite().assert_outcomes(passed=1)
    assert [name.split("-")[0] for _, name in labs] == ["other", "other", "third", "third"]


def test_no_topology_says_what_to_do(suite, labs):
    (suite.pytester.path / "lab.yaml").unlink()
    suite.pytester.makepyfile("def test(lab): pass")
    result = suite()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*no topology for the fixture `lab`: mark the module*"])


def test_a_bad_topology_shows_its_faults_and_no_trace(suite, labs):
    (suite.pytester.path / "lab.yaml").write_text("name: x\nguests: {client: {memory: much}}\n")
    suite.pytester.makepyfile("def test(lab): pass")
    result = suite()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*lab.yaml:2: guests.client.memory: *"])
    assert "Traceback" not in result.stdout.str()


def test_session_scope_is_one_lab_for_all(suite, labs):
    suite.pytester.makeini("[pytest]\nlab_scope = session\n")
    suite.pytester.makeconftest(
        "import pytest\n@pytest.fixture(scope='session')\ndef prepared(lab):\n    return lab.name\n"
    )
    test = "def test(lab, prepared): assert lab.name == prepared"
    suite.pytester.makepyfile(test_a=test, test_b=test)
    suite().assert_outcomes(passed=2)
    assert verbs(labs) == ["up", "down"]


def test_modules_that_say_so_share_a_lab(suite, labs):
    test = "import pytest\npytestmark = pytest.mark.lab(scope='session')\ndef test(lab): pass\n"
    other = test.replace("lab(", "lab({'name': 'y', 'guests': ['one']}, ")
    suite.pytester.makepyfile(test_a=test, test_b=other, test_c=test)
    suite().assert_outcomes(passed=3)
    assert verbs(labs) == ["up", "up", "down", "down"]


@pytest.mark.parametrize(
    ("ini", "test"),
    [
        ("lab_scope = session", "pytestmark = pytest.mark.lab({})\ndef test(lab): pass"),
        ("lab_scope = module", "@pytest.mark.lab({})\ndef test(lab): pass"),
        ("lab_scope = galaxy", "def test(lab): pass"),
    ],
)
def test_what_would_be_ignored_is_refused(suite, labs, ini, test):
    suite.pytester.makeini(f"[pytest]\n{ini}\n")
    suite.pytester.makepyfile(f"import pytest\n{test}\n")
    assert suite().ret == pytest.ExitCode.USAGE_ERROR
    assert labs == []


def test_a_failure_shows_what_the_guests_said(suite, labs):
    suite.pytester.makepyfile(
        """
        def test(lab):
            with lab.subtest("a part"):
                assert False
        """
    )
    result = suite()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*in subtest 'a part'*",
            "*lab hello-*: subtests*",
            "*failed  a part",
            "*lab hello-*: console of client*",
            "a word on the console",
            "*lab hello-*: agent of client*",
            "a word of the agent",
            "*lab hello-*: sockets of client*",
            "*daemon does not answer*",
            "*lab hello-*: console of server (it does not run)*",
            "(nothing)",
        ]
    )
    assert verbs(labs) == ["up", "down"]


def test_a_success_shows_nothing(suite, labs):
    suite.pytester.makepyfile("def test(lab): pass")
    assert "a word" not in suite("-rA").stdout.str()


def test_a_guest_that_does_not_come_up_is_shown_and_removed(suite, labs, monkeypatch):
    real = lifecycle.up

    def up(*arguments, **options):
        real(*arguments, **options)
        raise PhaseError("server", "agent", "its agent has not registered", cure="lab logs server")

    monkeypatch.setattr(lifecycle, "up", up)
    suite.pytester.makepyfile("def test(lab): pass\ndef test_again(lab): pass")
    result = suite()
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(
        [
            "*guest server: agent: its agent has not registered*",
            "*console of client*",
            "a word on the console",
        ]
    )
    assert verbs(labs) == ["up", "down"]


def test_without_root_it_says_so(suite, labs, monkeypatch):
    def up(*_, **__):
        raise MissingError("a lab needs root", cure="sudo ...")

    monkeypatch.setattr(lifecycle, "up", up)
    suite.pytester.makepyfile("def test(lab): pass")
    result = suite()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*a lab needs root*"])


def test_keep_leaves_it_up_and_says_how_to_reach_it(suite, labs):
    suite.pytester.makepyfile("def test(lab): assert False")
    result = suite("--lab-keep")
    assert verbs(labs) == ["up"]
    name = labs[0][1]
    result.stdout.re_match_lines([r"lab -t \S+\.yaml ssh client", rf"lab down --lab {name}"])
    file = re.search(r"lab -t (\S+) ssh", result.stdout.str())[1]
    from lab import Lab

    assert Lab.from_file(file).name == name


def test_xdist_has_a_lab_per_worker(suite, labs, monkeypatch):
    pytest.importorskip("xdist")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    suite.pytester.makeconftest(
        """
        from lab import lifecycle
        lifecycle.up = lambda topology, *_, **__: lifecycle.UpReport(
            topology.name, True, 1.0, "kvm", tuple(topology.guests)
        )
        """
    )
    test = "def test(lab, worker_id): open(f'lab-of-{worker_id}', 'w').write(lab.name)"
    suite.pytester.makepyfile(test_a=test, test_b=test)
    result = suite.pytester.runpytest_subprocess(*OPTIONS, "-n2", "--dist=loadfile", "--lab-keep")
    result.assert_outcomes(passed=2)
    names = {path.read_text() for path in suite.pytester.path.glob("lab-of-gw*")}
    assert len(names) == 2
    for name in names:
        result.stdout.fnmatch_lines_random([f"lab down --lab {name}"])
