# SPDX-License-Identifier: Apache-2.0
"""Packets look up while rules change, and writers are killed while they change them."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from bisect import bisect_right
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.guests import IN_GUEST
from tests.prog.harness_churn import FINISHED, STARTED, Change, State, Writer, changes
from tests.prog.harness_wildcard import TABLE, Asker, loaded, prepare
from tests.unit.wildcard.oracle_wildcard import matches

from towpath.kernel.object import BpfObject
from towpath.wildcard import Packet, Rule, WildcardTable, pin, reuse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.wildcard.rule import Address

pytestmark = pytest.mark.guest
_CHANGES = 600 if IN_GUEST else 6000
_KILLS = 2 if IN_GUEST else 6
_PACKETS = 256
_NONE = -1


def packets() -> list[Packet]:
    """Packets to addresses that the rules are about, half of them of each family."""
    chance = random.Random(5)  # noqa: S311 -- not a secret

    def address(version: int) -> Address:
        bits = chance.getrandbits(6)
        if version == 4:
            return ip_address(0x0A000000 + bits * 0x010101)
        return ip_address((0x20010DB8 << 96) + (bits << 80) + (bits << 64) + bits)

    return [
        Packet(
            address(version),
            address(version),
            1,
            chance.choice((80, 85, 443, 1024, chance.randrange(65536))),
            chance.choice((6, 17)),
        )
        for version in itertools.islice(itertools.cycle((4, 6)), _PACKETS)
    ]


class History:
    """What each packet finds after each number of changes: the value of a rule, or _NONE."""

    def __init__(self, asked: list[Packet]) -> None:
        self._packets = asked
        self._since: list[list[int]] = [[0] for _ in asked]
        self._found: list[list[int]] = [[_NONE] for _ in asked]
        self._state = State()
        self.length = 0

    def note(self, change: Change) -> None:
        """Go on by one change."""
        before = {rule.value: rule for rule in self._state.in_order()}
        self._state.apply(change)
        self.length += 1
        order = self._state.in_order()
        after = {rule.value for rule in order}
        touched = [rule for value, rule in before.items() if value not in after]
        touched += [] if change.new is None else [change.new]
        for number, packet in enumerate(self._packets):
            if any(matches(rule, packet) for rule in touched):
                found = next((rule.value for rule in order if matches(rule, packet)), _NONE)
                if found != self._found[number][-1]:
                    self._since[number].append(self.length)
                    self._found[number].append(found)

    def allowed(self, number: int, first: int, last: int) -> list[int]:
        """What a packet may find after ``first`` changes, or after some more up to ``last``."""
        since = self._since[number]
        return self._found[number][bisect_right(since, first) - 1 : bisect_right(since, last)]


def test_packets_find_what_is_right_while_rules_change() -> None:
    """Each answer is that of the rules as they were at some moment of the look-up."""
    asked = packets()
    todo = list(changes(_CHANGES, replacements=False))
    history = History(asked)
    for change in todo:
        history.note(change)
    progress = np.zeros(2, np.uint64)
    heard: list[tuple[int, int, list[tuple[int, int]]]] = []
    with loaded(rules=500, room=_PACKETS) as (asker, obj), WildcardTable(obj, TABLE) as table:
        asker.prepare(asked)
        reader = Thread(target=_listen, args=(asker, progress, heard))
        writer = Writer(table, progress)
        reader.start()
        try:
            for change in todo:
                writer.make(change)
        finally:
            progress[FINISHED] = _CHANGES
            reader.join()
    assert len(heard) > _CHANGES / 30
    spans = [last - first for first, last, _ in heard]
    assert sum(span > 0 for span in spans) > len(spans) / 10  # it did look while rules changed
    for first, last, answers in heard:
        for number, (rule, value) in enumerate(answers):
            found = value if rule else _NONE
            assert found in history.allowed(number, first, last), (first, last, asked[number])


def _listen(asker: Asker, progress: np.ndarray, heard: list) -> None:  # type: ignore[type-arg]
    """Look up again and again; note between which changes each time was."""
    while (first := int(progress[FINISHED])) < _CHANGES:
        asker.run()
        heard.append((first, int(progress[STARTED]), asker.found(_PACKETS)))


# ---- Writers that are killed ---------------------------------------------------------------------


@pytest.fixture
def pinned(pins: Path) -> Iterator[Path]:
    """A pinned table."""
    with BpfObject.packaged("wildcard_bench") as obj:
        prepare(obj, 500, _PACKETS)
        obj.load()
        pin(obj, TABLE, pins)
    yield pins


def test_a_writer_that_is_killed_leaves_a_table(pinned: Path, tmp_path: Path) -> None:
    """Whenever it is killed, the rules are those before its last change or after it."""
    chance = random.Random(2)  # noqa: S311 -- not a secret
    todo = list(changes(_CHANGES, replacements=True))
    with ExitStack() as undo:
        obj = undo.enter_context(BpfObject.packaged("wildcard_bench"))
        prepare(obj, 500, _PACKETS)
        reuse(obj, TABLE, pinned)
        obj.load()
        asker = Asker(obj, _PACKETS, undo)
        for kill in range(_KILLS):
            started, finished = _run_until_killed(pinned, tmp_path / str(kill), chance)
            with WildcardTable(pinned, TABLE) as table:
                there = [rule for _, rule in table]
                assert there in (_state(todo, finished), _state(todo, started)), (finished, started)
                for packet, (number, value) in zip(packets(), asker.ask(packets()), strict=True):
                    right = next((rule for rule in there if matches(rule, packet)), None)
                    assert (number > 0, value) == ((True, right.value) if right else (False, 0))
                table.delete_many([number for number, _ in table])
                table.insert(Rule())  # it goes on
                table.delete_many([number for number, _ in table])


def _state(todo: list[Change], count: int) -> list[Rule]:
    state = State()
    for change in todo[:count]:
        state.apply(change)
    return state.in_order()


def _run_until_killed(pins: Path, progress: Path, chance: random.Random) -> tuple[int, int]:
    """Kill a writer after some changes; returns how many it began and how many it made."""
    progress.write_bytes(bytes(16))
    target = chance.randrange(1, _CHANGES)
    command = [sys.executable, "-m", "tests.prog.harness_churn", str(pins), str(progress)]
    writer = subprocess.Popen([*command, str(_CHANGES)], cwd=Path(__file__).parents[2])
    try:
        while np.frombuffer(progress.read_bytes(), np.uint64)[FINISHED] < target:
            assert writer.poll() is None
            time.sleep(0.0002)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    started, finished = np.frombuffer(progress.read_bytes(), np.uint64).tolist()
    return started, finished
