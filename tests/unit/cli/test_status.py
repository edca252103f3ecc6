# SPDX-License-Identifier: Apache-2.0
"""What `towpath status` shows of devices, and of packets that they have refused."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from tests.unit.api.test_codec import DOCUMENTS

from towpath.api.documents import Counters, Refused, Status, UnwrappedCounters
from towpath.cli.counters import show_refused, show_unwrapped
from towpath.cli.status import _lines

if TYPE_CHECKING:
    import pytest

STATUS = next(each for each in DOCUMENTS if isinstance(each, Status))


def test_why_a_device_runs_in_generic_mode_is_shown() -> None:
    """Of those that do because their driver has refused, and of no others."""
    lines = list(_lines(STATUS))
    assert ("devices", "eth0 (native, called lan0), eth1 (not attached), eth2 (generic)") in lines
    assert [each for each in lines if "is generic" in each[0]] == [("eth2 is generic", "refused")]


def test_what_was_refused_is_shown_where_there_is_any(capsys: pytest.CaptureFixture[str]) -> None:
    """By device and error."""
    for none in (None, ()):
        show_refused(Counters({}, refused=none))
    assert capsys.readouterr().out == ""
    show_refused(Counters({}, refused=(Refused("br0", "EOPNOTSUPP", 1234),)))
    shown = capsys.readouterr().out
    assert "refused by" in shown
    assert ["br0", "EOPNOTSUPP", "1,234"] in [line.split() for line in shown.splitlines()]


def test_what_was_unwrapped_is_shown_where_tunnels_end(capsys: pytest.CaptureFixture[str]) -> None:
    """By their destination, those without a packet too."""
    show_unwrapped(Counters({}))
    assert capsys.readouterr().out == ""
    ends = (UnwrappedCounters(ip_address(f"192.0.2.{n}"), 1234 * n, 56 * n) for n in (0, 1))
    show_unwrapped(Counters({}, unwrapped=tuple(ends)))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["192.0.2.0", "0", "0"] in rows
    assert ["192.0.2.1", "1,234", "56"] in rows
