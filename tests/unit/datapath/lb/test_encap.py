# SPDX-License-Identifier: Apache-2.0
"""Kinds of tunnels in words, and what follows from one of UDP."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
import pytest
from tests.unit.datapath.harness_memory import ENCAPS
from tests.unit.datapath.harness_program import BTF

from towpath.core.lb.options import Options
from towpath.datapath.decap.addresses import DecapError, between
from towpath.datapath.lb.unwrap import unwrap_constants
from towpath.datapath.lb.ways_by_flow import WaysByFlow
from towpath.datapath.neigh.differences import Differences
from towpath.model import Source, Unwrap
from towpath.model.service import Encap, Tunnel

SEVERAL = (Differences(backends=True), Differences())


@pytest.mark.parametrize(
    ("encap", "port", "length"),
    [
        ("ipip", None, 0),
        ("gre", None, 4),
        ("fou", 5555, 8),
        ("gue", 6080, 8),
        ("gue0", 65535, 12),
    ],
)
def test_a_word_says_it_all(encap: Encap, port: int | None, length: int) -> None:
    """Kind and port come back, and the program reads the bytes in between off it."""
    word = ENCAPS.word(Tunnel(encap, port))
    assert ENCAPS.tunnel(word) == (encap, port)
    assert word & int(BTF.enum("encap_kind")["ENCAP_LENGTH"]) == length
    assert word < 1 << 32


def test_a_kind_that_is_not_known_is_none() -> None:
    """Of a later version, which this one can't send by."""
    assert ENCAPS.tunnel(3).encap == "ipip"


def test_ways_are_asked_for_by_flow_once_there_is_udp() -> None:
    """Whichever comes first, the tunnels or the routes; and for good."""
    for first in ("routes", "tunnels"):
        masks = np.zeros(1, BTF.dtype("ways"))
        ways = WaysByFlow(masks, Source())
        ways.notice([Options(), Options(encap="gre")])
        if first == "routes":
            ways.tell(SEVERAL)
            assert not masks["v4"]["tunnel"][0]
        ways.notice([Options(encap="gue", encap_port=6080)])
        if first == "tunnels":
            assert not masks["v4"]["tunnel"][0]
            ways.tell(SEVERAL)
        assert masks["v4"]["tunnel"][0] == 0xFFFFFFFF
        assert not masks["v6"]["tunnel"][0]
        ways.notice([Options()])
        assert masks["v4"]["tunnel"][0]


def test_what_decap_is_told() -> None:
    """Ports once each, in network byte order, and room for four."""
    told = between(gre=True, udp_ports=[6080, 5555, 6080])
    assert (told["takes_gre"], told["takes_udp"]) == (True, True)
    assert told["udp_ports"].tobytes() == bytes.fromhex("17c0 15b3 0000 0000")
    assert not between(gre=False, udp_ports=())["takes_udp"]
    for ports, why in (((0,), "udp port 0: allowed: 1 to"), (range(1, 6), "allowed: 4 at most")):
        with pytest.raises(DecapError, match=why):
            between(gre=False, udp_ports=ports)


def test_what_the_load_balancer_is_told_of_tunnels() -> None:
    """Nothing of kinds where none ends."""
    ends = (ip_address("192.0.2.1"),)
    none = unwrap_constants(Unwrap())
    assert not any(none[name] for name in ("unwraps", "takes_gre", "takes_udp"))
    plain = unwrap_constants(Unwrap(ends, gre=True))
    assert (plain["unwraps"], plain["takes_gre"], plain["takes_udp"]) == (True, True, False)
    udp = unwrap_constants(Unwrap(ends, udp_ports=(6080,)))
    assert (udp["takes_udp"], udp["takes_gre"]) == (True, False)
