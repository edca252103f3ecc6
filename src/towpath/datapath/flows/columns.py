# SPDX-License-Identifier: Apache-2.0
"""Entries of a table by column: an array for each field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Array = np.ndarray[Any, Any]

_ADDRESS_BYTES = 16


class Columns:
    """What frozen dataclasses with slots have in common whose fields are arrays of one length."""

    __slots__: tuple[str, ...] = ()

    ADDRESSES: ClassVar[frozenset[str]] = frozenset()
    """Fields with 16 bytes an entry; all others have one number."""

    def __len__(self) -> int:
        return len(getattr(self, self.__slots__[0]))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the entries of parts, one after the other."""
        if not parts:
            none, addresses = np.zeros(0, np.int64), np.zeros((0, _ADDRESS_BYTES), np.uint8)
            return cls(*(addresses if name in cls.ADDRESSES else none for name in cls.__slots__))
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in cls.__slots__))

    def only(self, which: Array | slice) -> Self:
        """Return the entries that an index, a slice or a mask selects."""
        return type(self)(*(getattr(self, name)[which] for name in self.__slots__))


C = TypeVar("C", bound=Columns)


def page(kind: type[C], chunks: Iterable[C], limit: int | None) -> C:
    """Return the first ``limit`` entries of chunks, or all; no more chunks are asked for."""
    taken: list[C] = []
    count = 0
    for chunk in chunks:
        taken.append(chunk)
        count += len(chunk)
        if limit is not None and count >= limit:
            break
    return kind.joined(taken).only(slice(limit))
