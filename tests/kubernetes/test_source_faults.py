# SPDX-License-Identifier: Apache-2.0
"""An API server that is away, or tells something else than is true, empties no table."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
from tests.kubernetes.harness_source import (
    NODE,
    Follower,
    cluster_ip,
    endpoints,
    following,
    node,
    service,
    slice_of,
)
from tests.prog.socket.harness import BACKENDS, Child

from towpath.api.client import ApiError, Client
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tools.kubernetes.control_plane import ControlPlane

Both = tuple[Follower, Child]
MANY = 8


@pytest.fixture
def both(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Both]:
    """An agent that follows it, and a process that connects."""
    with following(control_plane, tmp_path) as made:
        made[0].until_synced()
        yield made


def reaches(child: Child, vip: str) -> bool:
    """Whether connect() reaches an endpoint."""
    return isinstance(child.run(f"tcp('{vip}', 80)"), list)


def make(control_plane: ControlPlane, *names: str) -> dict[str, str]:
    """Services with two endpoints each; their addresses."""
    for name in names:
        control_plane.apply(service(name), slice_of(name, endpoints(*BACKENDS[:2])))
    return {name: cluster_ip(control_plane, name) for name in names}


def until_reached(child: Child, vips: dict[str, str]) -> None:
    """Wait until all are."""
    wait_until(
        lambda: all(reaches(child, each) for each in vips.values()), seconds=60, what="services"
    )


def test_an_api_server_that_is_away(control_plane: ControlPlane, both: Both) -> None:
    """Services are as they were, for the next agent too; then it is followed again."""
    follower, child = both
    vips = make(control_plane, "stays")
    until_reached(child, vips)
    control_plane.stop("apiserver", number=signal.SIGKILL)
    follower.until(lambda found: any(each.error for each in found.kinds), "trouble to be told")
    assert reaches(child, vips["stays"])
    follower.agent.kill()
    assert reaches(child, vips["stays"])
    follower.agent.start()
    assert reaches(child, vips["stays"])
    with Client(follower.agent.socket) as client, pytest.raises(ApiError, match="kubernetes"):
        client.health()
    control_plane.start("apiserver")
    follower.until_synced()
    assert reaches(child, vips["stays"])
    vips |= make(control_plane, "comes")
    until_reached(child, vips)
    control_plane.kubectl("delete", "service", "comes", "stays")


def test_a_list_that_lacks_a_large_share(
    control_plane: ControlPlane, both: Both, tmp_path: Path
) -> None:
    """An agent that finds a restored cluster keeps what is lost, until that is accepted."""
    follower, child = both
    control_plane.snapshot(tmp_path / "snapshot")
    vips = make(control_plane, *(f"lost-{number}" for number in range(MANY)))
    until_reached(child, vips)
    follower.agent.kill()
    control_plane.restore(tmp_path / "snapshot")
    control_plane.stop("apiserver", number=signal.SIGKILL)
    control_plane.start("apiserver")
    follower.agent.start()
    follower.until(lambda found: found.withheld >= MANY, "the loss to be told")
    assert "a list lacks" in str(follower.status().trouble)
    assert all(reaches(child, each) for each in vips.values())
    # What a watch says is believed all the same.
    more = make(control_plane, "new")
    until_reached(child, more)
    control_plane.kubectl("delete", "service", "new")
    wait_until(lambda: not reaches(child, more["new"]), seconds=60, what="it to be gone")
    assert all(reaches(child, each) for each in vips.values())
    done = follower.agent.command("source", "accept", "kubernetes")
    assert done.returncode == 0, done.stderr
    follower.until(lambda found: found.withheld == 0 and not found.trouble, "it to be accepted")
    assert not any("lost-" in name for name in follower.services())
    done = follower.agent.command("source", "accept", "kubernetes")
    assert "nothing is withheld" in done.stderr


@pytest.mark.thorough
def test_a_database_that_was_put_back_under_a_running_server(
    control_plane: ControlPlane,
    both: Both,
    tmp_path: Path,
) -> None:
    """Its lists and watches stay as they were. That is told, and nothing is lost."""
    follower, child = both
    follower.until_synced()
    control_plane.snapshot(tmp_path / "snapshot")
    vips = make(control_plane, "undone")
    until_reached(child, vips)
    control_plane.restore(tmp_path / "snapshot")
    follower.until(lambda found: "the database has none" in str(found.trouble), "it to be told")
    assert "restart the API server" in str(follower.status().trouble)
    assert reaches(child, vips["undone"])
    control_plane.stop("apiserver", number=signal.SIGKILL)
    control_plane.start("apiserver")
    follower.until(lambda found: not found.trouble, "the truth to be known")
    wait_until(lambda: not reaches(child, vips["undone"]), seconds=60, what="it to be gone")
    follower.until_synced()


@pytest.mark.thorough
def test_what_is_written_to_a_database_that_was_put_back(
    control_plane: ControlPlane, both: Both, tmp_path: Path
) -> None:
    """Nothing that is known was lost: what a kubelet writes, and no watch tells, says so."""
    follower, child = both
    vips = make(control_plane, "kept")
    until_reached(child, vips)
    control_plane.stop("scheduler", "controller-manager")
    control_plane.snapshot(tmp_path / "snapshot")
    # Versions go on, by what agents don't follow.
    for number in range(30):
        control_plane.request("POST", "/api/v1/namespaces/default/configmaps", config_map(number))
    # For a list its memory has to be at the last of them; from there it would be told more.
    control_plane.get("nodes")
    control_plane.restore(tmp_path / "snapshot")
    beat = {"metadata": {"annotations": {"beat": "1"}}}
    kind = "application/merge-patch+json"
    assert control_plane.request("PATCH", f"/api/v1/nodes/{NODE}", beat, kind)[0] == 200
    follower.until(lambda found: f"Node {NODE} is" in str(found.trouble), "it to be told")
    assert reaches(child, vips["kept"])
    control_plane.stop("apiserver", number=signal.SIGKILL)
    control_plane.start("apiserver", "scheduler", "controller-manager")
    follower.until(lambda found: not found.trouble, "the truth to be known")
    assert reaches(child, vips["kept"])
    control_plane.kubectl("delete", "service", "kept")


def config_map(number: int) -> dict[str, Any]:
    """Something that nobody follows."""
    return {"metadata": {"name": f"filling-{number}"}}


def test_a_cluster_that_has_begun_anew(control_plane: ControlPlane, both: Both) -> None:
    """Another cluster at the old place: all stays, until it is accepted."""
    follower, child = both
    vips = make(control_plane, "mine")
    until_reached(child, vips)
    control_plane.stop("apiserver", number=signal.SIGKILL)
    control_plane.empty()
    control_plane.start("apiserver")
    follower.until(
        lambda found: "another cluster's" in str(found.trouble), "another cluster to be told"
    )
    assert reaches(child, vips["mine"])
    control_plane.request("POST", "/api/v1/nodes", node())
    vips_of_other = make(control_plane, "theirs")
    assert reaches(child, vips["mine"])
    done = follower.agent.command("source", "accept", "kubernetes")
    assert done.returncode == 0, done.stderr
    until_reached(child, vips_of_other)
    wait_until(
        lambda: not any(":mine:" in name for name in follower.services()),
        seconds=60,
        what="the other cluster's services to be gone",
    )
    follower.until_synced()
