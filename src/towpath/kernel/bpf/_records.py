# SPDX-License-Identifier: Apache-2.0
"""Map keys and values between Python and the bytes that the kernel takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from towpath.kernel.bpf.btf import Dtype

Record: TypeAlias = "int | bytes | tuple[Any, ...] | list[Any] | np.generic | np.ndarray[Any, Any]"
Array: TypeAlias = "np.ndarray[Any, Any]"


def round_up(number: int, step: int = 8) -> int:
    """The next multiple of ``step``: arrays and per-CPU values are spaced by 8."""
    return -(-number // step) * step


def encode(value: Record, dtype: Dtype, what: str) -> bytes:
    """One key or value as bytes.

    Takes bytes of the right size, a numpy object of that dtype, or whatever numpy can assign to it
    (a number, a tuple for a struct). ValueError, TypeError or OverflowError: it doesn't fit.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        if len(value) != dtype.itemsize:
            raise ValueError(f"{what}: {len(value)} bytes where {dtype.itemsize} are needed")
        return bytes(value)
    if dtype.shape or (isinstance(value, np.generic | np.ndarray) and value.dtype.names):
        return encode_all(np.asarray(value)[np.newaxis], dtype, 1, what).tobytes()
    if isinstance(value, int | np.integer) and dtype.kind == "V":
        raise TypeError(f"{what}: a number where a record of {dtype.itemsize} bytes is needed")
    record = np.zeros((), dtype)
    try:
        record[...] = value
    except (ValueError, TypeError, OverflowError) as error:
        raise type(error)(f"{what}: {error}") from error
    return record.tobytes()


def encode_all(values: Array, dtype: Dtype, count: int, what: str) -> Array:
    """Many keys or values as one contiguous array of ``dtype``, shape ``(count,)`` and its own.

    ValueError, TypeError or OverflowError: they don't fit.
    """
    wanted = (count, *dtype.shape)
    array = np.asarray(values)
    if array.shape != wanted:
        raise ValueError(f"{what}: of shape {array.shape} where {wanted} is needed")
    _check_convertible(array, dtype.base, what)
    return np.ascontiguousarray(array, dtype.base)


def _check_convertible(array: Array, dtype: Dtype, what: str) -> None:
    """Refuse what numpy would convert with a loss."""
    if array.dtype.names is not None or dtype.names is not None:
        # Assigning one struct to another goes by position, whatever the fields are called.
        fits = _same_fields(array.dtype, dtype)
    elif array.dtype.kind in "iu" and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if array.size and not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
            raise OverflowError(f"{what}: not all fit in {dtype.itemsize * 8} bits")
        return
    else:
        fits = np.can_cast(array.dtype, dtype, "same_kind")
    if not fits:
        raise TypeError(f"{what}: of dtype {array.dtype} where {dtype} is needed")


def _same_fields(one: Dtype, other: Dtype) -> bool:
    # Byte order apart, which numpy's own functions (concatenate, stack) turn into the machine's.
    return one == other or one.newbyteorder("<") == other.newbyteorder("<")


def view(buffer: Any, dtype: Dtype, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """Records of ``dtype`` in a buffer where they lie ``strides`` apart."""
    # The one-field wrapper is for array values: numpy would merge their shape into ours.
    wrapped = np.dtype([("value", dtype)])
    array: Array = np.ndarray(shape, wrapped, buffer, strides=strides)["value"]
    return array
