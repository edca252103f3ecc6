# SPDX-License-Identifier: Apache-2.0
"""The lab comes up whole or not at all, and goes without a trace."""

from __future__ import annotations

import os
import signal
from ipaddress import ip_interface
from typing import TYPE_CHECKING

import pytest
from pyroute2 import netns
from tests.lab.harness_lab import assert_nothing_left, leftovers, start, towpath

from towpath.lab import Lab, LabError, namespaces
from towpath.lab.topology import CLIENT, ROUTER, VIP4
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    assert leftovers() == []
    yield
    assert_nothing_left()


def test_the_client_reaches_every_backend_over_both_families() -> None:
    """Every link, address and route works, and every web server answers for itself."""
    with Lab.up(3) as lab:
        for link in lab.topology.backend_links:
            for page in (f"http://{link.node4[0].ip}/", f"http://[{link.node6[0].ip}]/"):
                answer = namespaces.run(
                    CLIENT, ["curl", "-s", "--max-time", "5", page], capture_output=True
                )
                assert answer.stdout == link.port


def test_a_second_lab_is_refused_and_the_first_stays() -> None:
    """One line says what to do about it."""
    with Lab.up(1):
        refused = towpath("lab", "up")
        assert refused.returncode == 1
        assert refused.stderr == ("Error: a lab is already up; `towpath lab down` takes it down\n")
        assert towpath("lab", "status", "-o", "json").returncode == 0


def test_up_status_exec_and_down_from_the_command_line() -> None:
    """A lab outlives the command that made it."""
    assert towpath("lab", "up", "--backends", "2").returncode == 0
    assert "tp-be2" in towpath("lab", "status").stdout
    shown = towpath("lab", "exec", "be1", "--", "ip", "-brief", "address", "show", "eth0")
    assert str(ip_interface("192.0.2.6/30")) in shown.stdout
    assert "no namespace be9" in towpath("lab", "exec", "be9", "--", "true").stderr
    assert towpath("lab", "down").returncode == 0


def test_down_can_be_called_again_and_without_a_lab() -> None:
    """What is not there need not be taken down."""
    lab = Lab.up(1)
    lab.down()
    lab.down()
    assert towpath("lab", "down").returncode == 0
    with pytest.raises(LabError, match="no lab is up"):
        Lab.current()


def test_down_ends_what_was_started_in_the_lab() -> None:
    """A command left running in a namespace does not keep the lab alive."""
    with Lab.up(1) as lab:
        sleeper = lab.spawn("client", ["sleep", "1000"], log_to="sleeper.log")
    assert sleeper.wait() == -signal.SIGTERM


def test_a_namespace_that_is_not_the_labs_is_left_alone() -> None:
    """The lab is refused rather than built over what somebody else has made."""
    netns.create(ROUTER)
    try:
        with pytest.raises(LabError, match=f"exist already: {ROUTER}; remove them"):
            Lab.up(1)
        assert ROUTER in namespaces.existing()
    finally:
        netns.remove(ROUTER)


def test_a_lab_that_cannot_be_built_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The web servers are among the last things; everything before them is undone."""
    broken = tmp_path / "nginx"
    broken.write_text("#!/bin/sh\necho 'no such directive' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(LabError, match="nginx did not start on be1: no such directive"):
        Lab.up(1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_up_leaves_nothing(number: signal.Signals) -> None:
    """The command ends by the signal it got, when it has undone what it had done."""
    command = start("lab", "up")
    wait_until(lambda: ROUTER in namespaces.existing(), seconds=120, what="the first namespace")
    command.send_signal(number)
    output, _ = command.communicate(timeout=120)
    assert command.returncode == -number, output


def test_down_clears_up_after_a_killed_up() -> None:
    """What is about to be built is known before anything is."""
    command = start("lab", "up")
    wait_until(lambda: ROUTER in namespaces.existing(), seconds=120, what="the first namespace")
    command.kill()
    command.communicate()
    assert leftovers() != []
    assert towpath("lab", "down").returncode == 0


def test_the_balancer_gets_what_is_for_the_vips() -> None:
    """Without a balancer nobody answers for a VIP, though every backend owns it."""
    with Lab.up(1) as lab:
        refused = namespaces.run(
            CLIENT, ["curl", "-s", "--max-time", "1", f"http://{VIP4}/"], capture_output=True
        )
        assert refused.returncode != 0
        route = namespaces.run(ROUTER, ["ip", "route", "get", str(VIP4)], capture_output=True)
        assert f"via {lab.topology.balancer.node4[0].ip} dev lb" in route.stdout
