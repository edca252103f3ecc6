# SPDX-License-Identifier: Apache-2.0
"""Which VLAN devices there are on top of which devices, as the program has to know."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.datapath.program.program import LoadedProgram


def write_vlans(program: LoadedProgram, found: Iterable[tuple[int, int, int]]) -> None:
    """Make the program's tables say so: index of the VLAN's device, of the one below, VLAN id.

    A tag that has another device than before is never without one.
    """
    by_tag, by_device = program.maps["vlan_devices"], program.maps["egress_devices"]
    tags, devices = set(), set()
    for upper, lower, vid in found:
        tag = np.zeros((), by_tag.key_dtype)
        tag["ifindex"], tag["vid"] = lower, vid
        way = np.zeros((), by_device.value_dtype)
        way["ifindex"], way["vlan"] = lower, vid
        by_device.update(upper, way)
        by_tag.update(tag, upper)
        tags.add(tag.tobytes())
        devices.add(upper)
    for key in [key for key, _ in by_tag.items() if key.tobytes() not in tags]:
        by_tag.delete(key, missing_ok=True)
    for key in [key for key, _ in by_device.items() if int(key) not in devices]:
        by_device.delete(key, missing_ok=True)
