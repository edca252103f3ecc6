# SPDX-License-Identifier: Apache-2.0
"""Random C types, and questions about them that the compiler answers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TypeAlias

from hypothesis import strategies as st

# C type -> what numpy calls it. The compiler of the tests has these in its prelude.
SCALARS = {
    "unsigned char": "u1",
    "signed char": "i1",
    "unsigned short": "u2",
    "short": "i2",
    "unsigned int": "u4",
    "int": "i4",
    "unsigned long long": "u8",
    "long": "i8",
    "_Bool": "?",
    "double": "f8",
    "float": "f4",
    "__be16": ">u2",
    "__be32": ">u4",
    "__be64": ">u8",
    "const volatile __be16": ">u2",
    "u32_alias": "u4",
    "be16_alias": ">u2",
    "enum plain": "u4",
    "void *": "u8",
    "struct nowhere *": "u8",
}
PRELUDE = """
typedef unsigned short __be16;
typedef unsigned int __be32;
typedef unsigned long long __be64;
typedef const unsigned int u32_alias;
typedef __be16 be16_alias;
enum plain { PLAIN_A, PLAIN_B = 7 };
struct nowhere;
"""


@dataclass(frozen=True)
class Scalar:
    """A number, a pointer or an enum."""

    c: str


@dataclass(frozen=True)
class Array:
    """So many of a type."""

    of: CType
    count: int


@dataclass(frozen=True)
class Record:
    """A struct or union; `nameless` members give their own members to the record around them."""

    keyword: str
    members: tuple[CType, ...]
    nameless: bool
    packed: bool


CType: TypeAlias = Scalar | Array | Record


def _records(members: st.SearchStrategy[CType]) -> st.SearchStrategy[Record]:
    return st.builds(
        Record,
        st.sampled_from(["struct", "struct", "union"]),
        st.lists(members, min_size=1, max_size=5).map(tuple),
        st.booleans(),
        st.booleans(),
    )


def _arrays(members: st.SearchStrategy[CType]) -> st.SearchStrategy[Array]:
    return st.builds(Array, members, st.integers(1, 6))


types: st.SearchStrategy[CType] = st.recursive(
    st.sampled_from(sorted(SCALARS)).map(Scalar),
    lambda inner: _records(inner) | _arrays(inner),
    max_leaves=8,
)
records = _records(types)


@dataclass(frozen=True)
class Leaf:
    """A member that is no record: its path from the outermost one, as in C, and its numpy type."""

    path: str
    code: str
    shape: tuple[int, ...]


class Writer:
    """Writes records as C, remembering their leaves."""

    def __init__(self) -> None:
        self._names = (f"m{number}" for number in itertools.count())
        self.leaves: list[Leaf] = []

    def record(self, type_: Record, path: str) -> str:
        """The declaration of a record without the declarator."""
        body = " ".join(self._member(member, path) for member in type_.members)
        attribute = "__attribute__((packed)) " if type_.packed else ""
        return f"{type_.keyword} {attribute}{{ {body} }}"

    def _member(self, type_: CType, path: str) -> str:
        if isinstance(type_, Record) and type_.nameless:
            return f"{self.record(type_, path)};"
        name = next(self._names)
        path = f"{path}.{name}" if path else name
        counts = []
        while isinstance(type_, Array):
            counts.append(type_.count)
            type_ = type_.of
        declarator = name + "".join(f"[{count}]" for count in counts)
        if isinstance(type_, Record):
            # Offsets are asked of the first element.
            return f"{self.record(type_, path + '[0]' * len(counts))} {declarator};"
        self.leaves.append(Leaf(path, SCALARS[type_.c], tuple(counts)))
        return f"{type_.c} {declarator};"
