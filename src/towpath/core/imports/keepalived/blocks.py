# SPDX-License-Identifier: Apache-2.0
"""Lines to directives: a word, what follows it, and a block in braces."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from towpath.core.imports.keepalived.lines import refuse
from towpath.model.kinds import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from towpath.core.imports.imported import Place
    from towpath.core.imports.keepalived.lines import Line

MAX_NESTED = 32

# A string in quotes, a brace, or a word that ends before any of them.
_TOKEN = re.compile(r'[ \t]*(?:"([^"]*)"|([{}])|([^\s"{}]+))')


@dataclass(slots=True)
class Directive:
    """One of them."""

    name: str
    values: list[str]
    place: Place
    block: list[Directive] | None = None
    """None: it has none."""

    def __str__(self) -> str:
        return " ".join((self.name, *self.values))


def read_blocks(lines: Iterable[Line]) -> list[Directive]:
    """Return the directives of the outermost level. ConfigError: braces or quotes don't fit."""
    outermost: list[Directive] = []
    stack = [outermost]
    openers: list[Directive] = []
    for text, place in lines:
        words: list[str] = []
        for word, brace in _tokens(text, place):
            if not brace:
                words.append(word)
                continue
            _finish(words, place, stack)
            if brace == "{":
                opener = _opened(stack, place)
                opener.block = []
                openers.append(opener)
                stack.append(opener.block)
            elif openers:
                openers.pop()
                stack.pop()
            else:
                refuse(place, "closes a block that was not opened; allowed: as many } as {")
        _finish(words, place, stack)
    if openers:
        last = openers[-1]
        refuse(last.place, f"the block of {shown(str(last))} is not closed; allowed: }} behind it")
    return outermost


def _finish(words: list[str], place: Place, stack: list[list[Directive]]) -> None:
    if words:
        stack[-1].append(Directive(words[0], words[1:], place))
        words.clear()


def _opened(stack: list[list[Directive]], place: Place) -> Directive:
    if not stack[-1] or stack[-1][-1].block is not None:
        refuse(place, "opens a block of nothing; allowed: a directive before {")
    if len(stack) > MAX_NESTED:
        refuse(place, f"blocks are nested more than {MAX_NESTED} deep")
    return stack[-1][-1]


def _tokens(text: str, place: Place) -> Iterator[tuple[str, str]]:
    """Words, and braces as the second."""
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            refuse(place, f'{shown(text)} has a " without its other one')
        quoted, brace, word = match.groups()
        yield (quoted if quoted is not None else word or ""), brace or ""
        at = match.end()
