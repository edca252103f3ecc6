# SPDX-License-Identifier: Apache-2.0
"""The rig itself: what goes wrong in a guest is told for what it is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tools.kernels import guest
from tools.kernels.packages import Image, obtain
from tools.kernels.supported import SUPPORTED, named

# bpf_ktime_get_tai_ns is there since 6.1: 5.10 does not know it.
TOO_NEW = """
#include <linux/bpf.h>
#include <linux/types.h>
static __u64 (*ktime_get_tai_ns)(void) = (void *)208;
__attribute__((section("xdp"), used)) int too_new(struct xdp_md *ctx)
{
	return ktime_get_tai_ns() & 1 ? 2 : 1;
}
char _license[] __attribute__((section("license"), used)) = "GPL";
"""

LOAD = """
import sys
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.errors import KernelError
try:
    with BpfObject(sys.argv[1]) as loaded:
        loaded.load()
except KernelError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.fixture(scope="module")
def oldest() -> Image:
    """The oldest kernel of the matrix, unpacked."""
    return obtain(SUPPORTED[0])


def test_an_exit_code_comes_through(oldest: Image, tmp_path: Path) -> None:
    """A command's exit code and output are the guest's answer."""
    outcome = guest.run(oldest, ["sh", "-c", "uname -r; exit 7"], tmp_path, timeout=600)
    assert (outcome.ending, outcome.code, outcome.ok) == ("done", 7, False)
    assert outcome.output.strip() == oldest.release
    assert "5.10" in outcome.output


@pytest.mark.thorough
def test_nothing_a_guest_writes_reaches_the_host(oldest: Image, tmp_path: Path) -> None:
    """The host's files are read-only below an overlay in the guest's memory."""
    path = Path.cwd() / f"written-by-a-guest-{os.getpid()}"
    command = ["sh", "-c", f"echo here >{path} && cat {path}"]
    outcome = guest.run(oldest, command, tmp_path, timeout=600)
    assert outcome.ok
    assert outcome.output.strip() == "here"
    assert not path.exists()


@pytest.mark.thorough
def test_the_working_directory_is_seen_wherever_it_is(
    oldest: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where a guest has something of its own, as in /tmp."""
    with TemporaryDirectory(dir="/tmp", prefix="with a blank ") as name:
        Path(name, "there").write_text("yes")
        monkeypatch.chdir(name)
        outcome = guest.run(oldest, ["cat", "there"], tmp_path, timeout=600)
    assert outcome.output == "yes"


def test_a_panic_is_told_with_its_cause(oldest: Image, tmp_path: Path) -> None:
    """A kernel that panics is not a test that failed."""
    crash = ["sh", "-c", "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger"]
    outcome = guest.run(oldest, crash, tmp_path, timeout=600)
    assert outcome.ending == "panic"
    assert not outcome.ok
    explained = outcome.explained()
    assert "the kernel panicked" in explained
    assert "sysrq triggered crash" in explained


@pytest.mark.thorough
def test_a_hang_ends_in_time(oldest: Image, tmp_path: Path) -> None:
    """A guest that doesn't come to an end is stopped, and said to hang."""
    outcome = guest.run(oldest, ["sleep", "1000"], tmp_path, timeout=60)
    assert outcome.ending == "hang"
    assert "no end in time" in outcome.explained()


@pytest.mark.thorough
def test_a_kernel_without_a_root_is_told(oldest: Image, tmp_path: Path) -> None:
    """What never came to the command is told apart from a command that hangs."""
    outcome = guest.run(
        oldest, ["true"], tmp_path, timeout=600, arguments="init=/x rdinit=/x root=x"
    )
    assert outcome.ending in {"panic", "no boot"}
    assert not outcome.ok


def test_a_program_that_a_kernel_refuses_is_told(oldest: Image, tmp_path: Path) -> None:
    """The verifier's word, in one line, and the exit code that fails the matrix."""
    clang = shutil.which("clang")
    assert clang, "the rig's tests need clang"
    # Below the working directory: a guest has a /tmp of its own.
    place = Path("build") / f"rig-{os.getpid()}"
    place.mkdir(parents=True)
    try:
        source, built = place / "too_new.bpf.c", place / "too_new.bpf.o"
        source.write_text(TOO_NEW)
        include = f"/usr/include/{os.uname().machine}-linux-gnu"
        words = ["-target", "bpf", "-O2", "-g", "-I", include, "-c", str(source), "-o", str(built)]
        subprocess.run([clang, *words], check=True)
        command = [".venv/bin/python", "-c", LOAD, str(built)]
        old = guest.run(oldest, command, tmp_path / "old", timeout=600)
        new = guest.run(obtain(named("6.1")), command, tmp_path / "new", timeout=600)
    finally:
        shutil.rmtree(place)
    assert (old.ending, old.code) == ("done", 1)
    assert "refused: load too_new.bpf.o: program too_new" in old.output
    assert "invalid func unknown#208" in old.output
    assert new.ok, new.output
