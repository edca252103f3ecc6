# SPDX-License-Identifier: Apache-2.0
"""YAML text to plain data that remembers its lines.

PyYAML composes (with libyaml where it is built in, ten times as fast) and its
nodes carry their lines; ruamel.yaml would add a dependency and the round trip of
comments, which nobody needs here. What YAML allows and a configuration should
not (a key given twice, a key that is not text, an alias inside of itself) is
reported; merge keys (``<<``) and aliases work.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from towpath.model.decode import Findings
from towpath.model.kinds import shown
from towpath.model.problems import FieldPath

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Aliases may repeat what they stand for; with this many values it becomes abuse.
_MAX_REPEATED = 500_000

_MAX_DEPTH = 32


class Lines:
    """The line of each value and key, counted from 1."""

    def __init__(self) -> None:
        self._lines: dict[FieldPath, int] = {}

    def put(self, path: FieldPath, node: yaml.Node) -> None:
        """Note where ``path`` is written. The first note of a path counts."""
        self._lines.setdefault(path, node.start_mark.line + 1)

    def of(self, path: FieldPath) -> int | None:
        """Return the line of ``path``, or of what it would be in; None: empty text."""
        while path not in self._lines and path:
            path = path[:-1]
        return self._lines.get(path)


def read_yaml(text: str, lines: Lines, found: Findings) -> Any:
    """Read one YAML document, noting its lines. Raises yaml.YAMLError when it is malformed."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise yaml.YAMLError(str(error)) from None
    _check_depth(text)
    loader = _Loader(text)
    reader = _Reader(loader, lines, found)
    try:
        node = loader.get_single_node()
        return None if node is None else reader.value(node, ())
    finally:
        loader.dispose()


def _malformed(problem: str, mark: Any) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _check_depth(text: str) -> None:
    """Refuse deep nesting: PyYAML recurses, with libyaml until the stack overflows."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise _malformed(f"nested more than {_MAX_DEPTH} deep", event.start_mark)


class _Reader:
    def __init__(self, loader: Any, lines: Lines, found: Findings) -> None:
        self._loader = loader
        self._found = found
        self._inside: set[int] = set()
        self._seen: set[int] = set()
        self._repeated = 0
        self.lines = lines

    def value(self, node: yaml.Node, path: FieldPath) -> Any:
        self.lines.put(path, node)
        self._repeated += id(node) in self._seen
        self._seen.add(id(node))
        if id(node) in self._inside or self._repeated > _MAX_REPEATED:
            raise _malformed("an alias repeats what it is in, or too much", node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        self._inside.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._inside.discard(id(node))

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return self._loader.construct_object(node)
        except (ValueError, LookupError, AttributeError) as error:
            # What PyYAML's constructors let through: 2024-13-01, !!bool maybe.
            kind = node.tag.rpartition(":")[2]
            raise _malformed(f"{shown(node.value)} is not a {kind}", node.start_mark) from error

    def _mapping(self, node: yaml.Node, path: FieldPath) -> Mapping[str, Any]:
        self._report_duplicates(node, path)
        self._loader.flatten_mapping(node)
        data = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            self.lines.put((*path, key), key_node)
            data[key] = self.value(value_node, (*path, key))
        return data

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise _malformed("a key is a list or a mapping; allowed: text", node.start_mark)
        return str(node.value)

    def _report_duplicates(self, node: yaml.Node, path: FieldPath) -> None:
        """Before merging: a key may be given here and in what is merged."""
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            key = self._key(key_node)
            line = key_node.start_mark.line + 1
            if key in first and first[key] != line:
                self._found.add((*path, key), f"is given twice, also in line {line}; allowed: once")
            elif key in first:
                self._found.add((*path, key), "is given twice; allowed: once")
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
