# SPDX-License-Identifier: Apache-2.0
"""A wildcard table in the kernel, filled with generated rules, and programs that look up in it."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from towpath.bench import wildcard_others
from towpath.bench.errors import BenchError
from towpath.bench.rulesets import columns
from towpath.kernel.bpf.object import BpfObject
from towpath.wildcard import Rule, WildcardTable, resize
from towpath.wildcard.codec import FAMILIES
from towpath.wildcard.maps import PARTS
from towpath.wildcard.walk import Walker

if TYPE_CHECKING:
    from types import TracebackType

    Array = np.ndarray[Any, Any]

WAYS = ("rules", "masks", "scan")
_FRAME = bytes(64)
_FAMILY = {4: 2, 6: 10}
_MAX_PRIORITY = (1 << 20) - 1


def rules_of(generated: Array, version: int) -> list[Rule]:
    """Generated rules (dtype RULE) as rules of a table, each above all that come after it.

    The value is a rule's place.
    """
    network = IPv4Network if version == 4 else IPv6Network  # noqa: PLR2004
    return [
        Rule(
            network((source[0] << 64 | source[1], source_length)),
            network((destination[0] << 64 | destination[1], destination_length)),
            (sport[0], sport[1]),
            (dport[0], dport[1]),
            None if protocol < 0 else protocol,
            value=place,
            priority=_MAX_PRIORITY - place,
        )
        for place, (
            source,
            destination,
            source_length,
            destination_length,
            sport,
            dport,
            protocol,
        ) in enumerate(columns(generated))
    ]


@dataclass(frozen=True, slots=True)
class Cost:
    """Hash tables looked into and rules compared, for one packet."""

    mean_tuples: float
    mean_rules: float
    most: int
    """Of both together."""


class WildcardRig:
    """One set of rules in the kernel, to be looked up in each way; a context manager.

    ``count``: rules it is for; ``queries``: packets it takes, a power of two. ``others``: whether
    the other ways are there too, for IPv4 only.
    """

    def __init__(self, version: int, count: int, queries: int, *, others: bool) -> None:
        self.version = version
        self._queries = queries
        self._undo = ExitStack()
        with ExitStack() as undo:
            self.object = undo.enter_context(BpfObject.packaged("bench_wildcard"))
            self.object.autoload("answer_floor", on=False)
            for way in WAYS[1:]:
                for program in (f"bench_{way}", f"answer_{way}"):
                    self.object.autoload(program, others)
            resize(self.object, "rules", **{f"ipv{version}": count, f"ipv{10 - version}": 0})
            for name in ("queries", "answers"):
                self.object.resize(name, queries)
            self.object.resize("scanned", count + 1 if others else 1)
            self.object.resize("masked", count * 40 if others else 1)
            self.object.load()
            self.table = undo.enter_context(WildcardTable(self.object, "rules"))
            self._undo = undo.pop_all()
        self._state = self.object.maps[".bss"]
        self.batch = int(self.object.btf.enum("bench_limits")["BENCH_BATCH"])

    def fill(self, rules: list[Rule]) -> tuple[list[int], float]:
        """Insert the rules; returns their numbers, and the seconds it took."""
        start = time.perf_counter()
        numbers = self.table.insert_many(rules)
        return numbers, time.perf_counter() - start

    def fill_others(self) -> int:
        """Give the other ways the table's rules; returns how many masks these have."""
        records = self.records()
        tops, keys, ranks = wildcard_others.masked(records)
        most = self.object.maps["masks"].max_entries
        if len(tops) > most:
            raise BenchError(f"{len(tops)} masks in the rules; allowed: {most}")
        with self.object.maps["masks"].mmap() as mapped:
            mapped.array["mask"][: len(tops)] = tops[:, :2]
            mapped.array["top"][: len(tops)] = tops[:, 2]
        entries = np.zeros(len(keys), self.object.maps["masked"].key_dtype)
        entries["bits"], entries["mask"] = keys[:, :2], keys[:, 2]
        self.object.maps["masked"].update_batch(entries, ranks)
        with self.object.maps["scanned"].mmap() as mapped:
            mapped.array[: len(records) + 1] = wildcard_others.scanned(records)
        self._set(masks=len(tops))
        return len(tops)

    def records(self) -> Array:
        """The table's rules as the kernel has them."""
        return self.table._tables[self.version].records()  # noqa: SLF001 -- to be compared

    def ask(self, packets: Array) -> None:
        """Make these the packets that are looked up (dtype PACKET, as many as ``queries``)."""
        with self.object.maps["queries"].mmap() as mapped:
            keys = mapped.array["key"]
            for field, name in (("saddr", "source"), ("daddr", "destination")):
                keys[field] = packets[name].astype(">u8").view(">u4").reshape(-1, 4)
            for name in ("sport", "dport", "protocol"):
                keys[name] = packets[name]
            keys["family"] = _FAMILY[self.version]
        self._set(next=0, mask=self._queries - 1)

    def answers(self, way: str, count: int) -> Array:
        """The numbers of the rules that the first packets find, 0 for none, and as many others."""
        self._set(next=0)
        self.object.programs[f"answer_{way}"].test_run(_FRAME, repeat=-(-count // self.batch))
        with self.object.maps["answers"].mmap() as mapped:
            found: Array = mapped.array["number"].copy()
        return found

    @property
    def bytes(self) -> int:
        """Kernel memory of the family that is measured."""
        each = [self.object.maps[f"rules_{part}{self.version}"] for part in PARTS]
        return sum(one.max_entries * one.value_dtype.itemsize for one in each)

    def time(self, way: str, lookups: int) -> float:
        """Nanoseconds of one look-up, the packets in turn, as many before that aren't timed."""
        runs = -(-lookups // self.batch)
        self._set(untimed=runs, nanoseconds=0, lookups=0)
        self.object.programs[f"bench_{way}"].test_run(_FRAME, repeat=2 * runs)
        state = self._state.lookup(0)["bench"]
        return int(state["nanoseconds"]) / int(state["lookups"])

    def cost(self, packets: Array) -> Cost:
        """What the look-ups of these packets cost, found by following each."""
        family = FAMILIES[self.version]
        name = f"rules_{{}}{self.version}".format
        with ExitStack() as stack:
            arrays = [
                stack.enter_context(self.object.maps[name(part)].mmap(writable=False)).array
                for part in PARTS
            ]
            walker = Walker(family, *arrays)
            steps = [walker.find(_key(family, packet)) for packet in columns(packets)]
        tuples = np.array([each.tuples for each in steps])
        rules = np.array([each.rules for each in steps])
        return Cost(float(tuples.mean()), float(rules.mean()), int((tuples + rules).max()))

    def _set(self, **values: int) -> None:
        state = self._state.lookup(0)
        for name, value in values.items():
            state["bench"][name] = value
        self._state.update(0, state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()


def _key(family: Any, packet: Any) -> tuple[int, ...]:
    (source_high, source_low), (destination_high, destination_low), sport, dport, protocol = packet
    return (
        *family.join(source_high << 64 | source_low, destination_high << 64 | destination_low),
        sport << 48 | dport << 32 | protocol << 24,
    )
