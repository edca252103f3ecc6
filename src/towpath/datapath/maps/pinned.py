# SPDX-License-Identifier: Apache-2.0
"""The tables of a load balancer that another program was made for, to be read.

They look like those of a loaded program, so that what takes over a program's own
tables can read them too: as copies in this program's types. Nothing that is done to
them reaches the kernel, where the other program goes on with the tables as they are.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.maps.layout import Layout
from towpath.datapath.maps.records import converted
from towpath.kernel.bpf.btf import BtfError
from towpath.kernel.bpf.maps import Map, possible_cpus
from towpath.kernel.bpf.pinned_btf import pinned_types

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from towpath.kernel.bpf.btf import Btf
    from towpath.kernel.bpf.layout import Layout as MapLayout

    Array = np.ndarray[Any, Any]

TYPES = "types"
"""Among the pinned maps, a copy of their types."""
READ = frozenset({"vips", "services", "maglev", "backends", "settings", "flows", "flow_tags"})
"""Without these there is nothing to go by."""
_LINES = frozenset({"maglev"})
"""Whose elements are pieces of one array, and as long as the constants of their version say."""


class _Window:
    """Some elements of a copied map, which has ``array`` as a mapping has."""

    def __init__(self, array: Array) -> None:
        self.array = array


class _Copied:
    """A map whose elements are given as copies, or one that isn't there and has none."""

    def __init__(self, real: Map | None, wanted: MapLayout, *, as_it_is: bool = False) -> None:
        self._real = real
        self._wanted = real.layout if real and as_it_is else wanted
        self.max_entries = real.max_entries if real else 1

    @property
    def key_dtype(self) -> Any:
        """What a key has in the program that is to come."""
        return self._wanted.key

    @contextmanager
    def mmap(
        self, start: int = 0, count: int | None = None, *, writable: bool = True
    ) -> Iterator[_Window]:
        """Elements as `Map.mmap` gives them; what is stored in them is lost."""
        del writable
        if self._real is None:
            yield _Window(np.zeros(self.max_entries, self._wanted.value)[start:][:count])
            return
        with self._real.mmap(start, count, writable=False) as mapped:
            window = _Window(converted(mapped.array, self._wanted.value))
        yield window

    def snapshot(self) -> tuple[Array, Array]:
        """All keys and values, as `Map.snapshot` gives them."""
        if self._real is None:
            return np.zeros(0, self._wanted.key), np.zeros(0, self._wanted.value)
        keys, values = self._real.snapshot()
        return converted(keys, self._wanted.key), converted(values, self._wanted.value)

    def items(self) -> Iterator[tuple[Any, Any]]:
        """The pairs of key and value."""
        return zip(*self.snapshot(), strict=True)

    def keys(self) -> Iterator[Any]:
        """The keys."""
        return iter(self.snapshot()[0])

    def ignore(self, *_: object, **__: object) -> None:
        """Store nothing."""

    update = update_batch = delete = delete_batch = ignore


class PinnedMaps:
    """The maps pinned in ``directory``, as the program that is to come would have them.

    ``wanted`` and ``layouts``: its types, and what each of its maps looks like. This has what
    :class:`towpath.datapath.program.program.LoadedProgram` has for those who read tables. A
    constant is the one that the maps were made with. KernelError: no maps are pinned there.
    """

    def __init__(self, directory: Path, wanted: Btf, layouts: dict[str, MapLayout]) -> None:
        self._undo = ExitStack()
        self._wanted = wanted
        self._layouts = layouts
        self._rows: dict[str, Array] = {}
        self.directory = directory
        with ExitStack() as on_failure:
            on_failure.callback(self._undo.close)
            self.btf = pinned_types(directory / TYPES)
            self.pinned = {
                path.name: self._undo.enter_context(Map.from_pin(path, self.btf))
                for path in sorted(directory.iterdir())
                if path.name != TYPES
            }
            on_failure.pop_all()
        self.maps = {
            name: _Copied(self.pinned.get(name), layout, as_it_is=name in _LINES)
            for name, layout in layouts.items()
        }
        self.layout = Layout(
            {name: each.max_entries for name, each in self.maps.items()}, possible_cpus()
        )

    def rows(self, name: str) -> Array:
        """Return a copy of a whole table; one for all who ask."""
        if name not in self._rows:
            with self.maps[name].mmap() as mapped:
                self._rows[name] = mapped.array
        return self._rows[name]

    def constant(self, enum: str, name: str) -> int:
        """Return an enumerator of the ``bpf/abi/`` that the maps were made with.

        One that it didn't have is that of the program to come.
        """
        for btf in (self.btf, self._wanted):
            try:
                return int(btf.enum(enum)[name])
            except (KeyError, BtfError):
                continue
        raise KeyError(f"no enumerator {name} of enum {enum}")

    def names(self, enum: str) -> dict[int, str]:
        """Return the names of an enum's numbers, as the maps were made with."""
        return {int(member): name for name, member in self.btf.enum(enum).__members__.items()}

    def forgetter(self, *names: str, columns: int) -> Callable[[Sequence[int]], None]:
        """Return a function that does nothing: counters of copies are nobody's."""
        del names, columns
        return lambda _: None

    def close(self) -> None:
        """Let go of the maps."""
        self._undo.close()
