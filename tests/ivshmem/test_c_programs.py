# SPDX-License-Identifier: Apache-2.0
"""The C tests, built with both compilers and sanitizers; the C sources with every warning an error."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
INCLUDE = TREE / "ivshmem" / "include"
CORE = sorted((TREE / "ivshmem" / "core").glob("*.c"))
SHIM = sorted((TREE / "ivshmem" / "shim").glob("*.c"))
PROGRAMS = sorted((TREE / "tests" / "ivshmem" / "c").glob("test_*.c"))
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", f"-I{INCLUDE}"]
SANITIZERS = {
    "asan-ubsan": ["-fsanitize=address,undefined"],
    "tsan": ["-fsanitize=thread", "-Wno-unknown-warning-option", "-Wno-tsan"],  # it does not model fences
    "none": ["-O3"],
}


def _compiler(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed; `make setup` installs it")
    return found


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_sources_compile_without_a_warning(compiler: str) -> None:
    command = [_compiler(compiler), *FLAGS, "-O2", "-fsyntax-only", *map(str, CORE + SHIM)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_program(program: Path, compiler: str, sanitizer: str, tmp_path: Path) -> None:
    binary = tmp_path / program.stem
    build = [_compiler(compiler), *FLAGS, "-g", "-O1", *SANITIZERS[sanitizer], str(program), *map(str, CORE)]
    done = subprocess.run(
        [*build, "-o", str(binary), "-lpthread"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    arguments = ["--no-races"] if sanitizer == "tsan" else []
    done = subprocess.run([str(binary), *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
