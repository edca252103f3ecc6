# SPDX-License-Identifier: Apache-2.0
"""Tables of one program's own that outlive it: used again if they fit, else made anew beside them.

They are pinned in ``maps`` below a directory. Where some are made anew all are pinned in
``maps-next``, which takes the place of ``maps`` when the links have the new program.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from towpath.datapath.maps.pins import MAPS, NEXT, OLD
from towpath.kernel.bpf.bpffs import new_pin_dir, remove_pins
from towpath.kernel.bpf.maps import Map

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from contextlib import ExitStack
    from pathlib import Path

    from towpath.kernel.bpf.object import BpfObject

    Still = Callable[[Mapping[str, Map]], bool]

log = logging.getLogger(__name__)


class OwnTables:
    """The tables ``names`` of an object. ``pins``: where they outlive the process, None: nowhere.

    ``together``: those of one size and layout, of which all are of use or none.
    """

    def __init__(
        self,
        obj: BpfObject,
        names: Iterable[str],
        pins: Path | None,
        together: Collection[str] = (),
    ) -> None:
        self._object = obj
        self._names = tuple(names)
        self._pins = pins
        self._together = together
        self.fresh: tuple[str, ...] = self._names
        """Tables that are made, and not taken over."""

    def reuse(self, kept: ExitStack, still: Still = lambda _: True) -> dict[str, Map]:
        """Have the object, which isn't loaded yet, use those that are there and fit.

        ``still``: is given those that fit, all that are of use together among them; whether these
        mean what they did.
        """
        fitting: dict[str, Map] = {}
        for name, found in self.pinned(kept, self._names).items():
            differences = self._object.layout(name).differences(found.layout)
            if differences:
                log.info("%s is made anew: %s", name, "; ".join(differences))
            else:
                fitting[name] = found
        if not (fitting.keys() >= set(self._together) and still(fitting)):
            fitting = {name: each for name, each in fitting.items() if name not in self._together}
        for name, each in fitting.items():
            self._object.reuse(name, each)
        self.fresh = tuple(name for name in self._names if name not in fitting)
        return fitting

    def pinned(self, kept: ExitStack, names: Iterable[str]) -> dict[str, Map]:
        """Open those of the names that a process before has pinned. KernelError."""
        if self._pins is None or not (self._pins / MAPS).is_dir():
            return {}
        there = {name: self._pins / MAPS / name for name in names}
        return {
            name: kept.enter_context(Map.from_pin(path, self._object.btf))
            for name, path in there.items()
            if path.exists()
        }

    def pin(self) -> None:
        """Pin them, once the object is loaded, if some are new. KernelError."""
        if self._pins is not None and self.fresh:
            self._pin(self._pins)

    def _pin(self, pins: Path) -> None:
        remove_pins(pins / NEXT)
        target = NEXT if (pins / MAPS).is_dir() else MAPS
        with new_pin_dir(pins / target) as directory:
            for name in self._names:
                self._object.maps[name].pin(directory / name)

    def pin_again(self) -> bool:
        """Pin them, if somebody has removed their pins; whether they had. KernelError."""
        if self._pins is None or (self._pins / MAPS).is_dir():
            return False
        self._pin(self._pins)
        return True

    def settle(self) -> None:
        """Make these the only ones: all links have the program that uses them."""
        if self._pins is None or not (self._pins / NEXT).is_dir():
            return
        remove_pins(self._pins / OLD)
        (self._pins / MAPS).rename(self._pins / OLD)
        (self._pins / NEXT).rename(self._pins / MAPS)
        remove_pins(self._pins / OLD)
