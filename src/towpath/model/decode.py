# SPDX-License-Identifier: Apache-2.0
"""Plain data (of YAML or JSON) to dataclasses, with every problem found on the way.

Two steps: :func:`decode` makes a tree of the values that are right and notes
what is wrong; rules that span fields look at that tree, right values beside
holes, so one typo does not hide the next; :func:`build` makes the objects.
"""

import difflib
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from towpath.errors import Error
from towpath.model.kinds import FieldError, Kind, shown
from towpath.model.problems import MAX_PROBLEMS, FieldPath
from towpath.model.settings import DERIVED
from towpath.model.shorthand import written_out

T = TypeVar("T")
R = TypeVar("R")

Tree = dict[str, Any]
"""Right values by field: plain values, a Tree for a dataclass, a list with None
where an item is beyond use."""


class EnoughError(Error):
    """There are as many problems as are told."""


class Findings:
    """Collects problems by field path: MAX_PROBLEMS of them, and whether there are ``more``."""

    def __init__(self) -> None:
        self.items: list[tuple[FieldPath, str]] = []
        self.more = False
        self._spoiled: set[FieldPath] = set()

    def add(self, path: FieldPath, message: str) -> None:
        """Note that the value (or unknown key) at ``path`` is wrong.

        EnoughError: there are too many; whoever made this takes it with `within`.
        """
        if path in self._spoiled:
            return
        if len(self.items) >= MAX_PROBLEMS:
            self.more = True
            raise EnoughError
        self.items.append((path, message))

    def spoil(self, path: FieldPath, message: str) -> None:
        """Note the same, and nothing more of it: what is said of its value would be nonsense."""
        self.add(path, message)
        self._spoiled.add(path)

    def within(self, check: Callable[[], R]) -> R | None:
        """Return what ``check`` returns, None if it found too much."""
        try:
            return check()
        except EnoughError:
            return None


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


@cache
def _fields(cls: type) -> dict[str, "Field[Any]"]:
    return {each.name: each for each in fields(cls) if each.metadata != DERIVED}


def _derived(cls: Any) -> tuple[str, ...]:
    return tuple(each.name for each in fields(cls) if each.metadata == DERIVED)


def decode(
    cls: type, raw: object, path: FieldPath, found: Findings, others: Collection[str] = ()
) -> Tree | None:
    """Read ``raw``, a mapping or an instance of ``cls``, as fields of ``cls``.

    Returns the fields that are right, defaults included; None if ``raw`` is
    neither. ``others`` are keys that are allowed, and read by someone else.
    """
    allowed = (*_fields(cls), *others)
    raw = written_out(cls, raw, path, found)
    if is_dataclass(raw) and isinstance(raw, cls):
        raw = {name: getattr(raw, name) for name in _fields(cls)}
    if not isinstance(raw, Mapping):
        found.add(path, f"{shown(raw)} is not a mapping; allowed keys: {', '.join(allowed)}")
        return None
    for key in raw:
        if key not in allowed:
            found.add((*path, str(key)), _unknown(key, allowed))
    tree: Tree = {}
    for name, hint in _hints_of_fields(cls):
        if name in raw:
            tree[name] = _value(hint, raw[name], (*path, name), found)
        elif (default := _default(cls, name)) is not MISSING:
            tree[name] = _value(hint, default, (*path, name), found)
        else:
            found.add((*path, name), "is missing")
    return {name: value for name, value in tree.items() if value is not MISSING}


def _hints_of_fields(cls: type) -> list[tuple[str, Any]]:
    return [(name, _hints(cls)[name]) for name in _fields(cls)]


def _default(cls: type, name: str) -> Any:
    return _fields(cls)[name].default


def _unknown(key: object, allowed: Collection[str]) -> str:
    near = difflib.get_close_matches(str(key), allowed, 1, 0.7)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"unknown key; {meant}allowed: {', '.join(allowed)}"


def _value(hint: Any, raw: object, path: FieldPath, found: Findings) -> Any:
    """One field's value, or MISSING if it is beyond use."""
    if get_origin(hint) is Annotated:
        kind: Kind = get_args(hint)[1]
        try:
            return kind.parse(raw)
        except FieldError as error:
            found.add(path, str(error))
            return MISSING
    if get_origin(hint) is tuple:
        return _items(get_args(hint)[0], raw, path, found)
    if isinstance(hint, types.UnionType):
        if raw is None:
            return None
        hint = _present(hint)
    tree = decode(hint, {} if raw is None else raw, path, found)
    return MISSING if tree is None else tree


def _present(hint: types.UnionType) -> Any:
    """What an optional dataclass is when it is there."""
    (cls,) = (option for option in get_args(hint) if option is not types.NoneType)
    return cls


def _items(cls: type, raw: object, path: FieldPath, found: Findings) -> Any:
    """A list of dataclasses; an empty YAML value (null) is an empty list."""
    if raw is None:
        return []
    if not isinstance(raw, Sequence) or isinstance(raw, str | bytes):
        found.add(
            path, f"{shown(raw)} is not a list; allowed: a list, such as [...] or lines with -"
        )
        return MISSING
    return [decode(cls, item, (*path, index), found) for index, item in enumerate(raw)]


def build(cls: type[T], tree: Tree) -> T:
    """Make the object of a tree that has no holes. What is no key of its own is an object there."""
    made = {name: _built(hint, tree[name]) for name, hint in _hints_of_fields(cls)}
    return cls(**made, **{name: tree[name] for name in _derived(cls) if name in tree})


def _built(hint: Any, value: Any) -> Any:
    if get_origin(hint) is tuple:
        (item, _) = get_args(hint)
        return tuple(build(item, tree) for tree in value)
    if isinstance(hint, types.UnionType):
        return None if value is None else build(_present(hint), value)
    return build(hint, value) if is_dataclass(hint) and isinstance(hint, type) else value
