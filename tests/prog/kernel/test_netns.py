# SPDX-License-Identifier: Apache-2.0
"""Namespaces of one thread."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.prog.kernel.conftest import ip
from tests.prog.kernel.harness_caps import only

from towpath.kernel.bpf import bpffs
from towpath.kernel.errors import KernelError
from towpath.kernel.net.netns import in_netns, new_netns, unshare

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "tp-kernel-test"


def own() -> tuple[int, int]:
    """What stands for this thread's network namespace."""
    found = Path("/proc/thread-self/ns/net").stat()
    return found.st_dev, found.st_ino


@pytest.fixture
def named() -> Iterator[Path]:
    """Make a namespace with a name."""
    ip(f"netns add {NAME}")
    yield Path("/run/netns") / NAME
    ip(f"netns del {NAME}")


def test_namespace_can_be_named_in_three_ways(named: Path) -> None:
    """By its name, its path or an open file; and the thread comes back."""
    home, wanted = own(), named.stat()
    shown = subprocess.run(["ip", "-n", NAME, "-j", "link"], capture_output=True, check=True).stdout
    devices = [each["ifname"] for each in json.loads(shown)]
    fd = os.open(named, os.O_RDONLY)
    for where in (NAME, named, str(named), fd):
        with in_netns(where):
            assert own() == (wanted.st_dev, wanted.st_ino)
            assert [name for _, name in socket.if_nameindex()] == devices
        assert own() == home
    os.close(fd)


def test_thread_comes_back_after_a_failure(named: Path) -> None:
    """An exception in the block changes nothing."""
    assert named
    home = own()
    with pytest.raises(ZeroDivisionError), in_netns(NAME):
        raise ZeroDivisionError
    assert own() == home


def test_other_threads_stay(named: Path) -> None:
    """Only the caller moves."""
    assert named
    home = own()
    seen = []
    entered, looked = threading.Event(), threading.Event()

    def look() -> None:
        assert entered.wait(10)
        seen.append(own())
        looked.set()

    thread = threading.Thread(target=look)
    thread.start()
    with in_netns(NAME):
        assert own() != home
        entered.set()
        assert looked.wait(10)
    thread.join()
    assert seen == [home]


def test_namespaces_nest(named: Path) -> None:
    """Each block returns to where it was entered."""
    assert named
    with new_netns() as fd:
        first = own()
        with in_netns(NAME):
            with in_netns(fd):
                assert own() == first
            assert own() != first
        assert own() == first


def test_unknown_names_are_told_with_those_there_are(named: Path) -> None:
    """The message helps against typing errors."""
    assert named
    message = f"open network namespace nope: No such file .*there are: {NAME}"
    with pytest.raises(KernelError, match=message), in_netns("nope"):
        pytest.fail("there is no such namespace")


def test_file_that_is_no_namespace_is_refused(tmp_path: Path) -> None:
    """The kernel knows the difference; the thread stays where it is."""
    home = own()
    path = tmp_path / "file"
    path.touch()
    refused = pytest.raises(KernelError, match=r"enter network namespace .*/file: .*EINVAL")
    with refused, in_netns(path):
        pytest.fail("that is a file")
    assert own() == home


def test_missing_capabilities_are_named() -> None:
    """Namespaces take CAP_SYS_ADMIN."""
    refused = pytest.raises(KernelError, match=r"make new namespaces: .*needs CAP_SYS_ADMIN$")
    with only(), refused, new_netns():
        pytest.fail("made without the capability")


def test_unshared_mounts_are_not_seen_outside(tmp_path: Path) -> None:
    """A thread can mount for itself alone."""
    outcome = []

    def alone() -> None:
        unshare(network=True, mounts=True)
        bpffs.ensure_bpffs(tmp_path)
        outcome.append((bpffs.is_bpffs(tmp_path), own()))

    thread = threading.Thread(target=alone)
    thread.start()
    thread.join()
    ((mounted, inside),) = outcome
    assert mounted
    assert inside != own()
    assert not bpffs.is_bpffs(tmp_path)
