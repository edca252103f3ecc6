# SPDX-License-Identifier: Apache-2.0
"""Servers on addresses of a namespace of the module's own, and programs for each test."""

from __future__ import annotations

import itertools
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.prog.kernel.conftest import FIXTURES
from tests.prog.socket.harness import BACKENDS, BACKENDS6, Rig, Servers
from tests.unit.kernel.harness_clang import compile_bpf

from towpath.kernel.bpf import bpffs
from towpath.kernel.net.netns import new_netns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_number = itertools.count()


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """All backends' servers, on the loopback device of a namespace in which the tests run."""
    with new_netns():
        lines = ["link set lo up", *(f"addr add {each}/32 dev lo" for each in BACKENDS)]
        lines += [f"addr add {each}/128 dev lo nodad" for each in BACKENDS6]
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
        with Servers((*BACKENDS, *BACKENDS6)) as made:
            yield made


@pytest.fixture(scope="module")
def programs(servers: Servers) -> Iterator[Rig]:
    """Programs at a cgroup."""
    assert servers
    with Rig() as made:
        yield made


@pytest.fixture
def rig(programs: Rig) -> Rig:
    """The same with a new process, and without any service."""
    programs.renew()
    return programs


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the kernel layer's own programs for cgroups."""
    directory = tmp_path_factory.mktemp("objects")
    compile_bpf(FIXTURES / "cgroups.bpf.c", directory / "cgroups.bpf.o")
    return directory


@pytest.fixture
def pins() -> Iterator[Path]:
    """Give a directory for pins that goes with the test."""
    path = bpffs.ensure_bpffs() / f"towpath-sockets-{next(_number)}"
    yield path
    bpffs.remove_pins(path)
