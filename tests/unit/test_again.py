# SPDX-License-Identifier: Apache-2.0
"""What failed by chance is told, and what fails is not forgiven."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests import again
from tests.again import MOST, run

from towpath.lab.waiting import wait_until

pytestmark = pytest.mark.host

_FIRST = """
from pathlib import Path

import pytest

@pytest.mark.parametrize("number", range({failing}))
def test_first(number):
    seen = Path(__file__).with_suffix(f".{{number}}")
    before, _ = seen.exists(), seen.touch()
    assert before

def test_other():
    with Path(__file__).with_suffix(".runs").open("a") as runs:
        runs.write("x")
"""
_LASTING = """
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent

@pytest.fixture
def made():
    (HERE / "made").touch()
    yield
    time.sleep(1)
    (HERE / "undone").touch()

def test_it(made):
    time.sleep(60)
"""
_ALWAYS = "def test_always(): assert False"


def ran(directory: Path, source: str) -> tuple[int, list[str], str]:
    """Run a module of tests."""
    (directory / "test_it.py").write_text(source)
    (directory / "pytest.ini").write_text("[pytest]")
    output = directory / "output"
    with output.open("w") as file:
        code, again = run(["-q", f"--rootdir={directory}", f"{directory}"], (), file)
    return code, again, output.read_text()


@pytest.fixture(autouse=True)
def _forgiving(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TOWPATH_ONCE", raising=False)
    monkeypatch.chdir(tmp_path)


def test_what_passes_alone_is_told(tmp_path: Path) -> None:
    """By name; nothing else is run again."""
    code, again, said = ran(tmp_path, _FIRST.format(failing=1))
    assert (code, again) == (0, ["test_it.py::test_first[0]"])
    assert "failed, and run again alone: test_it.py::test_first[0]" in said
    assert said.endswith("passed only when run again: test_it.py::test_first[0]\n")
    assert (tmp_path / "test_it.runs").read_text() == "x"


def test_what_fails_again_has_failed(tmp_path: Path) -> None:
    """Also beside what passes then."""
    code, again, said = ran(tmp_path, _FIRST.format(failing=1) + _ALWAYS)
    assert (code, again) == (1, [])
    assert "1 failed, 1 passed in" in said


@pytest.mark.parametrize("strict", [False, True])
def test_more_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, strict: bool
) -> None:
    """Nor any when told so."""
    if strict:
        monkeypatch.setenv("TOWPATH_ONCE", "1")
    code, again, said = ran(tmp_path, _FIRST.format(failing=1 if strict else MOST + 1))
    assert (code, again) == (1, [])
    assert "again" not in said


def test_what_cant_be_imported_has_failed(tmp_path: Path) -> None:
    """It isn't a test that failed."""
    code, again, _ = ran(tmp_path, "import nowhere")
    assert (code, again) == (2, [])


def test_who_is_interrupted_lets_tests_undo_what_they_made(tmp_path: Path) -> None:
    """By one signal to this alone, as timeout sends it; it isn't run again."""
    (tmp_path / "test_it.py").write_text(_LASTING)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    words = ["-m", "tests.again", "-q", f"--rootdir={tmp_path}", f"{tmp_path}"]
    path = f"{Path(again.__file__).parents[1]}"
    with subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    ) as ran:
        wait_until((tmp_path / "made").exists, seconds=60, what="the test to run")
        ran.send_signal(signal.SIGINT)
        said, _ = ran.communicate(timeout=60)
    assert ran.returncode == pytest.ExitCode.INTERRUPTED
    assert (tmp_path / "undone").exists()
    assert "again" not in said.replace(f"{tmp_path}", "")


def test_what_passes_is_run_once(tmp_path: Path) -> None:
    """As ever."""
    assert ran(tmp_path, "def test_it(): pass")[:2] == (0, [])
