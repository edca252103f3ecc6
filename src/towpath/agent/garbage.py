# SPDX-License-Identifier: Apache-2.0
"""Garbage collection that holds nobody up.

A full collection goes through everything that was made since the last freeze, and nothing else
runs meanwhile: 100 ms after five thousand services have been put. The interpreter begins one
whenever a quarter has been added. Here it is begun once a minute instead, and what would take
long is frozen: services are no garbage, and go without a collection when nobody refers to them.
"""

from __future__ import annotations

import asyncio
import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

from towpath.kernel.memory import give_back

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 60.0
MANY = 50_000
"""Objects that a collection goes through in some 15 ms."""
_NEVER = 1 << 30


def begin() -> None:
    """Freeze what is there now and will stay, and have no full collection begin by itself."""
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)
    gc.collect()
    gc.freeze()


@contextmanager
def paused() -> Iterator[None]:
    """Collect nothing during the block, and of what there is after it: what a start makes stays.

    Some hundred objects of half a million are garbage, which took a quarter of a second to find.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def tend() -> None:
    """Collect what is garbage, or freeze what there is; what is free is the kernel's again."""
    if len(gc.get_objects(generation=2)) > MANY:
        gc.freeze()
    else:
        gc.collect()
    give_back()


async def run() -> None:
    """Do so again and again."""
    while True:
        await asyncio.sleep(SECONDS)
        tend()
