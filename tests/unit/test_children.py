# SPDX-License-Identifier: Apache-2.0
"""Child processes import what this process does, and nothing from where others can write."""

from __future__ import annotations

import ast
import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.agent.http.test_bodies import contradicting, pieces

import towpath
from towpath.agent.config.load import read_config
from towpath.agent.http.judge import SMALL, Judge
from towpath.children import python

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = Path(towpath.__file__).parent
# What a child imports: this package, what it needs, and the standard library.
PLANTED = ("towpath", "yaml", "pickle", "json", "runpy", "encodings", "sitecustomize", "resource")


@pytest.fixture
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Gets a file for each module that is imported from the working directory."""
    found, here = tmp_path / "marks", tmp_path / "here"
    found.mkdir()
    here.mkdir()
    for name in PLANTED:
        (here / f"{name}.py").write_text(f"open({str(found / name)!r}, 'w').close()\n")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", f":{here}:.")
    yield found
    assert [each.name for each in found.iterdir()] == []


@pytest.mark.usefixtures("marks")
def test_a_file_is_read(tmp_path: Path) -> None:
    """By the module that this process has."""
    file = tmp_path / "towpath.yaml"
    file.write_text("devices: [eth0]\nservices: []\n")
    assert [each.name for each in read_config(file).devices] == ["eth0"]


@pytest.mark.usefixtures("marks")
def test_a_large_body_is_checked() -> None:
    """The same."""
    found = asyncio.run(Judge().judged("wish", pieces(contradicting(2 * SMALL))))
    assert found is not None
    assert found.problems


@pytest.mark.usefixtures("marks")
def test_a_command_gets_its_arguments() -> None:
    """As if it had been called by its name."""
    command = python("towpath", "agent", "--help")
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--detach-on-exit" in ran.stdout
    assert str(SOURCES.parent) in command


def test_the_package_is_the_one_that_runs(tmp_path: Path) -> None:
    """Though another is installed: a checkout's agent has a checkout's children."""
    package = tmp_path / "towpath"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "children": (SOURCES / "children.py").read_text(),
        "who": "import json; print(__file__, json.__file__)",
        "__main__": "import subprocess, towpath.children as c\n"
        "subprocess.run(c.python('towpath.who'), check=True)",
    }.items():
        (package / f"{name}.py").write_text(text)
    (tmp_path / "json.py").touch()
    command = [sys.executable, "-m", "towpath"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(package / "who.py"), json.__file__]


def test_what_is_found_by_an_absolute_path_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As capabilities that are somewhere else; and without a working directory."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.py").write_text("print('found')")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    ran = subprocess.run(python("mine"), capture_output=True, text=True, check=True)
    assert ran.stdout == "found\n"


def test_no_child_is_begun_otherwise() -> None:
    """Nobody else names the interpreter, but to measure it, or for what needs nothing but it."""
    found = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "executable"
    }
    # And agent/run.py, to begin itself again.
    assert found == {
        "agent/run.py",
        "children.py",
        "bench/control.py",
        "datapath/cgroup/probe.py",
        "cli/lab.py",  # in the checkout that it is itself from
    }
