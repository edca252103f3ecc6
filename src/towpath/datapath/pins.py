# SPDX-License-Identifier: Apache-2.0
"""The directory of pins that keeps a load balancer alive, and who may use it."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from towpath.kernel import lock
from towpath.kernel.bpffs import ROOT, ensure_bpffs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def held(pins: Path) -> Iterator[None]:
    """Keep others out of a directory of pins in the block, making it if need be.

    Two that write the same tables would take each other's room. It is left behind
    only if something is pinned in it. KernelError: another process has it.
    """
    if pins.is_relative_to(ROOT):
        ensure_bpffs()
    pins.mkdir(parents=True, exist_ok=True)
    try:
        with lock.exclusive(pins):
            yield
    finally:
        with suppress(OSError):  # it isn't empty, or gone already
            pins.rmdir()
