# SPDX-License-Identifier: Apache-2.0
"""Packets look up while rules change, and writers are killed while they change them."""

from __future__ import annotations

import mmap
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.guests import IN_GUEST
from tests.prog.lb.harness_churn import FINISHED, Change, State, Writer, changes
from tests.prog.lb.harness_listen import BATCH, ENOUGH, LISTENING, NOTE, PACKETS, packets
from tests.prog.wildcard.harness import TABLE, Asker, prepare
from tests.unit.kernel.harness_clang import compile_bpf
from tests.unit.wildcard.oracle_wildcard import matches

from towpath.kernel.bpf.object import BpfObject
from towpath.wildcard import Packet, Rule, WildcardTable, pin, reuse

if TYPE_CHECKING:
    from collections.abc import Iterator

    Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.thorough

_CHANGES = 600 if IN_GUEST else 12_000
_TOGETHER = 10 if IN_GUEST else 100  # changes, to a look-up at least
_KILLS = 2 if IN_GUEST else 6
_NONE = -1
_SEARCHES = 3  # in a look-up, at most: one that changes went through is done again, twice
_ROOT = Path(__file__).parents[3]
_SLOW = Path(__file__).with_name("slow.bpf.c")


@pytest.fixture
def pinned(pins: Path) -> Path:
    """A pinned table."""
    with BpfObject.packaged("bench_wildcard") as obj:
        prepare(obj, 500, PACKETS)
        obj.load()
        pin(obj, TABLE, pins)
    return pins


class History:
    """What each packet finds after each number of changes: the value of a rule, or _NONE."""

    def __init__(self, asked: list[Packet]) -> None:
        self._packets = asked
        self._since: list[list[int]] = [[0] for _ in asked]
        self._found: list[list[int]] = [[_NONE] for _ in asked]
        self._state = State()
        self._length = 0

    def note(self, change: Change) -> None:
        """Go on by one change."""
        before = {rule.value: rule for rule in self._state.in_order()}
        self._state.apply(change)
        self._length += 1
        order = self._state.in_order()
        after = {rule.value for rule in order}
        touched = [rule for value, rule in before.items() if value not in after]
        touched += [] if change.new is None else [change.new]
        for number, packet in enumerate(self._packets):
            if any(matches(rule, packet) for rule in touched):
                found = next((rule.value for rule in order if matches(rule, packet)), _NONE)
                if found != self._found[number][-1]:
                    self._since[number].append(self._length)
                    self._found[number].append(found)

    def wrong(self, number: int, first: Array, last: Array, found: Array) -> Array:
        """Which of these were never right between ``first`` and ``last``, of one packet."""
        right, since = np.array(self._found[number]), self._since[number]
        at = np.searchsorted(since, first, "right") - 1
        end = np.searchsorted(since, last, "right")
        wrong = np.ones(len(found), bool)
        for ahead in range(int((end - at).max(initial=0))):
            wrong &= right[np.minimum(at + ahead, end - 1)] != found
        return np.flatnonzero(wrong)


