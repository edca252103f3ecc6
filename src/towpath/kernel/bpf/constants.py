# SPDX-License-Identifier: Apache-2.0
"""The constants of an object that is not yet loaded."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from towpath.kernel.bpf._records import Record, encode

if TYPE_CHECKING:
    from towpath.kernel.bpf.btf import Btf, Variable


class Check(Protocol):
    """Raises RuntimeError when the object's memory can't be read, or no longer be stored to."""

    def __call__(self, *, store: bool) -> None:
        """Check before each access."""


class Constants(MutableMapping[str, Any]):
    """The ``const volatile`` globals by name, with the dtypes of their declarations.

    Reading gives a copy; storing takes what a map's value takes. Once the object is loaded the
    verifier has relied on them, and storing raises RuntimeError.
    """

    def __init__(self, btf: Btf, section: str, address: int, check: Check) -> None:
        self._btf = btf
        self._variables = btf.variables(section) if address else {}
        self._address = address
        self._check = check

    def _variable(self, name: str) -> Variable:
        try:
            return self._variables[name]
        except KeyError:
            there = ", ".join(self._variables) or "none"
            raise KeyError(f"no constant {name!r} in this object; there are: {there}") from None

    def __getitem__(self, name: str) -> Any:
        variable = self._variable(name)
        self._check(store=False)
        dtype = self._btf.dtype_of(variable.type)
        data = ctypes.string_at(self._address + variable.offset, dtype.itemsize)
        value = np.frombuffer(data, np.dtype([("value", dtype)]))["value"]
        return value.copy()[0]

    def __setitem__(self, name: str, value: Record) -> None:
        variable = self._variable(name)
        self._check(store=True)
        data = encode(value, self._btf.dtype_of(variable.type), f"constant {name}")
        ctypes.memmove(self._address + variable.offset, data, len(data))

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"constant {name}: constants can't be removed")

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)
