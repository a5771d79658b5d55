"""What all tests share: which copy of the project is tested, and fakes that several tests use."""

from __future__ import annotations

from pathlib import Path

import pytest

import lab

pytest_plugins = ["local_agent", "pytester"]

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_report_header() -> str:
    """Say whether the tree or the installed package is tested (docs/development.md has the reason)."""
    package = Path(lab.__file__).resolve().parent
    kind = "tree" if package.parent == REPOSITORY else "installed"
    return f"hyperheap under test: {kind} ({package.parent})"


def pytest_addoption(parser: pytest.Parser) -> None:
    """--update-golden rewrites what golden-file tests expect, to be read in the diff."""
    parser.addoption("--update-golden", action="store_true", help="write expected files instead of comparing")


@pytest.fixture
def repository() -> Path:
    """The top of the source tree."""
    return REPOSITORY


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written instead of compared."""
    return bool(request.config.getoption("--update-golden"))