def test_packets_find_what_is_right_while_rules_change(pinned: Path, tmp_path: Path) -> None:
    """Each answer is that of the rules as they were at some moment of the look-up.

    Unless a change was counted in each of its searches, the last included: of these
    look-ups some may find what was never right (docs/architecture.md).
    """
    todo = list(changes(_CHANGES, replacements=False))
    history = History(packets())
    for change in todo:
        history.note(change)
    with _listener(pinned, tmp_path) as (progress, notes), WildcardTable(pinned, TABLE) as table:
        writer = Writer(table, progress)
        for number, change in enumerate(todo):
            writer.make(change)
            if number % _TOGETHER == 0:
                # However little of the CPUs one of the two gets.
                heard_of = progress[LISTENING]
                while progress[LISTENING] == heard_of:
                    time.sleep(0.001)
    heard = np.frombuffer(notes.read_bytes(), NOTE)
    heard = heard[heard["last"] > 0]  # before and at the end nothing changes
    assert len(heard) > _CHANGES / _TOGETHER / 2
    assert np.count_nonzero(heard["last"] > heard["first"]) > 0  # it did look while rules changed
    found = np.where(heard["number"] > 0, heard["value"].astype(np.int64), _NONE)
    last = np.minimum(heard["last"], _CHANGES)
    for number in range(PACKETS):
        mine, lane = (heard["at"] == number // BATCH * BATCH), number % BATCH
        wrong = history.wrong(number, heard["first"][mine], last[mine], found[mine][:, lane])
        wrong = wrong[heard["changes"][mine][wrong, lane] < _SEARCHES]
        assert not len(wrong), f"{packets()[number]}: {heard[mine][wrong].tolist()}"
    assert np.mean(heard["changes"] < _SEARCHES) > 0.5  # most look-ups are held to it


@contextmanager
def _listener(pins: Path, directory: Path) -> Iterator[tuple[Array, Path]]:
    """Look up in another process for the block; gives the writer's progress, and the notes."""
    program = compile_bpf(_SLOW, directory / "slow.bpf.o")
    notes, progress = directory / "notes", directory / "progress"
    progress.write_bytes(bytes(24))
    with progress.open("r+b") as file:
        shared = np.frombuffer(mmap.mmap(file.fileno(), 24), np.uint64)
    command = [sys.executable, "-m", "tests.prog.lb.harness_listen"]
    listener = subprocess.Popen([*command, program, pins, progress, notes], cwd=_ROOT)
    try:
        while not shared[LISTENING]:
            assert listener.poll() is None
            time.sleep(0.001)
        yield shared, notes
    finally:
        shared[FINISHED] = ENOUGH
        assert listener.wait() == 0


# ---- Writers that are killed ---------------------------------------------------------------------


def test_a_writer_that_is_killed_leaves_a_table(pinned: Path, tmp_path: Path) -> None:
    """Whenever it is killed, the rules are those before its last change or after it."""
    chance = random.Random(2)  # noqa: S311 -- not a secret
    todo = list(changes(_CHANGES, replacements=True))
    with ExitStack() as undo:
        obj = undo.enter_context(BpfObject.packaged("bench_wildcard"))
        prepare(obj, 500, PACKETS)
        reuse(obj, TABLE, pinned)
        obj.load()
        asker = Asker(obj, PACKETS, undo)
        for kill in range(_KILLS):
            started, finished = _run_until_killed(pinned, tmp_path / str(kill), chance)
            with WildcardTable(pinned, TABLE) as table:
                there = list(table.values())
                assert there in (_state(todo, finished), _state(todo, started)), (finished, started)
                for packet, (number, value) in zip(packets(), asker.ask(packets()), strict=True):
                    right = next((rule for rule in there if matches(rule, packet)), None)
                    assert (number > 0, value) == ((True, right.value) if right else (False, 0))
                table.delete_many(list(table))
                assert table.insert(Rule()) in table  # it goes on
                table.delete_many(list(table))


def _state(todo: list[Change], count: int) -> list[Rule]:
    state = State()
    for change in todo[:count]:
        state.apply(change)
    return state.in_order()


def _run_until_killed(pins: Path, progress: Path, chance: random.Random) -> tuple[int, int]:
    """Kill a writer after some changes; returns how many it began and how many it made."""
    progress.write_bytes(bytes(16))
    target = chance.randrange(1, min(_CHANGES, 2000))
    command = [sys.executable, "-m", "tests.prog.lb.harness_churn", str(pins), str(progress)]
    writer = subprocess.Popen([*command, str(_CHANGES)], cwd=_ROOT)
    try:
        while np.frombuffer(progress.read_bytes(), np.uint64)[FINISHED] < target:
            assert writer.poll() is None
            time.sleep(0.0002)
    finally:
        if writer.poll() is None:
            os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    started, finished = np.frombuffer(progress.read_bytes(), np.uint64).tolist()
    return started, finished
