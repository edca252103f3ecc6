# SPDX-License-Identifier: Apache-2.0
"""What the kernel layer is tested with: compiled objects, devices, a place for pins."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.prog.kernel.harness_cgroups import loaded, new_cgroup
from tests.unit.kernel.harness_clang import compile_bpf

from towpath.kernel.bpf import bpffs
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net import interfaces
from towpath.kernel.net.netns import new_netns

if TYPE_CHECKING:
    from collections.abc import Iterator

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile all fixtures; the directory with the objects."""
    directory = tmp_path_factory.mktemp("objects")
    for source in FIXTURES.glob("*.bpf.c"):
        compile_bpf(source, directory / f"{source.stem}.o")
    return directory


@pytest.fixture
def opened(objects: Path) -> Iterator[BpfObject]:
    """Open the sample object; not loaded."""
    with BpfObject(objects / "sample.bpf.o") as made:
        yield made


@pytest.fixture
def sample(opened: BpfObject) -> BpfObject:
    """Load the sample object."""
    opened.load()
    return opened


_number = itertools.count()


@pytest.fixture
def pins() -> Iterator[Path]:
    """Give a directory for pins that goes with the test."""
    path = bpffs.ensure_bpffs() / f"towpath-test-{next(_number)}"
    path.mkdir()
    yield path
    bpffs.remove_pins(path)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """Make a cgroup for the test."""
    with new_cgroup() as path:
        yield path


@pytest.fixture
def sockets(objects: Path) -> Iterator[BpfObject]:
    """Load a program for each hook of a cgroup."""
    with loaded(objects) as made:
        yield made


@pytest.fixture
def traced(objects: Path) -> Iterator[BpfObject]:
    """Load the programs at a tracepoint."""
    with BpfObject(objects / "tracepoints.bpf.o") as made:
        made.load()
        yield made


@pytest.fixture
def veth() -> Iterator[int]:
    """Move the test to a namespace with a veth pair, tp0 and tp1; the index of tp0."""
    with new_netns():
        ip("link add tp0 type veth peer name tp1")
        ip("link set tp0 up")
        ip("link set tp1 up")
        yield interfaces.device_index("tp0")


def ip(arguments: str) -> None:
    """Run iproute2's command in the calling thread's namespaces."""
    subprocess.run(["ip", *arguments.split()], check=True)
