# SPDX-License-Identifier: Apache-2.0
"""One address family of a table: rules to and from its arrays."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.native.wildcard import FamilyWriter, Report, Status, WriterError
from towpath.wildcard.codec import MAX_NUMBER, decode, encode, key_of, matching
from towpath.wildcard.errors import FullError, NoSuchRuleError, TooComplexError, WildcardError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from towpath.wildcard.codec import Family
    from towpath.wildcard.rule import Packet, Rule

    Array = np.ndarray[Any, Any]

_NUMBER = 0xFFFFFFFF  # in a slot of devices
_IFINDEX = 32


class FamilyTable:
    """The rules of one family.

    ``arrays``: index, slots and rules, as :class:`towpath.native.wildcard.FamilyWriter` wants them.
    """

    def __init__(
        self, family: Family, arrays: tuple[Array, Array, Array], wait: Callable[[], None]
    ) -> None:
        self.family = family
        self.index = arrays[0].reshape(-1)[0:1]
        try:
            self._writer = FamilyWriter(family.words, *arrays, secrets.token_bytes(48), wait)
        except WriterError as error:
            raise WildcardError(
                f"the IPv{family.version} maps hold no wildcard table: something else has "
                "written to them"
            ) from error
        self._sorted: Array | None = None

    # ---- changes ---------------------------------------------------------------------------------

    def insert(self, numbered: Sequence[tuple[Rule, int]]) -> None:
        """Insert rules, in order; all or none. FullError; TooComplexError."""
        self._sorted = None
        with self._devices(rule for rule, _ in numbered) as devices:
            records = b"".join(
                [
                    encode(self.family, rule, number, devices.get(rule.ifindex, 0))
                    for rule, number in numbered
                ]
            )
            try:
                self._writer.insert(records)
            except WriterError as error:
                explained = self._explained(error)
                self._writer.delete([number for _, number in numbered[: error.done]])
                raise explained from error

    def delete(self, numbers: Sequence[int]) -> None:
        """Delete rules. NoSuchRuleError: those before are deleted."""
        self._sorted = None
        try:
            self._writer.delete(numbers)
        except WriterError as error:
            raise self._explained(error) from error

    def replace(self, rules: Mapping[int, Rule], version: int | None = None) -> None:
        """Replace rules, by default with versions one higher, at one wait for readers."""
        self._sorted = None
        with self._devices(rules.values()) as devices, self._errors():
            self._writer.replace(
                [
                    encode(
                        self.family,
                        rule,
                        number,
                        devices.get(rule.ifindex, 0),
                        self.version_of(number) + 1 if version is None else version,
                    )
                    for number, rule in rules.items()
                ]
            )

    @contextmanager
    def _devices(self, rules: Iterable[Rule]) -> Iterator[dict[int | None, int]]:
        """The numbers of the devices that rules name, kept for them in the block. FullError."""
        numbers: dict[int | None, int] = {}
        try:
            for rule in rules:
                if rule.ifindex is not None and rule.ifindex not in numbers:
                    with self._errors():
                        numbers[rule.ifindex] = self._writer.device(rule.ifindex)
            yield numbers
        finally:
            for number in numbers.values():
                self._writer.release(number)

    def set_value(self, number: int, value: int) -> None:
        """Give a rule another value."""
        self._sorted = None
        with self._errors(number):
            self._writer.set_value(number, value)

    @contextmanager
    def _errors(self, number: int | None = None) -> Iterator[None]:
        try:
            yield
        except WriterError as error:
            raise self._explained(error, number) from error

    def _explained(self, error: WriterError, number: int | None = None) -> WildcardError:
        name, report = f"IPv{self.family.version}", self._writer.report()
        if error.status is Status.NO_SUCH_RULE:
            which = "with one of these numbers" if number is None else f"{number}"
            return NoSuchRuleError(f"there is no {name} rule {which}")
        if error.status in (Status.FULL, Status.NO_SPACE):
            return FullError(
                f"no room for another {name} rule: {report.rules} are in, allowed: {report.limit}; "
                "make the table larger (towpath.wildcard.resize) before its program is loaded"
            )
        if error.status is Status.NO_DEVICE:
            return FullError(
                f"{name} rules name as many devices as there are numbers for; allowed: 255"
            )
        return TooComplexError(
            f"more than 1024 {name} rules would have to be compared with one packet, since "
            "neither their addresses nor single ports tell them apart"
        )

    # ---- what there is ---------------------------------------------------------------------------

    def __contains__(self, number: int) -> bool:
        # Of 64 bits is all that the library is told.
        return 0 < number <= MAX_NUMBER and number in self._writer

    def record(self, number: int) -> Any:
        """A rule's record. NoSuchRuleError."""
        with self._errors(number):
            return self._writer.get(number)

    def version_of(self, number: int) -> int:
        """How often a rule has been replaced. NoSuchRuleError."""
        return int(self.record(number)["head"]["version"])

    def records(self) -> Array:
        """All rules' records, the one that wins first. Not to be written to."""
        if self._sorted is None:
            self._sorted = self._writer.rules()
        return self._sorted

    def decode(self, record: Any, ifindexes: Mapping[int, int] | None = None) -> Rule:
        """A rule from its record."""
        return decode(self.family, record, ifindexes or self.ifindexes())

    def ifindexes(self) -> dict[int, int]:
        """The interface index for each number of a device."""
        slots = self.index["devices"][0]
        used = slots[(slots & _NUMBER) != 0].tolist()
        return {slot & _NUMBER: slot >> _IFINDEX for slot in used}

    def lookup(self, packet: Packet) -> Any:
        """The record of the rule that wins for a packet, None if none matches."""
        numbers = {ifindex: number for number, ifindex in self.ifindexes().items()}
        key = key_of(self.family, packet, numbers.get(packet.ifindex, 0))
        records = self.records()
        found = np.flatnonzero(matching(records, key))
        return records[found[0]] if len(found) else None

    def report(self) -> Report:
        """How full it is."""
        return self._writer.report()

    def close(self) -> None:
        """Let go of the arrays."""
        self._writer.close()
