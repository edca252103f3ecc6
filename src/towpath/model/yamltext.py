# SPDX-License-Identifier: Apache-2.0
"""YAML text to plain data, and to the lines of it.

PyYAML parses (with libyaml where it is built in, ten times as fast), and what it finds is made
data of as it comes: its trees of nodes take several times the memory. Where things are is read
again when something is wrong. ruamel.yaml would add a dependency and the round trip of comments,
which nobody needs here. What YAML allows and a configuration should not (a key given twice, a key
that is not text, an alias inside of itself) is reported; merge keys (``<<``) and aliases work.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from towpath.model.decode import Findings
from towpath.model.kinds import shown
from towpath.model.problems import FieldPath

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Aliases may repeat what they stand for; with this many values it becomes abuse.
_MAX_REPEATED = 500_000

_MAX_DEPTH = 32

_TEXT = "tag:yaml.org,2002:str"
# What YAML 1.1 reads as other numbers than people mean: 0443 is 291, 1_0 is 10, 1:30 is 90.
_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"-?(0|[1-9][0-9]*)", re.ASCII),
    "tag:yaml.org,2002:float": re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+", re.ASCII),
}
_NUMBER = "digits that don't begin with 0, such as 8 or 0.5; text in quotes"
_MERGE = "tag:yaml.org,2002:merge"


class Lines:
    """The line of each value and key, counted from 1."""

    def __init__(self) -> None:
        self._lines: dict[FieldPath, int] = {}

    def put(self, path: FieldPath, event: Any) -> None:
        """Note where ``path`` is written. The first note of a path counts."""
        self._lines.setdefault(path, event.start_mark.line + 1)

    def of(self, path: FieldPath) -> int | None:
        """Return the line of ``path``, or of what it would be in; None: empty text."""
        while path not in self._lines and path:
            path = path[:-1]
        return self._lines.get(path)


class _NoLines(Lines):
    def put(self, path: FieldPath, event: Any) -> None:
        """Note nothing."""


def read_yaml(text: str, found: Findings) -> Any:
    """Read one YAML document. Raises yaml.YAMLError when it is malformed."""
    return _read(text, _NoLines(), found)


def read_lines(text: str) -> Lines:
    """Return where everything is in a text that `read_yaml` has read."""
    lines, found = Lines(), Findings()
    found.within(lambda: _read(text, lines, found))
    return lines


def _read(text: str, lines: Lines, found: Findings) -> Any:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise yaml.YAMLError(str(error)) from None
    loader = _Loader(text)
    try:
        return _Reader(loader, lines, found).document()
    finally:
        loader.dispose()


def _malformed(problem: str, event: Any) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


class _Reader:
    """Makes data of what a parser finds. What has an anchor is kept, and comes again by aliases."""

    def __init__(self, loader: Any, lines: Lines, found: Findings) -> None:
        self._loader = loader
        self._lines = lines
        self._found = found
        # An anchor's events; none as long as it isn't whole.
        self._anchors: dict[str, list[yaml.Event]] = {}
        self._kept: list[list[yaml.Event]] = []
        self._again: list[Iterator[yaml.Event]] = []
        self._repeated = 0
        self._depth = 0

    def document(self) -> Any:
        """The only one that there is; None if there is none."""
        self._loader.get_event()
        if self._loader.check_event(yaml.StreamEndEvent):
            return None
        begin = self._loader.get_event()
        data = self._value(self._next(), ())
        self._loader.get_event()
        if not self._loader.check_event(yaml.StreamEndEvent):
            raise yaml.MarkedYAMLError(
                "expected a single document in the stream",
                begin.start_mark,
                "but found another document",
                self._loader.get_event().start_mark,
            )
        return data

    # ---- What comes ------------------------------------------------------------------------------

    def _next(self) -> Any:
        if self._again:
            return next(self._again[-1])
        event = self._loader.get_event()
        for each in self._kept:
            each.append(event)
        return event

    @contextmanager
    def _keeping(self, event: Any) -> Iterator[None]:
        """Keep what comes in the block if it has an anchor."""
        if event.anchor is None or self._again:
            yield
            return
        if event.anchor in self._anchors:
            raise _malformed("found duplicate anchor", event)
        self._anchors[event.anchor] = []
        self._kept.append([event])
        yield
        self._anchors[event.anchor] = self._kept.pop()

    @contextmanager
    def _repeating(self, alias: Any) -> Iterator[Any]:
        """Have what an alias stands for come again in the block, which gets the first of it."""
        kept = self._anchors.get(alias.anchor)
        if kept is None:
            raise _malformed("found undefined alias", alias)
        if not kept:
            raise _malformed("an alias repeats what it is in, or too much", alias)
        self._again.append(iter(kept))
        yield next(self._again[-1])
        self._again.pop()

    def _count(self, event: Any) -> None:
        self._repeated += bool(self._again)
        if self._repeated > _MAX_REPEATED:
            raise _malformed("an alias repeats what it is in, or too much", event)

    # ---- What it means ---------------------------------------------------------------------------

    def _value(self, event: Any, path: FieldPath) -> Any:
        if isinstance(event, yaml.AliasEvent):
            with self._repeating(event) as first:
                return self._value(first, path)
        self._count(event)
        self._lines.put(path, event)
        with self._keeping(event):
            if isinstance(event, yaml.ScalarEvent):
                return self._scalar(event, path)
            with self._deeper(event):
                is_list = isinstance(event, yaml.SequenceStartEvent)
                return self._list(path) if is_list else self._mapping(path)

    @contextmanager
    def _deeper(self, event: Any) -> Iterator[None]:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _malformed(f"nested more than {_MAX_DEPTH} deep", event)
        yield
        self._depth -= 1

    def _list(self, path: FieldPath) -> list[Any]:
        data: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            data.append(self._value(event, (*path, len(data))))
        return data

    def _scalar(self, event: Any, path: FieldPath) -> Any:
        tag = self._tag(event)
        if tag == _TEXT:
            return event.value
        if tag in _NUMBERS and not _NUMBERS[tag].fullmatch(event.value):
            self._found.spoil(
                path, f"{shown(event.value)} is not a decimal number; allowed: {_NUMBER}"
            )
            return event.value
        node = yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark)
        try:
            return self._loader.construct_object(node)
        except (ValueError, LookupError, AttributeError) as error:
            # What PyYAML's constructors let through: 2024-13-01, !!bool maybe.
            kind = tag.rpartition(":")[2]
            raise _malformed(f"{shown(event.value)} is not a {kind}", event) from error
        finally:
            self._loader.constructed_objects.clear()

    def _tag(self, event: Any) -> str:
        if event.tag in {None, "!"}:
            return str(self._loader.resolve(yaml.ScalarNode, event.value, event.implicit))
        return str(event.tag)

    # ---- Mappings --------------------------------------------------------------------------------

    def _mapping(self, path: FieldPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        first: dict[str, int] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key_event = self._key(event)
            key = str(key_event.value)
            self._report_duplicate((*path, key), key_event.start_mark.line + 1, first)
            if self._tag(key_event) == _MERGE:
                merged = self._merged(self._next(), path) | merged
                continue
            self._lines.put((*path, key), key_event)
            data[key] = self._value(self._next(), (*path, key))
        return merged | data

    def _key(self, event: Any) -> Any:
        if isinstance(event, yaml.AliasEvent):
            with self._repeating(event) as first:
                return self._key(first)
        if not isinstance(event, yaml.ScalarEvent):
            raise _malformed("a key is a list or a mapping; allowed: text", event)
        with self._keeping(event):
            return event

    def _merged(self, event: Any, path: FieldPath, *, of_list: bool = False) -> dict[str, Any]:
        """What ``<<`` brings: of a mapping, or of several, of which the first ones count."""
        if isinstance(event, yaml.AliasEvent):
            with self._repeating(event) as first:
                return self._merged(first, path, of_list=of_list)
        self._count(event)
        with self._keeping(event), self._deeper(event):
            if isinstance(event, yaml.MappingStartEvent):
                return self._mapping(path)
            if of_list or not isinstance(event, yaml.SequenceStartEvent):
                raise _malformed("only mappings can be merged", event)
            data: dict[str, Any] = {}
            while not isinstance(item := self._next(), yaml.SequenceEndEvent):
                data = self._merged(item, path, of_list=True) | data
            return data

    def _report_duplicate(self, path: FieldPath, line: int, first: dict[str, int]) -> None:
        """Before merging: a key may be given here and in what is merged."""
        key = str(path[-1])
        if self._again:
            return  # it was reported where it is written
        if key in first:
            also = f", also in line {line}" if first[key] != line else ""
            self._found.add(path, f"is given twice{also}; allowed: once")
        first.setdefault(key, line)


def yaml_problem(error: yaml.YAMLError) -> tuple[int | None, str]:
    """Return the line (from 1) and the message of malformed YAML."""
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if context := getattr(error, "context", None):
        start = getattr(error, "context_mark", None)
        since = f" that starts in line {start.line + 1}" if start else ""
        what = f"{context}{since}: {what}"
    return (None if mark is None else mark.line + 1), f"not YAML: {what}".replace("\n", " ")
