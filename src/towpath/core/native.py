# SPDX-License-Identifier: Apache-2.0
"""The compiled part of the core: ``native/*.c``, through ctypes.

Filling a Maglev table is sequential: whether a backend takes a slot depends on
every slot taken before. numpy has nothing to offer for that, a Python loop takes
100 ms for a table of 16381 slots, and the C loop less than one.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LIBRARY = Path(__file__).parent.parent / "objects" / "libtowpath_core.so"


@cache
def _library() -> Any:
    """Load the library; OSError names the file that is missing."""
    library = ctypes.CDLL(str(LIBRARY))
    maglev = library.towpath_maglev
    maglev.restype = ctypes.c_int
    pointer = ctypes.c_void_p
    maglev.argtypes = [pointer, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_char_p, *[pointer] * 3]
    return library


def fill_maglev(
    size: int, identities: list[bytes], weights: list[int], labels: list[int]
) -> NDArray[np.uint32]:
    """Fill a table of ``size`` slots, a prime below 2**22, with labels.

    The backends, at least one and at most ``size``, are in order of falling
    weight (1 to 65535), those of equal weight by identity. Raises MemoryError.
    """
    count = len(identities)
    table = np.empty(size, np.uint32)
    ends = np.cumsum([len(identity) for identity in identities], dtype=np.uint32)
    numbers = np.array([weights, labels], np.uint32)
    failed = _library().towpath_maglev(
        table.ctypes.data,
        size,
        count,
        b"".join(identities),
        ends.ctypes.data,
        numbers[0].ctypes.data,
        numbers[1].ctypes.data,
    )
    if failed:
        raise MemoryError(f"no memory for a Maglev table of {count} backends")
    return table
