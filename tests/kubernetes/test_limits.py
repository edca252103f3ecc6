# SPDX-License-Identifier: Apache-2.0
"""A cluster that has outgrown the limits is served all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.kubernetes.harness_source import (
    Follower,
    cluster_ip,
    endpoints,
    following,
    service,
    slice_of,
)
from tests.prog.socket.harness import BACKENDS

from towpath.api.client import Client
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tools.kubernetes.control_plane import ControlPlane

pytestmark = pytest.mark.thorough
SERVICES = 40
_FOR = """
def connect_for(seconds, vip):
    import time
    end, answers = time.monotonic() + seconds, []
    while time.monotonic() < end:
        answers.append(tcp(vip, 80)[0])
        time.sleep(0.002)
    return sorted(set(answers)), len(answers)
"""


def test_limits_grow(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same process; connections to a Service go on reaching its endpoint meanwhile."""
    limits = Follower.limits | {"services": 8, "backends": 16, "table_slots": 8192}
    monkeypatch.setattr(Follower, "limits", limits)
    control_plane.apply(service("web"), slice_of("web", endpoints(BACKENDS[0])))
    vip = cluster_ip(control_plane, "web")
    with following(control_plane, tmp_path) as (follower, child):
        follower.until_served(f"default:web:web:cluster:{vip}", BACKENDS[0])
        assert follower.agent.process is not None
        child.run(_FOR)
        many = [f"s{number}" for number in range(SERVICES)]
        slices = [slice_of(name, endpoints(*BACKENDS)) for name in many]
        control_plane.apply(*map(service, many), *slices)
        found, connections = child.run(f"connect_for(4, {vip!r})")
        assert found == [BACKENDS[0]]
        assert connections > 100
        wait_until(lambda: _served(follower) > SERVICES, seconds=120, what="all to be served")
        assert follower.agent.process.poll() is None
        with Client(follower.agent.socket) as client:
            status = client.status()
        assert status.pid == follower.agent.process.pid
        assert status.limits["services"].limit >= SERVICES
        assert status.limits["backends"].limit >= SERVICES * len(BACKENDS)
        assert follower.agent.log.count("limits grow") == 1
        last = cluster_ip(control_plane, many[-1])
        assert child.run(f"tcp({last!r}, 80)")[1] == [last, 80]
        follower.agent.kill()
        follower.agent.start()
        follower.until_synced()
        assert _served(follower) > SERVICES


def test_limits_that_may_not_grow(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits is served; of the rest the status says why, and an Event."""
    limits = Follower.limits | {"services": 8}
    monkeypatch.setattr(Follower, "limits", limits)
    with following(control_plane, tmp_path) as (follower, _):
        follower.section["grow_to"] = 0
        follower.agent.end()
        follower.agent.write(kubernetes=follower.section)
        follower.agent.start()
        follower.until_synced()
        many = [f"t{number}" for number in range(16)]
        control_plane.apply(*map(service, many))
        follower.until(
            lambda found: any("NoRoom" in each.message for each in found.unserved), "to be told"
        )
        status = follower.status()
        assert status.trouble is not None
        assert "limits don't grow: grow_to is 0" in status.trouble
        assert _served(follower) == limits["services"]

        def told() -> bool:
            events = control_plane.get("events")["items"]
            return any(each["reason"] == "NoRoom" for each in events)

        wait_until(told, seconds=60, what="an Event")


def _served(follower: Follower) -> int:
    try:
        return len(follower.services())
    except OSError:  # it begins anew just now
        return 0
