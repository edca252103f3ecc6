# SPDX-License-Identifier: Apache-2.0
"""The node's own address in the place of an unspecified one, as its devices have it."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from tests.prog.kernel.conftest import ip as ip_

from towpath.datapath.errors import DatapathError
from towpath.datapath.snat.own import resolved
from towpath.kernel.errors import KernelError
from towpath.kernel.net.netns import new_netns
from towpath.model import Snat

OWN = Snat(ipv4=(ip_address("0.0.0.0"),), ipv6=(ip_address("::"),))  # type: ignore[arg-type]
ADDRESSES = (
    ("2001:db8::3/64", "nodad", "preferred_lft", "0"),  # deprecated, and first
    ("192.0.2.1/24",),
    ("192.0.2.2/24",),  # beside the first one
    ("198.51.100.1/32",),  # such as a VIP
    ("2001:db8::1/64", "nodad"),
    ("2001:db8::2/64", "nodad"),  # added later: what the node itself prefers to send from
)


def ip(*words: str) -> None:
    """Run it, word by word."""
    ip_(" ".join(words))


def test_it_is_the_one_that_was_given_first() -> None:
    """Of those that stay: it is the same one at the next start, whatever has been added since."""
    with new_netns():
        ip("link", "add", "one", "type", "veth", "peer", "name", "two")
        for device in ("one", "two"):
            ip("link", "set", device, "up")
        ip("addr", "add", "203.0.113.1/24", "dev", "two")
        for words in ADDRESSES:
            ip("addr", "add", *words, "dev", "one")
        found = resolved(OWN, ["one", "two"])
        assert (found.ipv4, found.ipv6) == (
            (ip_address("192.0.2.1"),),
            (ip_address("2001:db8::1"),),
        )
        assert resolved(OWN, ["two", "one"]).ipv4 == (ip_address("203.0.113.1"),)


def test_others_stay_as_they_are() -> None:
    """No device is asked then."""
    snat = Snat(ipv4=(ip_address("192.0.2.9"),))  # type: ignore[arg-type]
    assert resolved(snat, ["nothing"]) is snat


def test_there_has_to_be_one() -> None:
    """Of that family, at the devices that there are."""
    with new_netns():
        ip("link", "add", "one", "type", "veth", "peer", "name", "two")
        ip("addr", "add", "192.0.2.1/24", "dev", "one")
        ip("link", "set", "one", "up")
        with pytest.raises(DatapathError, match=r"snat\.ipv6 .* one has none of IPv6"):
            resolved(OWN, ["one"])
        with pytest.raises(KernelError, match="no such device: three"):
            resolved(OWN, ["three"])
