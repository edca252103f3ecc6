# SPDX-License-Identifier: Apache-2.0
"""Which changes of the file a running agent refuses."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily
from tests.unit.agent.http.test_metrics import text
from tests.unit.agent.samples import service

from towpath.agent.agent import Agent, needs_restart
from towpath.agent.config.file import ConfigFile
from towpath.agent.lb.part import LoadBalancer
from towpath.agent.parts import Part
from towpath.model import Config, Device, Limits, Metrics, Snat

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import pytest
    from prometheus_client.core import Metric

WEB = service("web", "203.0.113.10", "192.0.2.1")
CONFIG = Config(devices=(Device("eth0"),), services=(WEB,))


class Balances(Part):
    """As much of a load balancer as is asked here."""

    name, fixed = LoadBalancer.name, LoadBalancer.fixed


def refused(running: Config, new: Config) -> Mapping[str, str]:
    """The problems by field."""
    parts = [Balances()] if running.devices else []
    return {each.field: each.message for each in needs_restart(running, new, parts)}


def test_a_change_that_needs_a_restart_is_refused_whole() -> None:
    """Naming every part that does."""
    new = replace(
        CONFIG,
        devices=(Device("eth1"),),
        limits=Limits(services=5),
        metrics=Metrics(listen="127.0.0.1:1"),
    )
    found = refused(CONFIG, new)
    assert list(found) == ["devices", "limits", "metrics"]
    assert all("restart" in message for message in found.values())


def test_services_and_drain_change_at_once() -> None:
    """And nothing is said of what is as it was."""
    assert not refused(CONFIG, replace(CONFIG, services=()))
    assert not refused(CONFIG, CONFIG)


def test_a_section_comes_or_goes_with_a_restart() -> None:
    """What it has inside is its own concern."""
    with_section = replace(CONFIG, sections={"more": 1})
    assert list(refused(CONFIG, with_section)) == ["more"]
    assert list(refused(with_section, CONFIG)) == ["more"]
    assert not refused(with_section, replace(CONFIG, sections={"more": 2}))


def test_a_part_s_section_can_not_change_unless_it_says_so() -> None:
    """Nobody is left with a change that has no effect."""
    before, after = (replace(CONFIG, sections={"faulty": number}) for number in (1, 2))
    assert [each.field for each in needs_restart(before, after, [Faulty()])] == ["faulty"]


def test_a_load_balancer_comes_with_a_restart() -> None:
    """However else it is configured."""
    new = replace(CONFIG, snat=Snat(ipv4=(IPv4Address("192.0.2.1"),)))
    assert list(refused(Config(), new)) == ["devices"]


class Faulty(Part):
    """Can say nothing of itself while it is ``out``."""

    name = "faulty"
    out = True

    def summary(self) -> str:
        """Say something."""
        if self.out:
            raise OSError("out of memory")
        return "well"

    def metrics(self) -> Iterable[Metric]:
        """Begin to say something."""
        yield GaugeMetricFamily("towpath_faulty", "A number.", value=1)
        if self.out:
            raise ZeroDivisionError


def test_a_part_that_can_not_be_read_is_told_and_no_other_s_concern(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Status and metrics have everything else; the log has the error once."""
    path = tmp_path / "towpath.yaml"
    path.write_text(f"state: {{directory: {tmp_path}, pins: {tmp_path}/pins}}\n")
    with Agent(ConfigFile(path)) as agent:
        part = Faulty()
        agent.parts = (part,)
        for _ in range(2):
            assert "towpath_agent_info" in text(agent.metrics())
        assert "towpath_faulty" not in text(agent.metrics())
        status = agent.status()
        assert status.capabilities == {"faulty": "it can't be read"}
        assert status.trouble is not None
        assert "faulty: metrics: ZeroDivisionError" in status.trouble
        assert "faulty: summary: out of memory" in status.trouble
        assert len(caplog.records) == 2
        part.out = False
        assert "towpath_faulty 1.0" in text(agent.metrics())
        assert agent.status().capabilities == {"faulty": "well"}
        assert agent.trouble is None


class Slow(Part):
    """Notes in which thread it is asked."""

    name = "slow"

    def __init__(self) -> None:
        self.asked_in: list[int] = []

    def summary(self) -> str:
        """Go through a large table."""
        self.asked_in.append(threading.get_ident())
        return "done"


def test_a_reload_keeps_nobody_waiting_for_what_parts_say(tmp_path: Path) -> None:
    """Checks and requests go on: the event loop asks no part."""
    path = tmp_path / "towpath.yaml"
    path.write_text(f"state: {{directory: {tmp_path}, pins: {tmp_path}/pins}}\n")
    with Agent(ConfigFile(path)) as agent:
        part = Slow()
        agent.parts = (part,)
        asyncio.run(agent._reload(agent.config))
    assert part.asked_in
    assert threading.get_ident() not in part.asked_in
