# SPDX-License-Identifier: Apache-2.0
"""Remembers what was made of an object, by the object itself."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Generic, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Rest = TypeVarTuple("Rest")
R = TypeVar("R")


class _Itself(Generic[T]):
    """Is equal to no other, however much alike."""

    __slots__ = ("what",)

    def __init__(self, what: T) -> None:
        self.what = what

    def __hash__(self) -> int:
        # As long as this is kept so is the object, and no other has this number.
        return id(self.what)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.what is other.what


def remembered(number: int) -> Callable[[Callable[[T, *Rest], R]], Callable[[T, *Rest], R]]:
    """Have a function of an object that never changes make its result once for each object.

    Of the last ``number`` objects: steps that follow one another ask about the very same. To find
    it takes no look into the object. Further arguments are compared as usual. For any thread.
    """

    def decorate(make: Callable[[T, *Rest], R]) -> Callable[[T, *Rest], R]:
        @lru_cache(maxsize=number)
        def known(those: _Itself[T], rest: tuple[*Rest]) -> R:
            return make(those.what, *rest)

        def found(what: T, /, *rest: *Rest) -> R:
            return known(_Itself(what), rest)

        return found

    return decorate
