# SPDX-License-Identifier: Apache-2.0
"""The lines that keepalived acts on, each with its place.

By keepalived.conf(5): comments and lines for another configuration id (``@ID``) go, files that are
included come, parameters (``$NAME=VALUE``, of one line or several) are put in where they are used
and as they are then, ``~SEQ`` and ``~LST`` repeat the rest of their line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from towpath.core.imports.imported import NoteKind, Place
from towpath.core.imports.keepalived.repeats import RepeatError, repeated
from towpath.model.kinds import shown
from towpath.model.problems import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.core.imports.imported import Collected, Include

MAX_LINES = 200_000
MAX_LENGTH = 4096
MAX_DEPTH = 16
"""Of parameters in parameters."""
MAX_INCLUDED = 8
"""Of files in files."""
MAX_FILES = 1000

_DEFINITION = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)=[ \t]*(.*)", re.ASCII | re.DOTALL)
_INCLUDE = re.compile(r"include([rmwba]?)[ \t]+(.+)")
# $NAME before white space, a comma, a bracket or the end; ${NAME} anywhere.
_PARAMETER = re.compile(
    r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)([ \t]+[A-Za-z0-9_ \t]*)?\}"
    r"|([A-Za-z_][A-Za-z0-9_]*)(?=[ \t,)]|$))",
    re.ASCII,
)
_OF_ITS_PROCESS = {
    "_RANDOM": "is another number each time",
    "_ENV": "is a variable of keepalived's environment",
}


class Line(NamedTuple):
    """What is left of a line, and where it was."""

    text: str
    place: Place


@dataclass
class _State:
    """What is the same for all files of a configuration."""

    config_id: str
    include: Include
    into: Collected
    parameters: dict[str, list[str]] = field(default_factory=dict)
    lines: int = 0
    files: int = 0


def read_lines(
    text: str, file: str, config_id: str, include: Include, into: Collected
) -> list[Line]:
    """Return the lines of a configuration file and of those that it includes. ConfigError."""
    state = _State(config_id, include, into)
    return list(_File(state, file, 0).lines(text))


def refuse(place: Place, message: str) -> NoReturn:
    """Raise ConfigError: nothing behind this can be understood."""
    raise ConfigError([Problem(message, "", place.file, place.line)])


def without_comment(line: str, *, plain: bool = False) -> tuple[str, bool]:
    """Return a line without comment and outer white space, and whether it ends with a backslash.

    ``plain``: what is escaped as no comment is then plain text.
    """
    kept: list[str] = []
    quoted, at = False, 0
    while at < len(line):
        each = line[at]
        if each == "\\":
            if not line[at + 1 :].strip():
                return "".join(kept).strip(), True
            following = line[at + 1]
            kept.append(following if plain and following in "#!" else each + following)
            at += 2
            continue
        if each in "#!" and not quoted:
            break
        quoted ^= each == '"'
        kept.append(each)
        at += 1
    return "".join(kept).strip(), False


class _File:
    """One file."""

    def __init__(self, state: _State, file: str, depth: int) -> None:
        self._state = state
        self._file = file
        self._depth = depth
        self._defining: str | None = None

    def lines(self, text: str) -> Iterator[Line]:
        """The lines that it comes to."""
        for number, raw in enumerate(text.splitlines(), 1):
            place = Place(self._file, number)
            line, goes_on = without_comment(raw)
            if self._defining is not None:
                # A comment by itself doesn't end a definition, nothing at all does.
                if line or goes_on or not raw:
                    self._define_more(line, goes_on=goes_on)
                continue
            if line:
                yield from self._act(line, place, 0, goes_on=goes_on)
            elif goes_on:
                self._refuse_continuation(place)

    def _define_more(self, line: str, *, goes_on: bool) -> None:
        if line:
            self._state.parameters[str(self._defining)].append(line)
        if not goes_on:
            self._defining = None

    def _refuse_continuation(self, place: Place) -> NoReturn:
        refuse(place, "ends with \\; allowed: at the end of a line of a definition, $NAME= \\")

    def _act(self, line: str, place: Place, depth: int, *, goes_on: bool = False) -> Iterator[Line]:
        """Do what a line says to the lines themselves, or return it."""
        self._count(line, place, depth)
        if line.startswith("@"):
            line = self._if_meant(line)
            if not line:
                self._defining = "" if goes_on else None
                self._state.parameters[""] = []
                return
        if match := _DEFINITION.fullmatch(line):
            name, value = match.groups()
            self._state.parameters[name] = [value] if value or not goes_on else []
            self._defining = name if goes_on else None
            return
        if goes_on:
            self._refuse_continuation(place)
        if line.startswith(("~SEQ", "~LST")):
            yield from self._repeat(line, place, depth)
            return
        replaced, more = self._replaced(line, place)
        if more is None:
            yield from self._finished(line, place)
            return
        yield from self._act_again(replaced, place, depth)
        for each in more:
            yield from self._act_again(each, place, depth)

    def _act_again(self, line: str, place: Place, depth: int) -> Iterator[Line]:
        if line := line.strip():
            yield from self._act(line, place, depth + 1)

    def _count(self, line: str, place: Place, depth: int) -> None:
        self._state.lines += 1
        if self._state.lines > MAX_LINES:
            refuse(place, f"comes to more than {MAX_LINES} lines; allowed: fewer")
        if len(line) > MAX_LENGTH:
            refuse(place, f"has {len(line)} characters; allowed: {MAX_LENGTH}")
        if depth > MAX_DEPTH:
            refuse(place, "parameters stand for themselves, or are nested too deep")

    def _if_meant(self, line: str) -> str:
        """The rest of ``@ID ...`` or ``@^ID ...``; nothing if it is for others."""
        condition, _, rest = line[1:].replace("\t", " ").partition(" ")
        turned = condition.startswith("^")
        meant = (condition.removeprefix("^") == self._state.config_id) != turned
        return rest.strip() if meant else ""

    def _repeat(self, line: str, place: Place, depth: int) -> Iterator[Line]:
        head, closing, rest = line.partition(")")
        try:
            every = repeated(self._in_one_line(head + closing, place), MAX_LINES)
        except RepeatError as error:
            refuse(place, str(error))
        for values in every:
            self._state.parameters |= {name: [value] for name, value in values.items()}
            yield from self._act_again(rest, place, depth)

    def _in_one_line(self, text: str, place: Place) -> str:
        """A text with parameters put in, none of which has several lines."""
        for _ in range(MAX_DEPTH):
            text, more = self._replaced(text, place)
            if more:
                refuse(place, "a parameter of several lines is in brackets; allowed: of one line")
            if more is None:
                return text
        refuse(place, "parameters stand for themselves, or are nested too deep")

    def _replaced(self, line: str, place: Place) -> tuple[str, list[str] | None]:
        """A line with its parameters put in, and the lines that follow; None: it has none."""
        following: list[str] = []
        found = False

        def value(match: re.Match[str]) -> str:
            nonlocal found
            name = match[1] or match[3]
            if name not in self._state.parameters and name in _OF_ITS_PROCESS:
                why = _OF_ITS_PROCESS[name]
                refuse(place, f"${{{name}}} {why}; allowed: what it is, written out")
            lines = self._parameter(name)
            if lines is None or match[2]:
                return match[0]
            several = len(lines) > 1
            if several and match.end() < len(line):
                return match[0]
            found = True
            following.extend(lines[1:])
            return lines[0] if lines else ""

        # One after the other: what is put in may belong to the next one.
        replaced = _PARAMETER.sub(value, line)
        return replaced, following if found else None

    def _parameter(self, name: str) -> list[str] | None:
        if name in self._state.parameters:
            return self._state.parameters[name]
        directory = self._file.rpartition("/")[0] or ("/" if self._file.startswith("/") else ".")
        known = {
            "_PWD": directory,
            "_INSTANCE": self._state.config_id,
            "_HASH": "\\#",
            "_BANG": "\\!",
        }
        return [known[name]] if name in known else None

    def _finished(self, line: str, place: Place) -> Iterator[Line]:
        """A line that is as it will be: what it includes, or itself."""
        line, _ = without_comment(line, plain=True)
        if match := _INCLUDE.fullmatch(line):
            yield from self._included(match[2].strip('"'), match[1], place)
        elif line:
            yield Line(line, place)

    def _included(self, pattern: str, checks: str, place: Place) -> Iterator[Line]:
        if self._depth >= MAX_INCLUDED:
            refuse(place, f"includes files {MAX_INCLUDED} deep; does one include itself?")
        files = [each for one in _braces(pattern) for each in self._state.include(one, self._file)]
        self._state.files += len(files)
        if self._state.files > MAX_FILES:
            refuse(place, f"includes more than {MAX_FILES} files; allowed: fewer")
        if not files and checks:
            refuse(place, f"include{checks} {shown(pattern)}: no such file that can be read")
        if not files:
            self._state.into.note(
                NoteKind.ELSEWHERE, f"include {pattern}", "no such file that can be read", place
            )
        for name, text in files:
            yield from _File(self._state, name, self._depth + 1).lines(text)


def _braces(pattern: str) -> list[str]:
    """``{a,b{c,d}}`` as csh has it: a, bc, bd."""
    done: list[str] = []
    waiting = [pattern]
    while waiting and len(done) + len(waiting) <= MAX_FILES:
        text = waiting.pop()
        match = re.search(r"\{([^{}]*,[^{}]*)\}", text)
        if match is None:
            done.append(text)
            continue
        options = match[1].split(",")
        waiting += [text[: match.start()] + each + text[match.end() :] for each in options[::-1]]
    return list(dict.fromkeys(done))
