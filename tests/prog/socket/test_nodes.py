# SPDX-License-Identifier: Apache-2.0
"""Two nodes on one machine, as KIND makes them: each one's pods reach its own services."""

from __future__ import annotations

import subprocess

import pytest
from tests.prog.cgroup.harness_nodes import NODES, node
from tests.prog.kernel.harness_cgroups import new_cgroup
from tests.prog.socket.harness import BACKENDS, PORT, VIP, Child, Servers

from towpath.kernel.net.netns import new_netns


@pytest.mark.thorough
def test_services_are_those_of_the_pods_own_node() -> None:
    """One VIP, with another backend in each node; outside of both it is nobody's."""
    lines = ["link set lo up", *(f"addr add {each}/32 dev lo" for each in BACKENDS[:2])]
    with new_netns(), new_cgroup() as cgroup:
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
        with (
            Servers(BACKENDS[:2]),
            node(cgroup / NODES[0]) as one,
            node(cgroup / NODES[1]) as other,
        ):
            nodes = [one, other]
            for each, backend in zip(nodes, BACKENDS, strict=False):
                told = each.ask(f"balance {VIP} {backend}")
                assert told == {"cgroup": "/sys/fs/cgroup", "proven": True}
            for count in (1, 2):
                for each, backend in zip(nodes, BACKENDS, strict=False):
                    pod = each.path / "kubelet" / "kubepods" / "pod1"
                    pod.mkdir(parents=True, exist_ok=True)
                    with Child(pod) as child:
                        assert child.run(f"tcp('{VIP}', {PORT})") == [backend, [VIP, PORT]]
                    assert each.ask("balanced") == count
            with Child(cgroup) as outside:
                assert "errno" in outside.run(f"tcp('{VIP}', {PORT})")
            assert [each.ask("balanced") for each in nodes] == [2, 2]
