# SPDX-License-Identifier: Apache-2.0
"""Says what can leave by a device, to the program and to the oracle."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tests.prog.lb.harness import Rig


@contextmanager
def devices(rig: Rig, **can: Collection[str] | None) -> Iterator[None]:
    """In the block, a device can do this much and no more, see ``oracle.DRIVER``.

    None: the program doesn't know it.
    """
    table = rig.balancer._program.maps["egress_devices"]
    flags = rig.balancer._program.btf.enum("egress_flags")
    for name, each in can.items():
        index = rig.devices[name]
        rig.world.devices[index] = frozenset(each or ())
        if each is None:
            table.delete(index)
            continue
        way = np.zeros((), table.value_dtype)
        way["ifindex"] = index
        way["flags"] = sum(int(flags[f"EGRESS_{word.upper()}"]) for word in each)
        table.update(index, way)
    rig.forget_ways()
    try:
        yield
    finally:
        rig.refresh_devices()
        rig.world.devices.clear()
        rig.forget_ways()
