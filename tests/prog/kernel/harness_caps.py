# SPDX-License-Identifier: Apache-2.0
"""Doing without capabilities, to see what the errors say."""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_libc = ctypes.CDLL(None, use_errno=True)
_VERSION_3 = 0x20080522
_ALL = 0xFFFFFFFF


@contextmanager
def only(*kept: int) -> Iterator[None]:
    """Run the block with no effective capabilities but those given; of this thread only."""
    header = struct.pack("<Ii", _VERSION_3, 0)
    before = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, before))
    mask = sum(1 << number for number in kept)
    words = list(struct.unpack("<6I", before.raw))
    words[0], words[3] = mask & _ALL, mask >> 32
    _check(_libc.capset(header, struct.pack("<6I", *words)))
    try:
        yield
    finally:
        _check(_libc.capset(header, before))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
