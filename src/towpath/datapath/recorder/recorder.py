# SPDX-License-Identifier: Apache-2.0
"""The recorder: captures of what the load balancer's program sees and does.

While there is a capture, a program that records stands in the load balancer's place on the
devices (``bpf/recorder/recorder.bpf.c``), put there and taken away by replacing the program of a
link: no packet goes by in between, and without a capture nothing is paid. Each capture is a program
of its own, loaded for its filter; they form a chain whose last one balances. Where devices run
programs of several kinds (`fragments.Kind`) there is one of each, and a chain for each: the kernel
refuses tail calls between the kinds.

Nothing of this is pinned. If this process dies, the chain is cut by the kernel, and the first
program, which stays attached where links are pinned, balances and finds itself without a reader.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from towpath import wildcard
from towpath.core.recorder.cbpf import TranslationError, translate
from towpath.datapath.errors import DatapathError
from towpath.datapath.recorder.capture import PROGRAM, Recording
from towpath.datapath.recorder.filters import rules_of
from towpath.kernel.bpf import probe
from towpath.kernel.bpf.fragments import Kind, of_kind
from towpath.kernel.bpf.maps import Map, possible_cpus
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.bpf.pcap import ExpressionError, compile_expression
from towpath.kernel.bpf.programs import ProgramType
from towpath.kernel.bpf.rcu import wait_for_readers
from towpath.kernel.bpf.ring import Ring
from towpath.wildcard import FullError, TooComplexError, WildcardTable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from towpath.core.recorder.names import Told
    from towpath.datapath.program.attachment import Attachment
    from towpath.datapath.program.program import LoadedProgram
    from towpath.kernel.bpf.programs import Program
    from towpath.model.capture import Capture
    from towpath.model.service import Service
    from towpath.native.records import Outcome
    from towpath.wildcard import Rule

log = logging.getLogger(__name__)

OBJECT = "recorder"
RING_BYTES = 1 << 26
"""Of a capture by default: a quarter of a second of full frames at a million a second."""
MIN_KEPT_RING = 1 << 23
"""Of a capture that keeps what is last, however little: it is looked at fifty times a second."""
_RULES = "capture"
_EXPRESSION = "record_expression"
_CHAIN = "record_chain"
_BEAT_SECONDS = 0.2
_LOAD_BYTES = 189  # BPF_FUNC_xdp_load_bytes
# Bits of record_slot.directions: 0 in, 1 out, 3 out with RECORD_COPY.
_DIRECTIONS = {"distinct": 0b0011, "both": 0b1011, "in": 0b0001, "out": 0b1010}
_ALL_SAMPLES = (1 << 32) - 1


class Recorder:
    """The captures of one load balancer. May be used by several threads."""

    def __init__(self, program: LoadedProgram, attachment: Attachment) -> None:
        self._program = program
        self._attachment = attachment
        self._lock = threading.RLock()
        self._undo = ExitStack()
        self._shared: BpfObject | None = None
        self._chains: dict[Kind, Map] = {}
        self._heart: threading.Thread | None = None
        self._closed = threading.Event()
        self._chain: list[Recording] = []
        self.version = 0
        """Increases when packets' fates may be called otherwise than before."""

    @property
    def recordings(self) -> tuple[Recording, ...]:
        """The captures that go on, the newest first."""
        return tuple(self._chain)

    # ---- begin -----------------------------------------------------------------------------------

    def start(
        self,
        capture: Capture,
        services: Iterable[Service],
        describe: Callable[[Outcome], Told],
        *,
        ring_bytes: int | None = None,
        dropped: Callable[[], int] = lambda: 0,
    ) -> Recording:
        """Begin a capture. What it gives has to be read, and closed.

        ``services``: those that it may name. ``describe``: says in words what became of a
        packet, and what its addresses are called; by whoever reads. ``ring_bytes``: how much
        may wait to be read, a power of two; None: `RING_BYTES`, or what leaves room beside what a
        capture keeps.
        ``dropped``: says how many packets have been dropped that it is for. DatapathError: there
        are too many captures, or it can't be had. KernelError.
        """
        rules = rules_of(capture, services)
        with self._lock, ExitStack() as undo:
            slot = self._free_slot()
            ring = undo.enter_context(Ring(ring_bytes or _room_for(capture), "record_ring"))
            loaded = self._load_kinds(undo, capture, slot, rules)
            undo.enter_context(self._table(next(iter(loaded.values())), rules))
            recording = Recording(
                capture=capture,
                slot=slot,
                ring=ring,
                loaded=loaded,
                recorder=self,
                describe=describe,
                dropped=dropped,
                undo=undo.pop_all(),
            )
            try:
                self._open_slot(capture, slot, ring)
                self._put_first(recording)
            except BaseException:
                recording.give_up()
                raise
        return recording

    @contextmanager
    def tried(self, capture: Capture) -> Iterator[Program]:
        """A capture's program for the block, loaded as `start` would, and put nowhere.

        DatapathError, KernelError: there can be no such capture.
        """
        kind = self._program.main
        with self._lock, self._load(capture, 0, rules_of(capture, ()), kind) as loaded:
            yield loaded.programs[PROGRAM]

    def _free_slot(self) -> int:
        taken = {each.slot for each in self._chain}
        most = int(self._maps().btf.enum("record_limits")["RECORD_CAPTURES"])
        free = next((slot for slot in range(most) if slot not in taken), None)
        if free is None:
            raise DatapathError(f"there are {most} captures, which is the most; stop one first")
        return free

    def _maps(self) -> BpfObject:
        """The object whose maps all captures share; it has no program."""
        if self._shared is None:
            obj = BpfObject.packaged(OBJECT)
            with ExitStack() as undo:
                undo.enter_context(obj)
                self._use_maps(obj, self._program.maps)
                cpus = possible_cpus()
                slots = int(obj.btf.enum("record_limits")["RECORD_CAPTURES"])
                for name, entries in (
                    ("record_slots", slots),
                    ("record_cpus", cpus),
                    ("record_frames", 2 * cpus),
                ):
                    obj.resize(name, entries)
                for name in obj.program_names:
                    obj.autoload(name, on=False)
                obj.load()
                self.slots = undo.enter_context(obj.maps["record_slots"].mmap()).array
                self.cpus = undo.enter_context(obj.maps["record_cpus"].mmap()).array
                self._undo = undo.pop_all()
            self._shared = obj
        return self._shared

    @staticmethod
    def _use_maps(obj: BpfObject, maps: Any, *, besides: Collection[str] = ()) -> None:
        """Let an object use maps that there are; what only the other one has is left out.

        So are rules, which each capture has of its own, and what is among ``besides``.
        """
        wanted = set(obj.map_names).difference(besides)
        for name, each in maps.items():
            if name in wanted and not name.startswith(f"{_RULES}_"):
                obj.resize(name, each.max_entries)
                obj.reuse(name, each)

    def _load_kinds(
        self, undo: ExitStack, capture: Capture, slot: int, rules: list[Rule]
    ) -> dict[Kind, BpfObject]:
        """Load a capture's program in each kind that the devices have; they share the rules."""
        loaded: dict[Kind, BpfObject] = {}
        for kind in self._attachment.kinds:
            first = next(iter(loaded.values()), None)
            made = self._load(capture, slot, rules, kind, first)
            loaded[kind] = undo.enter_context(made)
        return loaded

    def _load(
        self,
        capture: Capture,
        slot: int,
        rules: list[Rule],
        kind: Kind,
        first: BpfObject | None = None,
    ) -> BpfObject:
        """Load a capture's own program, which the load balancer's tables and constants are for.

        ``first``: the same of another kind.
        """
        shared = self._maps()
        obj = _object(capture.expression, kind, slots=self._program.slots)
        with ExitStack() as undo:
            undo.enter_context(obj)
            self._use_maps(obj, shared.maps, besides=[_CHAIN])
            if kind in self._chains:
                obj.reuse(_CHAIN, self._chains[kind])
            by_family = {v: sum(r.version in (v, None) for r in rules) for v in (4, 6)}
            if first is None:
                wildcard.resize(obj, _RULES, ipv4=by_family[4], ipv6=by_family[6])
            else:
                _share_rules(obj, first)
            match = obj.btf.enum("record_match")
            constants = self._program.constants | {
                "record_slot": slot,
                "record_match": (int(match["RECORD_RULES"]) if rules else 0)
                | (int(match["RECORD_EXPRESSION"]) if capture.expression else 0),
                "record_sample": _ALL_SAMPLES // capture.sample,
                "record_load_helper": probe.helper(_LOAD_BYTES, ProgramType.XDP),
            }
            for name, value in constants.items():
                obj.rodata[name] = value
            for name in obj.program_names:
                obj.autoload(name, on=name == PROGRAM)
            obj.load()
            undo.pop_all()
        if kind not in self._chains:
            self._chains[kind] = self._undo.enter_context(_kept(obj.maps[_CHAIN]))
        return obj

    @staticmethod
    def _table(loaded: BpfObject, rules: list[Rule]) -> WildcardTable:
        table = WildcardTable(loaded, _RULES)
        try:
            table.insert_many(rules)
        except (FullError, TooComplexError) as error:
            table.close()
            raise DatapathError(f"filters: {error}") from error
        return table

    def _open_slot(self, capture: Capture, slot: int, ring: Ring) -> None:
        maps = self._maps().maps
        self.cpus["counts"][:, slot] = 0
        losses = maps["record_losses"]
        for key in list(losses.keys()):
            if int(key["slot"]) == slot:
                losses.delete(key, missing_ok=True)
        self.slots["snaplen"][slot] = capture.snaplen
        self.slots["directions"][slot] = _DIRECTIONS[capture.direction]
        self.slots["beat"][slot] += 1
        maps["record_rings"].update(slot, ring.fd)
        if self._heart is None:
            self._heart = threading.Thread(target=self._beat, name="recorder", daemon=True)
            self._heart.start()

    def _beat(self) -> None:
        """Tell programs that somebody is there, for as long as this process lives.

        And captures what time it is: who reads them may be waiting.
        """
        failed = ""
        while not self._closed.wait(_BEAT_SECONDS):
            try:
                self._beat_once()
            except Exception as error:
                # The next one may do; without any, captures would end without a word.
                if failed != repr(error):
                    log.exception("captures: tried again every %g s", _BEAT_SECONDS)
                failed = repr(error)

    def _beat_once(self) -> None:
        with self._lock:
            if not self._closed.is_set():
                self.slots["beat"] += 1
            for each in self._chain:
                each.clock.look()

    # ---- the chain -------------------------------------------------------------------------------

    def _put_first(self, recording: Recording) -> None:
        self._follow(recording, self._chain[0] if self._chain else None)
        self._chain.insert(0, recording)
        try:
            self._attachment.replace(recording.programs)
        except BaseException:
            self._chain.remove(recording)
            raise

    def _follow(self, recording: Recording, following: Recording | None) -> None:
        """Have a capture's programs call those of another one, or none."""
        for kind in recording.programs:
            program = following.programs.get(kind) if following else None
            if program is None:
                self._chains[kind].delete(recording.slot, missing_ok=True)
            else:
                self._chains[kind].update(recording.slot, program.fd)

    def stop(self, recording: Recording) -> None:
        """End a capture: when this returns its ring gets no more records. Twice is once."""
        with self._lock:
            if recording not in self._chain:
                return
            at = self._chain.index(recording)
            after = self._chain[at + 1] if at + 1 < len(self._chain) else None
            if at:
                self._follow(self._chain[at - 1], after)
            else:
                self._attachment.replace(after.programs if after else {})
            self._chain.remove(recording)
            # Packets that are under way still have its bit, and its program.
            wait_for_readers()
            self._follow(recording, None)
            self._maps().maps["record_rings"].delete(recording.slot, missing_ok=True)

    # ---- what was counted ------------------------------------------------------------------------

    def counts(self, slot: int) -> tuple[int, int]:
        """Return how many packets a capture was asked about, and how many it was for."""
        counts = self.cpus["counts"][:, slot]
        return int(counts["seen"].sum()), int(counts["matched"].sum())

    def losses(self, slot: int) -> dict[tuple[int, int], int]:
        """Return the records that found no room, by interface index and direction."""
        keys, values = self._maps().maps["record_losses"].snapshot()
        return {
            (int(key["ifindex"]), int(key["direction"])): int(value)
            for key, value in zip(keys, values, strict=True)
            if int(key["slot"]) == slot
        }

    # ---- life ------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Services are others now: what became of packets has to be asked anew."""
        self.version += 1

    def close(self) -> None:
        """End all captures. Twice is once."""
        for recording in self.recordings:
            recording.close()
        with self._lock:
            self._closed.set()
        if self._heart is not None:
            self._heart.join()
        self._undo.close()


