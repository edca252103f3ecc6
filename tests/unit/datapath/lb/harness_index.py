# SPDX-License-Identifier: Apache-2.0
"""An index with linear probing beside a dictionary, and packets that take their time."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.grace import Reclaimer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.unit.datapath.harness_program import Array

SLOTS = 64
Key = TypeVar("Key")
Index = TypeVar("Index")


class Packet:
    """A look-up that takes its time. ``steps`` yields after each load, and at last the result."""

    def __init__(self, steps: Iterator[int]) -> None:
        self._steps = steps
        self._found = 0

    def goes_on(self) -> bool:
        """Read one thing more; whether it isn't at its end."""
        found = next(self._steps, None)
        if found is None:
            return False
        self._found = found
        return True

    def finish(self) -> int:
        """Come to the end; what was found, 0 for nothing."""
        while self.goes_on():
            pass
        return self._found


class IndexMachine(RuleBasedStateMachine, Generic[Index, Key]):
    """What is written is what the program finds, before, between and after.

    For each index one is made of this that has its fields and methods.
    """

    slot: ClassVar[np.dtype[Any]]
    word: ClassVar[str]
    """Of a slot: what isn't 0 while it is taken."""
    probes: ClassVar[int]
    all_keys: ClassVar[Sequence[Any]]
    crowd_keys: ClassVar[Sequence[Any]]
    """Among them: more that begin at one slot than are looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: Array = np.zeros(SLOTS, self.slot)
        self.index = self.begin(Reclaimer(self.finish_packet))
        self.truth: dict[Key, int] = {}
        self.packet: Packet | None = None
        self.packet_key: Key | None = None
        self.allowed: set[int] = set()

    @abstractmethod
    def begin(self, reclaimer: Reclaimer) -> Index:
        """Return an index over `slots`."""

    @abstractmethod
    def put(self, key: Key, value: int) -> None:
        """Have a key lead to something. CapacityError."""

    @abstractmethod
    def take_out(self, key: Key) -> None:
        """Have a key that is there lead nowhere."""

    @abstractmethod
    def candidates(self, key: Key) -> Sequence[int]:
        """Return the slots that the program looks at, in its order."""

    @abstractmethod
    def look_up(self, key: Key) -> Iterator[int]:
        """Look a key up as the program does, one load after the other: see `Packet`."""

    @abstractmethod
    def found(self, key: Key) -> int:
        """Return what the compiled program finds, 0 for nothing."""

    @abstractmethod
    def read_back(self) -> dict[Key, int]:
        """Return all that the index says is there."""

    # ---- What happens ----------------------------------------------------------------------------

    @initialize(data=st.data())
    def crowd(self, data: st.DataObject) -> None:
        """Begin with a window that has some of its slots taken, or all."""
        many = data.draw(st.integers(0, self.probes))
        for value, key in enumerate(self.crowd_keys[:many], 1):
            self._set(key, value)

    @rule(data=st.data(), value=st.integers(1, 2**32 - 1))
    def set(self, data: st.DataObject, value: int) -> None:
        """A key leads to something, or nothing has changed because there is no room."""
        self._set(data.draw(st.sampled_from(self.all_keys)), value)

    def _set(self, key: Key, value: int) -> None:
        before = self.slots.copy()
        try:
            self.put(key, value)
        except CapacityError:
            assert key not in self.truth
            assert self.slots.tobytes() == before.tobytes()
            assert all(self.slots[self.word][at] for at in self.candidates(key))
        else:
            self.truth[key] = value
        self.note()

    @precondition(lambda self: self.truth)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """A key that is taken out leads nowhere."""
        gone = data.draw(st.sampled_from([each for each in self.all_keys if each in self.truth]))
        del self.truth[gone]
        self.take_out(gone)
        self.note()

    @rule()
    def start_again(self) -> None:
        """Another process goes on with what is in memory. Its start takes longer than a packet."""
        self.finish_packet()
        self.index = self.begin(Reclaimer(self.finish_packet))

    @precondition(lambda self: self.packet is None)
    @rule(data=st.data())
    def packet_comes(self, data: st.DataObject) -> None:
        """A packet begins to look its key up."""
        self.packet_key = data.draw(st.sampled_from(self.all_keys))
        self.packet, self.allowed = Packet(self.look_up(self.packet_key)), set()
        self.note()

    @precondition(lambda self: self.packet is not None)
    @rule()
    def packet_goes_on(self) -> None:
        """It reads one thing more, or has come to its end."""
        assert self.packet is not None
        if not self.packet.goes_on():
            self.finish_packet()

    def finish_packet(self) -> None:
        """What waiting for readers does. The packet has found what its key led to meanwhile."""
        if self.packet is not None:
            assert self.packet.finish() in self.allowed
            self.packet = None

    def note(self) -> None:
        """Remember what the packet may have found."""
        if self.packet_key is not None:
            self.allowed.add(self.truth.get(self.packet_key, 0))

    # ---- What is always so -----------------------------------------------------------------------

    @invariant()
    def the_program_finds_what_is_there_and_no_other(self) -> None:
        """By the compiled header."""
        found = {key: self.found(key) for key in self.all_keys}
        assert found == {key: self.truth.get(key, 0) for key in self.all_keys}

    @invariant()
    def it_can_be_read_back(self) -> None:
        """All that is there is what was set."""
        assert self.read_back() == self.truth

    def teardown(self) -> None:
        """The last packet is right too."""
        self.finish_packet()
