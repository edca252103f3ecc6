# SPDX-License-Identifier: Apache-2.0
"""Comparing the layouts of two maps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from towpath.kernel.bpf.layout import Layout, describe, opaque
from towpath.kernel.bpf.map_types import BPF_F_RDONLY_PROG, MapType

POINT = np.dtype([("x", "<u4"), ("y", ">u2"), ("tag", "u1", (2,))])
WANTED = Layout(MapType.HASH, np.dtype("u4"), POINT, 16, 0)


def test_same_layouts_have_no_differences() -> None:
    """A layout fits itself."""
    assert WANTED.differences(WANTED) == []


def test_all_differences_are_told_at_once() -> None:
    """Nothing is left to be found out by trying again."""
    other = np.dtype(
        {
            "names": ["x", "y", "more"],
            "formats": ["<u8", "<u2", "u1"],
            "offsets": [0, 8, 10],
            "itemsize": 16,
        }
    )
    found = Layout(MapType.ARRAY, np.dtype("u8"), other, 32, 1)
    assert WANTED.differences(found) == [
        "type is array instead of hash",
        "max_entries is 32 instead of 16",
        "flags are 0x1 instead of 0x0",
        "key is u64 instead of u32",
        "value.x is u64 instead of u32",
        "value.y is at byte 8 instead of 4",
        "value.y is u16 instead of be16",
        "value.tag is missing",
        "value.more is unknown",
        "value has 16 bytes instead of 8",
    ]


def test_nested_fields_are_named_by_path() -> None:
    """A difference deep inside is told by where it is."""
    wanted = replace(WANTED, value=np.dtype([("pair", POINT, (2,))]))
    found = replace(
        WANTED, value=np.dtype([("pair", [*POINT.descr[:2], ("tag", "i1", (2,))], (2,))])
    )
    assert wanted.differences(found) == ["value.pair[].tag is s8[2] instead of u8[2]"]


def test_unknown_types_compare_by_size() -> None:
    """A map made without type information fits if its sizes do."""
    assert WANTED.differences(replace(WANTED, value=opaque(8))) == []
    assert WANTED.differences(replace(WANTED, key=opaque(5))) == ["key has 5 bytes instead of 4"]


def test_devmaps_are_read_only_anyway() -> None:
    """The flag that the kernel adds to device maps is no difference."""
    declared = replace(WANTED, type=MapType.DEVMAP_HASH)
    assert declared.differences(replace(declared, flags=BPF_F_RDONLY_PROG)) == []
    assert WANTED.differences(replace(WANTED, flags=BPF_F_RDONLY_PROG)) != []


def test_types_are_described_in_c_terms() -> None:
    """Dtypes are told as a C programmer would."""
    described = {dtype: describe(np.dtype(dtype)) for dtype in ("<i4", ">u8", "u1", "<f8")}
    assert described == {"<i4": "s32", ">u8": "be64", "u1": "u8", "<f8": "f64"}
    assert describe(np.dtype(("u1", (6, 2)))) == "u8[6][2]"
    assert describe(POINT) == "struct of 8 bytes"
