# SPDX-License-Identifier: Apache-2.0
"""Policies of IPsec are read as iproute2 has made them."""

from __future__ import annotations

import subprocess
from ipaddress import ip_network

from towpath.kernel.net.netns import in_netns, new_netns
from towpath.kernel.net.xfrm import Policy, policies

PODS = (ip_network("10.244.0.0/24"), ip_network("fd00:1::/64"))
OUT = "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode tunnel"
BACK = "tmpl src 192.0.2.2 dst 192.0.2.1 proto esp mode tunnel"
MADE = f"""
xfrm policy add src 10.244.0.0/16 dst 10.5.0.0/16 dir out {OUT}
xfrm policy add src 10.5.0.0/16 dst 10.244.0.0/16 dir fwd {BACK}
xfrm policy add src 10.5.0.0/16 dst 10.244.0.0/16 dir in {BACK}
xfrm policy add src fd00:1::/48 dst ::/0 dir out action block
xfrm policy add src 10.9.0.0/16 dst 10.244.0.0/16 dir out action block
"""


def test_policies() -> None:
    """Both families, in all directions; those that pods' packets would be held to."""
    with new_netns() as netns, in_netns(netns):
        assert policies() == ()
        subprocess.run(["ip", "-batch", "-"], input=MADE, text=True, check=True)
        found = policies()
    assert found is not None
    wide, far, v6 = (ip_network(each) for each in ("10.244.0.0/16", "10.5.0.0/16", "fd00:1::/48"))
    concerned = {
        Policy(wide, far, "out"),
        Policy(far, wide, "fwd"),
        Policy(v6, ip_network("::/0"), "out"),
    }
    others = {Policy(far, wide, "in"), Policy(ip_network("10.9.0.0/16"), wide, "out")}
    assert set(found) == concerned | others
    assert {each for each in found if each.concerns(PODS)} == concerned
    assert str(Policy(wide, far, "out")) == "out 10.244.0.0/16 to 10.5.0.0/16"
