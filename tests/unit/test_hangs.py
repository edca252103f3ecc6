# SPDX-License-Identifier: Apache-2.0
"""A run of tests ends, and names what hung and what died, whatever dies."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.host

ROOT = Path(__file__).parents[2]
# Of a run in which nothing takes longer than a moment but what never ends.
LIMITS = {"timeout": 6, "faulthandler_timeout": 9, "worker_timeout": 12}

ISOLATED = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]

DIES = {
    # Files that their worker has done when it ends are what xdist's own scheduling waits for.
    "test_a.py": "def test_passes(): pass",
    "test_b.py": "def test_passes(): pass",
    "test_c.py": """
import os
def test_passes(): pass
def test_fails_it_exits(): os._exit(0)
def test_passes_too(): pass
""",
    "test_d.py": """
import os, signal
def test_fails_it_is_killed(): os.kill(os.getpid(), signal.SIGKILL)
""",
    "test_e.py": "def test_passes(): pass",
    "test_f.py": "def test_passes(): pass",
}
HANGS = {
    "test_deaf.py": """
import ctypes, signal
def test_passes(): pass
def test_fails_it_is_deaf():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ctypes.CDLL(None).pause()
def test_passes_too(): pass
""",
    "test_forks.py": """
import os, signal, time
def test_fails_it_leaves_a_child():
    if os.fork():
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        time.sleep(1000)
def test_passes(): pass
""",
    "test_hangs.py": """
import threading
def test_fails_it_waits(): threading.Event().wait()
def test_passes(): pass
""",
    "test_stops.py": """
import os, signal, subprocess
def test_fails_it_is_stopped():
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    os.kill(os.getpid(), signal.SIGSTOP)
""",
}


@pytest.mark.parametrize(("files", "workers"), [(DIES, 1), (HANGS, 4)], ids=["dies", "hangs"])
def test_the_run_ends_and_names_what(tmp_path: Path, files: dict[str, str], workers: int) -> None:
    """With this project's settings but for the limits; all others are run, once."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    # The last is tests/hangs.py's own.
    assert LIMITS.keys() - {"worker_timeout"} < options.keys()
    kept = {name: options[name] for name in ("timeout_method", "faulthandler_exit_on_timeout")}
    lines = [f"{name} = {value}\n" for name, value in (kept | LIMITS).items()]
    (tmp_path / "pytest.ini").write_text("[pytest]\n" + "".join(lines))
    command = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-v", "-rA"]
    command += ["-n", str(workers), "--dist", "loadfile"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    ran = subprocess.run(
        # Processes of its own: what a test leaves is gone when the run is.
        [*ISOLATED, sys.executable, "-m", "pytest", *command],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    said = ran.stdout
    assert ran.returncode == 1, said
    assert ends(said, "FAILED") == names(files, "test_fails"), said
    assert ends(said, "PASSED") == names(files, "test_passes"), said


def names(files: dict[str, str], prefix: str) -> list[str]:
    """The tests in these files that begin so."""
    found = re.compile(rf"^def ({prefix}\w*)", re.MULTILINE)
    return sorted(f"{name}::{test}" for name, text in files.items() for test in found.findall(text))


def ends(said: str, how: str) -> list[str]:
    """The tests that ended so, each as often as it did, by the summary."""
    summary = said.partition("short test summary info")[2]
    lines = [line.split() for line in summary.splitlines()]
    return sorted(words[1] for words in lines if words[:1] == [how])
