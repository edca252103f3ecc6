# SPDX-License-Identifier: Apache-2.0
"""Who runs out of ports is told so, and not more than once a minute."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.agent.lb.exhaustion import QUIET, ExhaustionWatch

if TYPE_CHECKING:
    import pytest


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """The first at once, the next with all that came in between."""
    clock = Clock()
    watch = ExhaustionWatch({"drop_nat_ports": 7}, clock)
    watch.look({"drop_nat_ports": 7})
    assert not caplog.messages
    watch.look({"drop_nat_ports": 10})
    for count in range(11, 20):
        clock.now += 5
        watch.look({"drop_nat_ports": count})
    assert len(caplog.messages) == 1
    assert "3 packets of new flows dropped: no port of snat.ports was free" in caplog.messages[0]
    clock.now = 100 + QUIET
    watch.look({"drop_nat_ports": 19})
    assert len(caplog.messages) == 2
    assert "9 packets" in caplog.messages[1]
    clock.now += QUIET
    watch.look({"drop_nat_ports": 19})
    assert len(caplog.messages) == 2


def test_each_reason_has_a_minute_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """A flood doesn't hide that the ports are gone."""
    watch = ExhaustionWatch({}, Clock())
    watch.look({"drop_nat_rate": 1})
    watch.look({"drop_nat_rate": 2, "drop_nat_ports": 1, "tx": 9})
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "flood" in caplog.messages[0]
    assert "snat.ports" in caplog.messages[1]
