# SPDX-License-Identifier: Apache-2.0
"""``~SEQ(NAME, FIRST, STEP, LAST)`` and ``~LST(NAME, VALUE, ...)``: a line's repetitions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from towpath.errors import Error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SEQUENCE = re.compile(r"~SEQ(x?)[ \t]*\(([^,()]+),([^()]+)\)")
_LIST = re.compile(r"~LST[ \t]*\((\{[^{}()]*\}|[^{},()]*),(.*)\)", re.DOTALL)
_SETS = re.compile(r"[ \t]*(?:\{([^{}]*)\}|([^{},]*))[ \t]*(?:,|$)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10})", re.ASCII)
_ALLOWED = "allowed: ~SEQ(NAME, FIRST, STEP, LAST) TEXT, or ~LST(NAME, VALUE, VALUE...) TEXT"


class RepeatError(Error):
    """Not a repetition."""


def repeated(text: str, most: int) -> list[dict[str, str]]:
    """Return the values of parameters for each repetition, of which there may be ``most``."""
    if match := _SEQUENCE.fullmatch(text):
        hexadecimal, name, numbers = match.groups()
        values = _numbers([each.strip() for each in numbers.split(",")], most)
        shape = "x" if hexadecimal else "d"
        if hexadecimal and min(values, default=0) < 0:
            raise RepeatError("~SEQx has negative numbers; allowed: 0 and more")
        return [{_name(name): format(value, shape)} for value in values]
    if match := _LIST.fullmatch(text):
        names = [_name(each) for each in match[1].strip("{} \t").split(",")]
        return [_named(names, each) for each in _sets(match[2])]
    raise RepeatError(f"not a repetition; {_ALLOWED}")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text.strip()):
        raise RepeatError(f"{text.strip()!r:.60} is no name of a parameter; {_ALLOWED}")
    return text.strip()


def _numbers(words: Sequence[str], most: int) -> range:
    if not all(map(_NUMBER.fullmatch, words)) or not 1 <= len(words) <= 3:  # noqa: PLR2004
        raise RepeatError(f"~SEQ has one to three numbers; {_ALLOWED}")
    numbers = [int(word, 16 if "x" in word.lower() else 10) for word in words]
    last = numbers[-1]
    first = numbers[0] if len(numbers) > 1 else (1 if last > 0 else -1)
    step = numbers[1] if len(numbers) == 3 else (1 if last >= first else -1)  # noqa: PLR2004
    if step == 0 or (last - first) * step < 0:
        raise RepeatError(f"~SEQ from {first} by {step} never gets to {last}")
    values = range(first, last + (1 if step > 0 else -1), step)
    if len(values) > most:
        raise RepeatError(f"~SEQ comes to {len(values)} lines; allowed: {most}")
    return values


def _sets(text: str) -> Iterator[list[str]]:
    at = 0
    while at < len(text):
        match = _SETS.match(text, at)
        if match is None or match.end() == at:
            raise RepeatError(f"not a list of values; {_ALLOWED}")
        inner = match[1] if match[1] is not None else match[2]
        yield [each.strip() for each in inner.split(",")]
        at = match.end()


def _named(names: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    """What is missing is empty."""
    if len(values) > len(names):
        raise RepeatError(f"~LST has {len(values)} values for {len(names)} names; {_ALLOWED}")
    padded = [*values, *[""] * (len(names) - len(values))]
    return dict(zip(names, padded, strict=True))
