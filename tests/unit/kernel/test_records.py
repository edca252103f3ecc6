# SPDX-License-Identifier: Apache-2.0
"""Keys and values as the bytes that the kernel takes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath.kernel.bpf._records import encode, encode_all, round_up, view

POINT = np.dtype([("x", "<u4"), ("y", ">u2"), ("tag", "u1", (2,))])


@given(number=st.integers(0, 2**16 - 1))
def test_numbers_take_the_byte_order_of_the_type(number: int) -> None:
    """A number is stored as its type says."""
    assert encode(number, np.dtype(">u2"), "key") == number.to_bytes(2, "big")
    assert encode(np.uint16(number), np.dtype("<u4"), "key") == number.to_bytes(4, "little")


@given(
    x=st.integers(0, 2**32 - 1), y=st.integers(0, 2**16 - 1), tag=st.binary(min_size=2, max_size=2)
)
def test_every_way_to_write_a_record_is_the_same(x: int, y: int, tag: bytes) -> None:
    """A tuple, a record, an array of none dimensions and bytes all mean the same."""
    expected = x.to_bytes(4, "little") + y.to_bytes(2, "big") + tag
    record = np.zeros((), POINT)
    record["x"], record["y"], record["tag"] = x, y, list(tag)
    native = np.concatenate([record[np.newaxis]])  # numpy makes it native-endian
    for value in (expected, record, record[()], (x, y, list(tag)), native[0]):
        assert encode(value, POINT, "value") == expected


@pytest.mark.parametrize(
    ("value", "dtype", "error", "message"),
    [
        (b"123", "<u4", ValueError, "key: 3 bytes where 4 are needed"),
        (5, POINT, TypeError, "key: a number where a record of 8 bytes is needed"),
        (5, "V3", TypeError, "key: a number where a record of 3 bytes"),
        (np.zeros((), [("x", "<u4"), ("y", "<u4")]), POINT, TypeError, "key: of dtype"),
        (np.zeros(2, POINT), POINT, ValueError, "key: of shape"),
        (-1, "<u4", OverflowError, "key: "),
        (2**32, "<u4", OverflowError, "key: "),
        ([1, 2], np.dtype(("<u4", (3,))), ValueError, "key: of shape (1, 2) where (1, 3)"),
        (7, np.dtype(("<u4", (3,))), ValueError, "key: of shape"),
        ([1, 2, 256], np.dtype(("u1", (3,))), OverflowError, "key: not all fit in 8 bits"),
        ([0.5], np.dtype(("u1", (1,))), TypeError, "key: of dtype float64"),
        ((1, 2), POINT, ValueError, "key: "),
    ],
)
def test_what_does_not_fit_is_refused(
    value: Any, dtype: Any, error: type[Exception], message: str
) -> None:
    """Nothing is cut, padded or reinterpreted on the way to the kernel."""
    with pytest.raises(error, match=re.escape(message)):
        encode(value, np.dtype(dtype), "key")


def test_many_need_the_right_number_and_type() -> None:
    """Arrays have to have one element for each key."""
    with pytest.raises(ValueError, match=r"values: of shape \(2,\) where \(3,\) is needed"):
        encode_all(np.zeros(2, "u4"), np.dtype("u4"), 3, "values")
    with pytest.raises(TypeError, match="values: of dtype"):
        encode_all(np.zeros(1, "u4,u4"), POINT, 1, "values")


def test_array_values_keep_their_shape() -> None:
    """A type that is an array makes rows."""
    rows = view(bytearray(range(24)), np.dtype(("u1", (3,))), (3,), (8,))
    assert rows.tolist() == [[0, 1, 2], [8, 9, 10], [16, 17, 18]]


@given(st.integers(0, 10**6))
def test_round_up_is_the_next_multiple(number: int) -> None:
    """The result is a multiple of 8 and less than 8 away."""
    assert round_up(number) % 8 == 0
    assert 0 <= round_up(number) - number < 8
