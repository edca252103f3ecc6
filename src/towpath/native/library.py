# SPDX-License-Identifier: Apache-2.0
"""The compiled part of the core: ``native/*.c``, through ctypes.

Filling a Maglev table is sequential: whether a backend takes a slot depends on
every slot taken before. numpy has nothing to offer for that, a Python loop takes
100 ms for a table of 16381 slots, and the C loop less than one. Wildcard rules are
written into memory that packets read meanwhile: that takes stores in an order that
the processor keeps.
"""

from __future__ import annotations

import ctypes
from array import array
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy.typing import NDArray

    Numbers: TypeAlias = array[int] | NDArray[np.unsignedinteger[Any]]

LIBRARY = Path(__file__).parent.parent / "objects" / "libtowpath_core.so"

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
_U32, _U64 = ctypes.c_uint32, ctypes.c_uint64
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "towpath_maglev": (_INT, [_POINTER, _U32, _U32, ctypes.c_char_p, *[_POINTER] * 4]),
    "towpath_slot_sums": (None, [_POINTER, _POINTER, _POINTER, _U32, _POINTER]),
    "towpath_table_marks": (None, [ctypes.c_char_p, *[_POINTER] * 3, _U32, _POINTER]),
    "towpath_wildcard_open": (
        _POINTER,
        [_U32, _POINTER, _POINTER, _U32, _POINTER, _U32, ctypes.c_char_p, _POINTER],
    ),
    "towpath_wildcard_close": (None, [_POINTER]),
    "towpath_wildcard_fit": (_INT, [_POINTER, _POINTER, _U32]),
    "towpath_wildcard_insert": (_INT, [_POINTER, _POINTER, _U32, _POINTER]),
    "towpath_wildcard_delete": (_INT, [_POINTER, _POINTER, _U32, _POINTER]),
    "towpath_wildcard_replace": (_INT, [_POINTER, _POINTER]),
    "towpath_wildcard_finish": (_INT, [_POINTER]),
    "towpath_wildcard_set_value": (_INT, [_POINTER, _U64, _U64]),
    "towpath_wildcard_has": (_INT, [_POINTER, _U64]),
    "towpath_wildcard_get": (_INT, [_POINTER, _U64, _POINTER]),
    "towpath_wildcard_list": (None, [_POINTER, _POINTER]),
    "towpath_wildcard_report": (None, [_POINTER, _POINTER]),
    "towpath_wildcard_reclaim": (None, [_POINTER]),
    "towpath_wildcard_compact": (None, [_POINTER]),
    "towpath_wildcard_device": (_INT, [_POINTER, _U32]),
    "towpath_wildcard_release": (None, [_POINTER, _U32]),
    "towpath_record_open": (_POINTER, [_POINTER, _POINTER, _POINTER, _U64, _U64, _U32]),
    "towpath_record_close": (None, [_POINTER]),
    "towpath_record_limit": (None, [_POINTER, _U64, _U64]),
    "towpath_record_clock": (None, [_POINTER, _U64, _U64]),
    "towpath_record_lost": (None, [_POINTER, _U64]),
    "towpath_record_interface": (_INT, [_POINTER, _U32, _U32, _U32]),
    "towpath_record_count": (_U64, [_POINTER, _U32]),
    "towpath_record_label": (_INT, [_POINTER, _U32, _U32, _U32, ctypes.c_char_p, _U32]),
    "towpath_record_forget": (None, [_POINTER]),
    "towpath_record_read": (None, [_POINTER, _POINTER, _U64, _POINTER]),
}


@cache
def library() -> Any:
    """Load the library; OSError names the file that is missing."""
    loaded = ctypes.CDLL(str(LIBRARY))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def fill_maglev(
    size: int, identities: list[bytes], weights: list[int], labels: list[int], away: list[bool]
) -> NDArray[np.uint32]:
    """Fill a table of ``size`` slots, a prime below 2**22, with labels.

    The backends, at least one and at most ``size``, are in order of falling
    weight (1 to 65535), those of equal weight by identity. The others fill the slots
    of those that are ``away``, which not all may be. Raises MemoryError.
    """
    count = len(identities)
    table = np.empty(size, np.uint32)
    numbers = np.array([[*accumulate(map(len, identities))], weights, labels], np.uint32)
    # To ask numpy for an address takes longer than to fill a small table's column.
    ends, row = numbers.ctypes.data, numbers.strides[0]
    flags = np.array(away, np.uint8) if any(away) else None
    failed = library().towpath_maglev(
        table.ctypes.data,
        size,
        count,
        b"".join(identities),
        ends,
        ends + row,
        ends + 2 * row,
        None if flags is None else flags.ctypes.data,
    )
    if failed:
        raise MemoryError(f"no memory for a Maglev table of {count} backends")
    return table


def slot_sum(slots: NDArray[np.uint32]) -> int:
    """Return the sum of what is in one table."""
    first, count, found = _U64(0), _U32(len(slots)), _U64()
    at = map(ctypes.addressof, (first, count))
    library().towpath_slot_sums(slots.ctypes.data, *at, 1, ctypes.addressof(found))
    return found.value


def slot_sums(
    slots: NDArray[np.uint32], firsts: NDArray[np.uint64], counts: NDArray[np.uint32]
) -> NDArray[np.uint64]:
    """Return a sum of what is in each of some tables: so many of ``slots``, from each first on."""
    sums = np.empty(len(firsts), np.uint64)
    library().towpath_slot_sums(
        slots.ctypes.data, firsts.ctypes.data, counts.ctypes.data, len(firsts), sums.ctypes.data
    )
    return sums


def table_marks(addresses: bytes, words: Numbers, ends: Numbers, sums: Numbers) -> array[int]:
    """Return the marks of services whose tables have these ``sums``: see native/table_marks.c.

    Backends of service i are those before ends[i] that no service before it has. Each has 16 bytes
    of ``addresses`` and one of ``words``. Words and sums have 64 bits, ends 32.
    """
    marks = array("Q", bytes(8 * len(ends)))
    library().towpath_table_marks(
        addresses, _at(words), _at(ends), _at(sums), len(ends), _at(marks)
    )
    return marks


def _at(numbers: Numbers) -> int:
    """Where they are in memory. An array of the standard library tells, and is made, sooner."""
    return numbers.buffer_info()[0] if isinstance(numbers, array) else numbers.ctypes.data
