# SPDX-License-Identifier: Apache-2.0
"""Services at sockets from a script: `SocketLoadBalancer`."""

from __future__ import annotations

import errno
import subprocess
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from tests.listed import needs_lists
from tests.prog.kernel.harness_cgroups import new_cgroup
from tests.prog.socket.harness import BACKENDS, PORT, VIP, Child, Servers

from towpath import KernelError, Limits, SocketLoadBalancer
from towpath.kernel.bpf import bpffs
from towpath.kernel.bpf.attach_types import AttachType
from towpath.kernel.bpf.attached import Inventory
from towpath.kernel.net.netns import new_netns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMITS = Limits(
    services=64, backends=256, flows=1024, nat_flows=1024, fragments=128, clients=1024,
    table_slots=65536,
)  # fmt: skip


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of the test's own, in a namespace with servers."""
    lines = ["link set lo up", *(f"addr add {each}/32 dev lo" for each in BACKENDS)]
    with new_netns(), new_cgroup() as path:
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
        with Servers(BACKENDS):
            yield path


@pytest.fixture
def pins() -> Iterator[Path]:
    """A directory for pins that goes with the test."""
    path = bpffs.ensure_bpffs() / "towpath-socket-script"
    yield path
    bpffs.remove_pins(path)


@needs_lists
def test_a_script_balances_a_cgroup(cgroup: Path) -> None:
    """Services and backends as LoadBalancer has them; nothing is left of it."""
    with SocketLoadBalancer(cgroup, limits=LIMITS) as lb, Child(cgroup) as child:
        lb.add_service("web", vip=VIP, port=PORT, backends=BACKENDS[:2], table_size=251)
        came = {tuple(child.run(f"tcp('{VIP}', {PORT})")[1]) for _ in range(20)}
        assert came == {(VIP, PORT)}
        assert lb.socket().counters.verdicts["connect"]["balanced"] == 20
        lb.remove_backend("web", BACKENDS[0])
        assert {child.run(f"tcp('{VIP}', {PORT})")[0] for _ in range(10)} == {BACKENDS[1]}
        assert lb.socket_trace(ip_address(VIP), PORT).backend == ip_address(BACKENDS[1])
        assert lb.follow() == ()
    assert Inventory().cgroup(cgroup, AttachType.CGROUP_INET4_CONNECT) == []


@needs_lists
def test_sockets_move_with_their_backend(cgroup: Path) -> None:
    """At once: within the change."""
    with SocketLoadBalancer(cgroup, limits=LIMITS) as lb, Child(cgroup) as child:
        lb.add_service(
            "dns", vip=VIP, port=PORT, protocol="udp", backends=BACKENDS[:1], table_size=251
        )
        child.run("make('u', AF_INET, SOCK_DGRAM)")
        child.run(f"S['u'].connect(('{VIP}', {PORT}))")
        (flow,) = lb.socket_flows(service="dns")
        assert (str(flow.backend), flow.connected) == (BACKENDS[0], True)
        lb.set_backends("dns", BACKENDS[1:2])
        assert child.run("S['u'].getsockopt(SOL_SOCKET, SO_ERROR)") == errno.ECONNABORTED
        assert lb.socket().stale.ended == 1


def test_pins_keep_it(cgroup: Path, pins: Path) -> None:
    """The next one takes it over, and detaches it."""
    with SocketLoadBalancer(cgroup, limits=LIMITS, pins=pins) as lb:
        lb.add_service("web", vip=VIP, port=PORT, backends=BACKENDS[:2], table_size=251)
    with Child(cgroup) as child:
        assert child.run(f"tcp('{VIP}', {PORT})")[1] == [VIP, PORT]
        with SocketLoadBalancer(cgroup, limits=LIMITS, pins=pins) as lb:
            assert lb.socket().counters.verdicts["connect"]["balanced"] == 1
            lb.detach()
        assert "errno" in child.run(f"tcp('{VIP}', {PORT})")
    assert not pins.exists()


def test_what_is_no_cgroup_is_told(tmp_path: Path) -> None:
    """And where those are."""
    with pytest.raises(KernelError, match=f"open cgroup {tmp_path}: .* it is no cgroup; those are"):
        SocketLoadBalancer(tmp_path, limits=LIMITS)
