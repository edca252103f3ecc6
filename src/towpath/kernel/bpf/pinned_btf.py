# SPDX-License-Identifier: Apache-2.0
"""A copy of an object's types, pinned beside its maps.

The kernel keeps the types of each map but tells them only to those who have
CAP_SYS_ADMIN. Whoever finds pinned maps has to know what is in them all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from towpath.kernel.bpf.btf import Btf
from towpath.kernel.bpf.libbpf import check, lib
from towpath.kernel.bpf.map_types import MapType
from towpath.kernel.bpf.maps import Map

if TYPE_CHECKING:
    from pathlib import Path

_KEY_BYTES = 4


def pin_types(btf: Btf, path: Path | str) -> None:
    """Pin a copy of ``btf`` at ``path``. KernelError."""
    blob = btf.blob
    what = f"make a map of {len(blob)} bytes for type information"
    fd = check(lib.bpf_map_create(MapType.ARRAY, b"types", _KEY_BYTES, len(blob), 1, None), what)
    with Map(fd) as kept:
        kept.update(0, blob)
        kept.pin(path)


def pinned_types(path: Path | str) -> Btf:
    """Return the types pinned at ``path``. KernelError: there are none."""
    with Map.from_pin(path) as kept:
        return Btf.from_bytes(np.asarray(kept.lookup(0)).tobytes())
