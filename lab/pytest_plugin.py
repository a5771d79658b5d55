"""Labs for tests: the fixture `lab`, and reports that show what the guests said. docs/pytest.md.

pytest loads this module in every run of everybody who has hyperheap installed: it imports nothing but pytest
until a test asks for a lab.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pytest

if TYPE_CHECKING:
    from lab.api import Lab
    from lab.testing import Keeper

Scope = Literal["session", "module", "function"]

#: What a topology can be given as: a file, its text, or its data.
Source = str | Path | Mapping[str, Any]

_SCOPES = ("session", "module", "function")

_keeper = pytest.StashKey["Keeper"]()
_kept = pytest.StashKey[list[tuple[str, str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """--lab-keep, --lab-topology, and their settings in pytest's configuration."""
    group = parser.getgroup("hyperheap", "labs of virtual machines (hyperheap)")
    group.addoption(
        "--lab-keep", action="store_true", help="leave labs up after the tests, and say how to reach them"
    )
    group.addoption("--lab-topology", metavar="FILE", help="topology of the lab (default: ini lab_topology)")
    parser.addini("lab_topology", "topology file of the fixture `lab`, seen from the configuration file")
    parser.addini(
        "lab_scope", "how long a lab of the fixture `lab` lives: session, module, function", default="module"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        'lab(topology=None, *, scope="module"): what the fixture `lab` of this module is: a topology file '
        '(seen from the module), or its data as a dict; with scope="session" modules with the same topology '
        "share it (hyperheap)",
    )
    if config.getini("lab_scope") not in _SCOPES:
        raise pytest.UsageError(f"lab_scope is {config.getini('lab_scope')!r}; valid: {', '.join(_SCOPES)}")
    config.stash[_kept] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse markers that the fixture would not see."""
    scope = config.getini("lab_scope")
    for item in items:
        marker = item.get_closest_marker("lab")
        if marker is None or scope == "function":
            continue
        if scope == "session":
            raise pytest.UsageError(
                f"{item.nodeid}: with lab_scope = session all tests share one lab: no marker"
            )
        module = item.getparent(pytest.Module)
        if module is None or marker != module.get_closest_marker("lab"):
            raise pytest.UsageError(
                f"{item.nodeid}: the lab is the module's: `pytestmark = pytest.mark.lab(...)` at its top"
            )


def _choose_scope(fixture_name: str, config: pytest.Config) -> Scope:  # noqa: ARG001 - pytest's names
    return cast(Scope, config.getini("lab_scope"))


@pytest.fixture(scope=_choose_scope)
def lab_topology(request: pytest.FixtureRequest) -> Source:
    """The topology of the fixture `lab`; override it to give another: a path, YAML text, or a dict.

    Unless overridden: what the marker `lab` says, else --lab-topology, else the setting lab_topology, else
    lab.yaml beside the configuration file.
    """
    config = request.config
    marker = request.node.get_closest_marker("lab")
    if marker is not None and (marker.args or "topology" in marker.kwargs):
        given: Source = marker.args[0] if marker.args else marker.kwargs["topology"]
        if isinstance(given, str | Path) and "\n" not in str(given):
            return Path(request.path).parent / given
        return given
    if option := config.getoption("lab_topology"):
        return config.invocation_params.dir / str(option)
    beside = config.inipath.parent if config.inipath else config.rootpath
    if setting := str(config.getini("lab_topology")):
        return beside / setting
    if (beside / "lab.yaml").is_file():
        return beside / "lab.yaml"
    pytest.fail(
        "no topology for the fixture `lab`: mark the module with pytest.mark.lab(FILE), set lab_topology in "
        "pytest's configuration, or give --lab-topology FILE",
        pytrace=False,
    )


@pytest.fixture(scope=_choose_scope)
def lab(
    request: pytest.FixtureRequest, lab_topology: Source, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """A lab that is up, under a name of its own: `lab["client"].succeed("uname -r")`."""
    from lab.errors import LabError

    marker = request.node.get_closest_marker("lab")
    is_shared = marker is not None and marker.kwargs.get("scope") == "session"
    try:
        keeper = _keeper_of(request.config, tmp_path_factory)
        running = keeper.share(lab_topology) if is_shared else keeper.open(lab_topology)
    except LabError as error:
        pytest.fail(str(error), pytrace=False)
    yield running
    if not is_shared:
        keeper.close(running)


def _keeper_of(config: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Keeper:
    keeper = config.stash.get(_keeper, None)
    if keeper is None:
        from lab.testing import Keeper

        keeper = config.stash[_keeper] = Keeper(
            tmp_path_factory.mktemp("labs"),
            keep=bool(config.getoption("lab_keep")),
            say=lambda text: _say(config, text),
        )
    return keeper


def _say(config: pytest.Config, text: str) -> None:
    """One line on the terminal, past the capturing: bringing a lab up takes a while."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if terminal is not None and capture is not None and config.get_verbosity() >= 0:
        with capture.global_and_fixture_disabled():
            terminal.ensure_newline()
            terminal.write_line(text)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report of a failure what the guests of its labs said."""
    report = yield
    keeper = item.config.stash.get(_keeper, None)
    if keeper is not None and report.failed:
        report.sections += keeper.describe(getattr(item, "funcargs", {}).values())
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Take down the labs that modules shared; tell pytest-xdist's first process which ones stay."""
    config = session.config
    keeper = config.stash.get(_keeper, None)
    if keeper is None:
        return
    keeper.close_shared()
    config.stash[_kept] += keeper.kept
    output = getattr(config, "workeroutput", None)
    if output is not None:
        output["hyperheap_kept"] = [tuple(each) for each in keeper.kept]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of pytest-xdist has ended: note the labs that it left up."""
    kept = getattr(node, "workeroutput", {}).get("hyperheap_kept", [])
    node.config.stash[_kept] += [tuple(each) for each in kept]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how to reach the labs that were kept."""
    kept = config.stash.get(_kept, [])
    if not kept:
        return
    terminalreporter.section("labs that are still up (--lab-keep)")
    for name, file, guest in kept:
        terminalreporter.write_line(f"lab -t {file} ssh {guest}")
        terminalreporter.write_line(f"lab -t {file} sockets")
        terminalreporter.write_line(f"lab down --lab {name}")
