# SPDX-License-Identifier: Apache-2.0
"""Many elements of a map at a time, and one after the other where the kernel can't.

Not all kinds of maps have batches, and on older kernels fewer do: the call itself tells. Keys and
values are bytes here, packed one after the other.
"""

from __future__ import annotations

import ctypes
import errno as errnos
from typing import TYPE_CHECKING, NamedTuple

from towpath.errors import Error
from towpath.kernel.bpf._structs import MapBatchOpts
from towpath.kernel.bpf.libbpf import lib
from towpath.kernel.errors import ENOTSUPP
from towpath.kernel.fallback import fall_back

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_BATCH = frozenset((ENOTSUPP, errnos.EOPNOTSUPP, errnos.EINVAL))
_SINGLY = ("batches for a kind of map", "its elements are read and written one by one")
_CHUNK = 16384  # elements asked for at once
_TOKEN = 64  # room for a position in the map: the number of a bucket, or a key


class Sizes(NamedTuple):
    """Bytes of one key and of one key's value, that of a per-CPU map for all CPUs."""

    key: int
    value: int


class BatchError(Error):
    """The kernel refused; ``number`` is the error number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def lookup(fd: int, key: bytes, size: int) -> bytes | None:
    """The value of one key, None when it isn't there."""
    buffer = ctypes.create_string_buffer(size)
    result = lib.bpf_map_lookup_elem(fd, key, buffer)
    if result == -errnos.ENOENT:
        return None
    _check(result)
    return buffer.raw


def read(fd: int, sizes: Sizes, max_entries: int) -> Iterator[tuple[bytes, bytes]]:
    """All elements: some keys and as many values at each step. BatchError."""
    chunk = min(max_entries, _CHUNK)
    position: bytes | None = None
    while True:
        keys = ctypes.create_string_buffer(chunk * sizes.key)
        values = ctypes.create_string_buffer(chunk * sizes.value)
        token = ctypes.create_string_buffer(max(_TOKEN, sizes.key))
        count = ctypes.c_uint32(chunk)
        result = lib.bpf_map_lookup_batch(
            fd, position, token, keys, values, ctypes.byref(count), ctypes.byref(MapBatchOpts())
        )
        if result == -errnos.ENOSPC:  # one bucket of a hash table has more elements than that
            chunk *= 2
            continue
        if -result in NO_BATCH and position is None:
            fall_back(*_SINGLY)
            yield from _read_singly(fd, sizes)
            return
        if result != -errnos.ENOENT:  # which marks the end
            _check(result)
        yield keys.raw[: count.value * sizes.key], values.raw[: count.value * sizes.value]
        if result:
            return
        position = token.raw


def _read_singly(fd: int, sizes: Sizes) -> Iterator[tuple[bytes, bytes]]:
    key: bytes | None = None
    following = ctypes.create_string_buffer(sizes.key)
    while (result := lib.bpf_map_get_next_key(fd, key, following)) == 0:
        key = following.raw
        value = lookup(fd, key, sizes.value)
        if value is not None:
            yield key, value
    if result != -errnos.ENOENT:
        _check(result)


def update(fd: int, sizes: Sizes, keys: bytes, values: bytes, flags: int) -> None:
    """Store elements in order. BatchError: those before the failing one are stored."""
    count = ctypes.c_uint32(len(keys) // sizes.key)
    opts = MapBatchOpts(elem_flags=flags)
    result = lib.bpf_map_update_batch(fd, keys, values, ctypes.byref(count), ctypes.byref(opts))
    if -result not in NO_BATCH:
        _check(result)
        return
    fall_back(*_SINGLY)
    pairs = zip(_split(keys, sizes.key), _split(values, sizes.value), strict=True)
    for key, value in pairs:
        _check(lib.bpf_map_update_elem(fd, key, value, flags))


def delete(fd: int, sizes: Sizes, keys: bytes) -> None:
    """Remove elements in order. BatchError: those before the failing one are removed."""
    count = ctypes.c_uint32(len(keys) // sizes.key)
    opts = MapBatchOpts()
    result = lib.bpf_map_delete_batch(fd, keys, ctypes.byref(count), ctypes.byref(opts))
    if -result not in NO_BATCH:
        _check(result)
        return
    fall_back(*_SINGLY)
    for key in _split(keys, sizes.key):
        _check(lib.bpf_map_delete_elem(fd, key))


def _split(packed: bytes, size: int) -> Iterator[bytes]:
    return (packed[at : at + size] for at in range(0, len(packed), size))


def _check(result: int) -> None:
    if result < 0:
        raise BatchError(-result)
