# SPDX-License-Identifier: Apache-2.0
"""Which devices lead to an address, and who shapes there, as the kernel tells."""

from __future__ import annotations

import subprocess
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from towpath.datapath.bandwidth import ends
from towpath.datapath.bandwidth.ends import Ends
from towpath.kernel.net import link_state
from towpath.kernel.net.netns import in_netns, new_netns
from towpath.kernel.net.shapers import Shaped, shaped

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST, SIXTH, SECOND = map(ip_address, ("10.244.0.5", "fd00::5", "10.244.0.6"))
POD = "tpends"


def ip(*words: str) -> None:
    """Run it."""
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def node() -> Iterator[None]:
    """A namespace with a bridge, whose port leads to a pod's namespace."""
    with new_netns():
        ip("netns", "add", POD)
        try:
            ip("link", "add", "cni0", "type", "bridge")
            ip("link", "add", "veth1", "type", "veth", "peer", "name", "eth0", "netns", POD)
            ip("link", "set", "veth1", "master", "cni0")
            # A pair within the node leads nowhere.
            ip("link", "add", "here0", "type", "veth", "peer", "name", "here1")
            yield
        finally:
            ip("netns", "del", POD)


def index(name: str) -> int:
    """Of a device."""
    return next(i for i, each in link_state.devices().items() if each.name == name)


def inside(*words: str) -> None:
    """Run ip in the pod."""
    ip("-n", POD, *words)


def find(made: Ends, *wanted: object) -> dict[str, list[int]]:
    """Devices by address, as text."""
    found = made.find(wanted, link_state.devices())  # type: ignore[arg-type]
    return {str(address): each for address, each in found.items()}


@pytest.mark.usefixtures("node")
def test_an_address_at_the_other_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of either family, though the route would lead to the bridge; as soon as it is looked for."""
    monkeypatch.setattr(ends, "AGAIN_SECONDS", 0.0)
    made = Ends()
    assert find(made, FIRST) == {}
    inside("addr", "add", f"{FIRST}/24", "dev", "eth0")
    inside("addr", "add", f"{SIXTH}/64", "dev", "eth0", "nodad")
    at = [index("veth1")]
    assert find(made, FIRST, SIXTH, SECOND) == {str(FIRST): at, str(SIXTH): at}
    ip("link", "del", "veth1")
    assert find(made, FIRST, SIXTH) == {}


@pytest.mark.usefixtures("node")
def test_all_devices_of_a_pod() -> None:
    """Each that leads to its namespace, whichever has the address."""
    inside("addr", "add", f"{FIRST}/24", "dev", "eth0")
    ip("link", "add", "veth2", "type", "veth", "peer", "name", "net1", "netns", POD)
    assert find(Ends(), FIRST) == {str(FIRST): sorted([index("veth1"), index("veth2")])}


@pytest.mark.usefixtures("node")
def test_addresses_of_the_node_lead_nowhere() -> None:
    """Nor of a pair whose two ends are here."""
    ip("addr", "add", f"{FIRST}/24", "dev", "here1")
    assert find(Ends(), FIRST) == {}


@pytest.mark.usefixtures("node")
def test_netkit() -> None:
    """As veth, where the kernel has it."""
    ip("link", "del", "veth1")
    made = ["ip", "link", "add", "outside", "type", "netkit"]
    if subprocess.run(made, capture_output=True, check=False).returncode:
        pytest.skip("this kernel has no netkit")
    # The other end has the name that the kernel gives it.
    ip("link", "set", "nk0", "netns", POD)
    inside("addr", "add", f"{SECOND}/32", "dev", "nk0")
    assert find(Ends(), SECOND) == {str(SECOND): [index("outside")]}


@pytest.mark.usefixtures("node")
def test_the_bandwidth_plugin_is_seen() -> None:
    """Tbf on the device, and on the one that what comes in is redirected to."""

    def tc(*words: str) -> None:
        subprocess.run(["tc", *words], check=True)

    device = index("veth1")
    assert shaped([device]) == {}
    tbf = ("handle", "1:", "tbf", "rate", "2mbit", "burst", "32k", "latency", "25ms")
    tc("qdisc", "add", "dev", "veth1", "root", *tbf)
    assert shaped([device]) == {device: Shaped(egress="tbf of 2000000 bit/s")}
    ip("link", "add", "bwpifb", "type", "ifb")
    tc("qdisc", "add", "dev", "veth1", "ingress")
    everything = ("protocol", "all", "u32", "match", "u32", "0", "0")
    redirected = ("action", "mirred", "egress", "redirect", "dev", "bwpifb")
    tc("filter", "add", "dev", "veth1", "parent", "ffff:", *everything, *redirected)
    assert shaped([device]) == {device: Shaped(egress="tbf of 2000000 bit/s")}
    tc("qdisc", "add", "dev", "bwpifb", "root", *tbf)
    both = Shaped("tbf of 2000000 bit/s", "tbf of 2000000 bit/s")
    assert shaped([device, index("here0")]) == {device: both}


@pytest.mark.usefixtures("node")
def test_no_namespace_has_to_be_entered() -> None:
    """Another thread's own is not moved, and its addresses aren't taken for a pod's."""
    with in_netns(POD):
        assert find(Ends(), FIRST) == {}
