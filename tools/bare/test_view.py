# SPDX-License-Identifier: Apache-2.0
"""The view itself: what isn't declared isn't there, though this machine has it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tools.bare import view
from tools.bare.outside import needs

from towpath.doctor.outside import is_program

if TYPE_CHECKING:
    from collections.abc import Iterable

USED = ["--for", "demo", "--for", "test"]
HIDING = [sys.executable, "-m", "tools.bare.view", *USED]
# As tests once used them without saying so.
BY_CHANCE = {
    "ethtool": "ethtool --version",
    "procps": "sysctl -n kernel.ostype",
    "netbase": "getent protocols icmp",
    "openssl": "openssl version",
}
BROUGHT_BY = {"netbase": ("iptables",)}
"""Declared packages that need them."""
LOOK = f"""
import socket
from towpath.doctor.outside import declared
print([need.ways for need in declared() if set(need.users) & {set(USED[1::2]) | {"build", "run"}}
    and not need.found()])
"""


def seen(*words: str, without: Iterable[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command where what is declared is all that there is, but for ``without``."""
    left_out = [f"--without={each}" for each in without]
    command = [*HIDING, *left_out, "--", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_all_that_is_declared_is_there() -> None:
    """By the means that the doctor has."""
    found = seen(sys.executable, "-c", LOOK)
    assert (found.returncode, found.stdout.strip()) == (0, "[]"), found.stderr


@pytest.mark.parametrize("package", BY_CHANCE)
def test_what_comes_by_chance_is_hidden(package: str) -> None:
    """The declaration taken out, a command fails that works on this machine."""
    command = ["sh", "-c", BY_CHANCE[package]]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"{package} is not on this machine: nothing to hide")
    assert seen(*command, without=[package, *BROUGHT_BY.get(package, ())]).returncode != 0


def test_a_program_without_its_declaration_is_hidden() -> None:
    """Whatever else needs its package; but for what every Debian has."""
    essential = {Path(file).name for file in view._files(view.Packages.installed().essential)}
    names = {way for need in needs(USED[1::2]) for way in need.ways if is_program(way)}
    names -= essential
    assert {"openssl", "ip", "capinfos", "nginx"} <= names
    assert all(shutil.which(name, path="/usr/bin:/usr/sbin") for name in names)
    gone = seen(
        "sh", "-c", f"for name in {' '.join(names)}; do command -v $name; done", without=names
    )
    assert gone.stdout == ""


def test_the_machine_itself_is_as_it_was(tmp_path: Path) -> None:
    """What is hidden is hidden from one command, and what that writes goes with it."""
    before = sorted(Path("/usr/bin").iterdir()), Path("/proc/self/mounts").read_text()
    left = Path("/etc/written-in-a-view")
    written = seen("sh", "-c", f"echo here >{left} && cat {left} && echo >{tmp_path}/here")
    assert written.stdout == "here\n"
    assert not left.exists()
    assert Path(tmp_path, "here").exists()
    assert before == (sorted(Path("/usr/bin").iterdir()), Path("/proc/self/mounts").read_text())