def _room_for(capture: Capture) -> int:
    """Of the ring. Who keeps something has as much again for what comes between two looks at it."""
    if not capture.keep:
        return RING_BYTES
    return 1 << (max(2 * capture.keep, MIN_KEPT_RING) - 1).bit_length()


def _object(expression: str, kind: Kind, *, slots: bool) -> BpfObject:
    """Open the object, with an expression in it if there is one.

    ``kind``: the balancer's, since the last program of a chain balances, and the kernel refuses
    chains of several kinds. ``slots``: as of `SharedMaps.load`.
    """
    functions = {}
    if expression:
        try:
            program = compile_expression(expression)
        except ExpressionError as error:
            raise DatapathError(f"expression: {error}") from error
        functions[_EXPRESSION] = partial(translate, program, fragments=kind.fragments)
    obj = BpfObject.packaged(OBJECT)
    try:
        return of_kind(obj, kind, functions, slots=slots)
    except TranslationError as error:
        obj.close()
        raise DatapathError(f"expression: {error}") from error


def _kept(table: Map) -> Map:
    """The same map, to be closed by somebody else."""
    layout = table.layout
    return Map(os.dup(table.fd), name=table.name, key=layout.key, value=layout.value)


def _share_rules(obj: BpfObject, first: BpfObject) -> None:
    """Let an object use the rules of another one of the same capture."""
    for name in obj.map_names:
        if name.startswith(f"{_RULES}_"):
            obj.resize(name, first.maps[name].max_entries)
            obj.reuse(name, first.maps[name])
