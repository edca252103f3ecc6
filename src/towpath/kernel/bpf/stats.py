# SPDX-License-Identifier: Apache-2.0
"""How often programs run, and how long that takes, as the kernel counts it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from towpath.kernel.bpf._structs import ProgInfo
from towpath.kernel.bpf.libbpf import check, get_info, lib
from towpath.kernel.errors import CAP_SYS_ADMIN, permission_hint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from towpath.kernel.bpf.programs import Program

_RUN_TIME = 0  # BPF_STATS_RUN_TIME


class Runs(NamedTuple):
    """Of one program."""

    number: int
    ns_each: float


@contextmanager
def counting_runs(program: Program) -> Iterator[Callable[[], Runs]]:
    """Have the kernel count in the block; what it gives tells afterwards (5.8).

    All programs take some tens of nanoseconds longer meanwhile. KernelError.
    """
    hint = permission_hint(CAP_SYS_ADMIN)
    fd = check(lib.bpf_enable_stats(_RUN_TIME), "have the kernel count runs of programs", hint)
    before = _read(program)
    after = before
    try:
        yield lambda: Runs(
            after[0] - before[0], round((after[1] - before[1]) / max(after[0] - before[0], 1), 1)
        )
        after = _read(program)
    finally:
        os.close(fd)


def _read(program: Program) -> tuple[int, int]:
    info = get_info(program.fd, ProgInfo(), f"ask for program {program.name}")
    return info.run_cnt, info.run_time_ns
