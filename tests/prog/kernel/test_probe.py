# SPDX-License-Identifier: Apache-2.0
"""Probes, against what this kernel is known to have and to lack."""

from __future__ import annotations

import os
import re

import pytest
from tests.prog.kernel.harness_caps import only

from towpath.kernel.bpf import probe, probe_fib
from towpath.kernel.bpf.libbpf import version
from towpath.kernel.bpf.map_types import MapType
from towpath.kernel.bpf.programs import ProgramType
from towpath.kernel.errors import CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, KernelError
from towpath.kernel.net import qdiscs
from towpath.kernel.net.netns import new_netns

FIB_LOOKUP = 69
REDIRECT_NEIGH = 152
NO_SUCH = 9999


@pytest.fixture(autouse=True)
def forget() -> None:
    """Ask the kernel again."""
    for each in (probe.map_mmap, probe.batch, probe.xdp_link, probe.tcx, probe.live_frames):
        each.cache_clear()


def test_oldest_supported_kernel_has_these() -> None:
    """What every kernel that Towpath runs on can do is found."""
    assert probe.map_mmap()
    assert probe.batch()
    assert probe.xdp_link()
    assert probe.program_type(ProgramType.XDP)
    assert probe.map_type(MapType.LPM_TRIE)
    assert probe.helper(FIB_LOOKUP, ProgramType.XDP)
    assert probe.helper(REDIRECT_NEIGH, ProgramType.SCHED_CLS)


def test_what_there_is_not_is_not_found() -> None:
    """A probe that always says yes would be of no use."""
    assert not probe.program_type(NO_SUCH)
    assert not probe.map_type(NO_SUCH)
    assert not probe.helper(REDIRECT_NEIGH, ProgramType.XDP)
    assert not probe.batch(MapType.PROG_ARRAY)


def test_without_capabilities_nothing_can_be_done() -> None:
    """The answer is about this process."""
    with only():
        assert not probe.map_mmap()
        assert not probe.batch()
        assert not probe.xdp_link()
        assert not probe.tcx()
        assert not probe.live_frames()


def test_live_frames_are_found_where_there_are_any() -> None:
    """They came with 5.18."""
    version = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    assert probe.live_frames() == (version >= (5, 18))


def test_answers_are_kept() -> None:
    """Asking twice costs once."""
    first = probe.tcx()
    with only():
        assert probe.tcx() == first


def test_library_tells_its_version() -> None:
    """Major and minor."""
    major, minor = map(int, version().split("."))
    assert (major, minor) >= (1, 1)


def test_what_an_agent_asks_takes_no_namespace() -> None:
    """A pod may make none: it is told the same by other means."""
    whole = probe_fib.fib_lookup().source, qdiscs.has_fq()
    probe_fib.names_sources.cache_clear()
    qdiscs.has_fq.cache_clear()
    try:
        with only(CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN):
            with pytest.raises(KernelError, match="CAP_SYS_ADMIN"), new_netns():
                pass
            assert probe_fib.names_sources() == whole[0]
            assert qdiscs.has_fq()  # or so it is taken to be
    finally:
        qdiscs.has_fq.cache_clear()
