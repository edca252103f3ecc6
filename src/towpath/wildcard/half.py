# SPDX-License-Identifier: Apache-2.0
"""One address family of a table: rules to and from its arrays."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.core.wildcard import Half, RefusedError, Report, Status
from towpath.wildcard.codec import decode, encode, key_of, matching, number_of
from towpath.wildcard.errors import FullError, NoSuchRuleError, TooComplexError, WildcardError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from towpath.wildcard.codec import Family
    from towpath.wildcard.rule import Packet, Rule

    Array = np.ndarray[Any, Any]

_NUMBER = 0xFFFFFFFF  # in a slot of devices
_IFINDEX = 32


class FamilyTable:
    """The rules of one family.

    ``arrays``: index, slots and rules, as :class:`towpath.core.wildcard.Half` wants them.
    """

    def __init__(
        self, family: Family, arrays: tuple[Array, Array, Array], wait: Callable[[], None]
    ) -> None:
        self.family = family
        self.index = arrays[0].reshape(-1)[0:1]
        try:
            self._half = Half(family.words, *arrays, wait)
        except RefusedError as error:
            raise WildcardError(
                f"the IPv{family.version} maps hold no wildcard table: something else has "
                "written to them"
            ) from error
        self._sorted: Array | None = None

    # ---- changes ---------------------------------------------------------------------------------

    def encode(self, rule: Rule, number: int, version: int = 0) -> bytes:
        """A rule's record. FullError: there is no number left for its device."""
        device = 0
        if rule.ifindex is not None:
            with self._errors():
                device = self._half.device(rule.ifindex)
        return encode(self.family, rule, number, device, version)

    def insert(self, records: bytes) -> None:
        """Insert rules, in order; all or none. FullError; TooComplexError."""
        self._sorted = None
        try:
            self._half.insert(records)
        except RefusedError as error:
            self._half.delete(self._numbers(records)[: error.done])
            raise self._explained(error, None) from error

    def _numbers(self, records: bytes) -> list[int]:
        return [number_of(fields[0]) for fields in self.family.record.iter_unpack(records)]

    def delete(self, numbers: Sequence[int]) -> None:
        """Delete rules. NoSuchRuleError: those before are deleted."""
        self._sorted = None
        try:
            self._half.delete(numbers)
        except RefusedError as error:
            raise self._explained(error, None) from error

    def replace(self, records: Sequence[bytes]) -> None:
        """Replace rules by records of higher version; all of them at one wait for readers."""
        self._sorted = None
        with self._errors():
            self._half.replace(records)

    def set_value(self, number: int, value: int) -> None:
        """Give a rule another value."""
        self._sorted = None
        with self._errors(number):
            self._half.set_value(number, value)

    @contextmanager
    def _errors(self, number: int | None = None) -> Iterator[None]:
        try:
            yield
        except RefusedError as error:
            raise self._explained(error, number) from error

    def _explained(self, error: RefusedError, number: int | None) -> WildcardError:
        name, report = f"IPv{self.family.version}", self._half.report()
        if error.status is Status.NO_SUCH_RULE:
            which = "with one of these numbers" if number is None else f"{number}"
            return NoSuchRuleError(f"there is no {name} rule {which}")
        if error.status in (Status.FULL, Status.NO_ROOM):
            return FullError(
                f"{report.rules} {name} rules are in and there is room for {report.limit}: "
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
        return number in self._half

    def record(self, number: int) -> Any:
        """A rule's record. NoSuchRuleError."""
        with self._errors(number):
            return self._half.get(number)

    def version_of(self, number: int) -> int:
        """How often a rule has been replaced. NoSuchRuleError."""
        return int(self.record(number)["head"]["version"])

    def records(self) -> Array:
        """All rules' records, the one that wins first. Not to be written to."""
        if self._sorted is None:
            self._sorted = self._half.rules()
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
        return self._half.report()

    def close(self) -> None:
        """Let go of the arrays."""
        self._half.close()
