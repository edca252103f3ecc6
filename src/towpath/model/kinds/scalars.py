# SPDX-License-Identifier: Apache-2.0
"""Numbers, switches and words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from towpath.model.kinds.base import FieldError, Kind, shown
from towpath.model.primes import is_prime, prime_at_least, prime_at_most

if TYPE_CHECKING:
    import enum


@dataclass(frozen=True)
class Integer(Kind):
    """A whole number from ``least`` to ``most``."""

    least: int
    most: int

    def parse(self, raw: object) -> int:
        """Return the number."""
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise FieldError(f"{shown(raw)} is not a whole number; {self.allowed}")
        if not self.least <= raw <= self.most:
            raise FieldError(f"{shown(raw)} is out of range; {self.allowed}")
        return raw

    @property
    def allowed(self) -> str:
        """What an error says is allowed."""
        return f"allowed: {self.least} to {self.most}"

    def schema(self) -> dict[str, Any]:
        """Return the range as JSON schema."""
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True)
class Integers(Integer):
    """A list of up to ``count`` different whole numbers from ``least`` to ``most``."""

    count: int

    def parse(self, raw: object) -> tuple[int, ...]:  # type: ignore[override]
        """Return the numbers in the order given; one by itself is a list too."""
        items = raw if isinstance(raw, list | tuple) else [] if raw is None else [raw]
        found = tuple(super(Integers, self).parse(item) for item in items)
        if len(found) > self.count:
            raise FieldError(f"{len(found)} are too many; {self.allowed}")
        for number in found:
            if found.count(number) > 1:
                raise FieldError(f"{number} is listed twice; {self.allowed}")
        return found

    @property
    def allowed(self) -> str:
        """What an error says is allowed."""
        return f"allowed: up to {self.count}, each from {self.least} to {self.most}"

    def schema(self) -> dict[str, Any]:
        """Return a list of numbers as JSON schema."""
        return {"type": "array", "items": super().schema(), "maxItems": self.count}


@dataclass(frozen=True)
class IntegerSet(Integers):
    """Up to ``count`` different whole numbers from ``least`` to ``most``, in ascending order."""

    def parse(self, raw: object) -> tuple[int, ...]:  # type: ignore[override]
        """Return the numbers in their order, whatever the one is that they are given in."""
        return tuple(sorted(super().parse(raw)))

    @property
    def allowed(self) -> str:
        """What an error says is allowed."""
        return f"allowed: {self.least} to {self.most}, or a list of up to {self.count} of them"

    def schema(self) -> dict[str, Any]:
        """Return a number, a list of numbers, or null as JSON schema."""
        listed = super().schema() | {"uniqueItems": True}
        return {"anyOf": [listed["items"], listed, {"type": "null"}]}


@dataclass(frozen=True)
class Prime(Integer):
    """A prime from ``least`` to ``most``, both of which are primes."""

    def parse(self, raw: object) -> int:
        """Return the prime."""
        number = super().parse(raw)
        if not is_prime(number):
            near = f"{prime_at_most(number)} and {prime_at_least(number)}"
            raise FieldError(f"{number} is not a prime; allowed: a prime, the nearest are {near}")
        return number

    @property
    def allowed(self) -> str:
        """What an error says is allowed."""
        return f"allowed: a prime from {self.least} to {self.most}"


@dataclass(frozen=True)
class Flag(Kind):
    """true or false."""

    def parse(self, raw: object) -> bool:
        """Return the flag; no number or word stands for one."""
        if not isinstance(raw, bool):
            raise FieldError(f"{shown(raw)} is neither true nor false; allowed: true, false")
        return raw

    def schema(self) -> dict[str, Any]:
        """Return a boolean's JSON schema."""
        return {"type": "boolean"}


class Word(Kind):
    """One of a few words; the words of an enum become its members."""

    def __init__(self, *words: str, of: type[enum.StrEnum] | None = None) -> None:
        self._words = {word: word for word in words} if of is None else {str(m): m for m in of}

    def parse(self, raw: object) -> str:
        """Return the word, or the enum's member."""
        word = self._words.get(raw) if isinstance(raw, str) else None
        if word is None:
            raise FieldError(f"{shown(raw)} is not known; allowed: {', '.join(self._words)}")
        return word

    def schema(self) -> dict[str, Any]:
        """Return the words as JSON schema."""
        return {"type": "string", "enum": list(self._words)}


@dataclass(frozen=True)
class OrNone(Kind):
    """Something, or None: whatever is the default."""

    kind: Kind

    def parse(self, raw: object) -> Any:
        """Return the value."""
        return None if raw is None else self.kind.parse(raw)

    def schema(self) -> dict[str, Any]:
        """Return the value's JSON schema, or null."""
        return {"anyOf": [self.kind.schema(), {"type": "null"}]}
