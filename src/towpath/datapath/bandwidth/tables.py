# SPDX-License-Identifier: Apache-2.0
"""The rows of aggregates: their numbers, limits, and how far they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.address import family, pack
from towpath.datapath.bandwidth.limits import row
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.datapath.address import Address
    from towpath.datapath.bandwidth.limits import Limit
    from towpath.datapath.bandwidth.program import BandwidthProgram
    from towpath.datapath.bandwidth.wanted import Aggregate
    from towpath.kernel.bpf.maps import Map

_BATCH = 4096


class Numbers:
    """Aggregates by number, as the tables know them: also those of an earlier process."""

    def __init__(self, program: BandwidthProgram) -> None:
        self._program = program
        self._names = program.maps["bw_names"]
        self._limits = program.maps["bw_limits"]
        _, rows = self._names.snapshot()
        texts = (bytes(each["text"].tobytes()).rstrip(b"\0").decode() for each in rows)
        self.by_name: dict[str, int] = {text: at for at, text in enumerate(texts) if text}
        _, self._rows = self._limits.snapshot()

    def sync(self, aggregates: Iterable[Aggregate]) -> None:
        """Have these limits and no others. Groups come before their pods.

        KernelError: there are more than there is room for; then nothing is changed.
        """
        wanted = {each.name: each for each in aggregates}
        if len(wanted) > self._program.aggregates:
            room = self._program.aggregates
            raise KernelError(
                f"limit {len(wanted)} pods and groups", hint=f"bandwidth.aggregates is {room}"
            )
        self._forget([name for name in self.by_name if name not in wanted])
        self._begin([name for name in wanted if name not in self.by_name])
        made: dict[tuple[Limit, int], Any] = {}  # many have the same limit
        changed: dict[int, Any] = {}
        for name, each in wanted.items():
            of = each.limit, self.by_name.get(each.group, 0)
            if of not in made:
                made[of] = row(self._program, *of)
            number = self.by_name[name]
            if made[of].tobytes() != self._rows[number].tobytes():
                changed[number] = made[of]
        self._write(changed)

    def _write(self, changed: Mapping[int, Any]) -> None:
        numbers = list(changed)
        for begin in range(0, len(numbers), _BATCH):
            some = numbers[begin : begin + _BATCH]
            values = np.array([changed[each] for each in some], self._limits.value_dtype)
            self._limits.update_batch(np.array(some, "=u4"), values)
            self._rows[some] = values

    def _forget(self, names: list[str]) -> None:
        numbers = [self.by_name.pop(name) for name in names]
        self._write(dict.fromkeys(numbers, self._program.record("bw_limits")))
        self._name(dict.fromkeys(numbers, ""))

    def _begin(self, names: list[str]) -> None:
        """Give new aggregates numbers; those that others have had begin anew."""
        taken = set(self.by_name.values())
        free = (at for at in range(1, self._program.aggregates + 1) if at not in taken)
        numbers = dict(zip(names, free, strict=False))
        self._name({number: name for name, number in numbers.items()})
        for table in ("bw_states", "bw_buckets", "bw_counts"):
            self._clear(self._program.maps[table], list(numbers.values()))
        self.by_name |= numbers

    def _name(self, texts: Mapping[int, str]) -> None:
        keys = np.array(list(texts), "=u4")
        values = np.zeros(keys.size, self._names.value_dtype)
        for value, text in zip(values["text"], texts.values(), strict=True):
            value[: len(text)] = np.frombuffer(text.encode(), np.uint8)
        self._names.update_batch(keys, values)

    def _clear(self, table: Map, numbers: list[int]) -> None:
        if not numbers:
            return
        empty = np.zeros_like(table.lookup(numbers[0]))
        for begin in range(0, len(numbers), _BATCH):
            some = np.array(numbers[begin : begin + _BATCH], "=u4")
            table.update_batch(some, np.zeros((some.size, *empty.shape), empty.dtype))


class Owners:
    """Whose devices and addresses are."""

    def __init__(self, program: BandwidthProgram) -> None:
        self._program = program
        self._pods = program.maps["bw_pods"]
        self._slots = program.maps["bw_pod_slots"]
        self._addresses = program.maps["bw_addresses"]
        self._devices = program.maps["bw_devices"]

    def sync_pods(self, owners: Mapping[int, int], by_address: Iterable[int]) -> None:
        """Have these devices be of these aggregates' (0: of several, by their addresses)."""
        flag = self._program.constant("bandwidth_pod_flags", "BANDWIDTH_BY_ADDRESS")
        shared = set(by_address)
        there = {int(index): value.tobytes() for index, value in self._pods.items()}
        records = {}
        for index in {*owners, *shared}:
            record = records[index] = self._program.record("bw_pods")
            record["ifindex"], record["aggregate"] = index, owners.get(index, 0)
            record["flags"] = flag * (index in shared)
            if there.get(index) != record.tobytes():
                self._pods.update(index, record)
        self._sync_slots(records)
        for index in there:
            if index not in records:
                self._pods.delete(index, missing_ok=True)

    def _sync_slots(self, records: Mapping[int, Any]) -> None:
        """Have one device in each slot that several have: the one that is there, or any.

        A slot is out of use while it is written; what is in the hash holds meanwhile.
        """
        _, before = self._slots.snapshot()
        wanted: dict[int, Any] = {}
        for index, record in records.items():
            slot = index % before.size
            if slot not in wanted or before[slot]["ifindex"] == index:
                wanted[slot] = record
        empty = self._program.record("bw_pod_slots")
        taken = np.flatnonzero(before["ifindex"]).tolist()
        for slot in {*wanted, *taken}:
            record = wanted.get(slot, empty)
            if before[slot] != record:
                for ifindex in (0, record["ifindex"]):
                    row = record.copy()
                    row["ifindex"] = ifindex
                    self._slots.update(slot, row)

    def sync_addresses(self, wanted: Mapping[Address, int]) -> None:
        """Have these addresses be of these aggregates'."""
        keys = {self._key(address).tobytes(): address for address in wanted}
        there = {key.tobytes(): (key, int(value)) for key, value in self._addresses.items()}
        for packed, address in keys.items():
            if packed not in there or there[packed][1] != wanted[address]:
                self._addresses.update(self._key(address), wanted[address])
        for packed, (key, _) in there.items():
            if packed not in keys:
                self._addresses.delete(key, missing_ok=True)

    def sync_devices(self, indexes: Iterable[int]) -> None:
        """Have pods' packets leave by these, as far as they go past the stack."""
        wanted = set(indexes)
        there = set(map(int, self._devices.keys()))
        for index in wanted - there:
            self._devices.update(index, 1)
        for index in there - wanted:
            self._devices.delete(index, missing_ok=True)

    def _key(self, address: Address) -> Any:
        key = np.zeros((), self._addresses.key_dtype)
        key["address"]["word"] = np.frombuffer(pack(address), ">u4")
        key["family"] = family(address)
        return key
