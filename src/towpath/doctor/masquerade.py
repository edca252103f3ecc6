# SPDX-License-Identifier: Apache-2.0
"""What masquerade needs of a kernel, and of the node that it is on."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from towpath.doctor.capability import Answer, no, yes
from towpath.doctor.probes import Probe
from towpath.doctor.rules import Rule, Way
from towpath.kernel.net.netfilter import forward_chains
from towpath.kernel.net.xfrm import policies

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.model.masquerade import Section

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_MASQUERADE = "masquerade"


def rules(section: Section | None) -> Iterator[Rule]:
    """What a section needs; None: what any needs."""
    tc = (Way("tcx"), Way("clsact", "a process that is killed leaves its filters behind"))
    loses = "pods' packets leave as they are"
    yield Rule("programs at both sides of tc", tc, _MASQUERADE, loses, required=True)
    yield Rule(
        "source of a route",
        (Way("fib_source"), Way("clsact", "it is read from the routes, whatever rules choose")),
        _MASQUERADE,
        "packets leave from the first address of the device",
    )
    if section is None:
        return
    first, last = section.ports
    yield Rule(
        "ports apart from sockets'",
        (Way(f"masquerade_ports:{first}-{last}"),),
        _MASQUERADE,
        "sockets of the node have ports of the range, which no flow gets then",
    )
    if not section.through_stack:
        yield Rule(
            "no rules of netfilter that are bypassed",
            (Way("masquerade_netfilter:forward"),),
            _MASQUERADE,
            "they don't see what pods send out, and what is answered; through_stack: true has it",
        )
        prefixes = ",".join(map(str, section.prefixes))
        yield Rule(
            "no policies of IPsec that are bypassed",
            (Way(f"masquerade_xfrm:{prefixes}"),),
            _MASQUERADE,
            "what pods send leaves unencrypted; through_stack: true has them apply",
        )


def _ports(text: str) -> Answer:
    first, last = (int(each) for each in text.split("-"))
    try:
        low, high = (int(each) for each in _RANGE.read_text(encoding="ascii").split())
    except (OSError, ValueError) as error:
        return Answer(None, str(error))
    told = f"net.ipv4.ip_local_port_range is {low} to {high}"
    return no(told) if low <= last and first <= high else yes(told)


def _netfilter(_: str) -> Answer:
    chains = forward_chains()
    if chains is None:
        return Answer(None, "nft doesn't tell")
    return no(", ".join(map(str, chains))) if chains else yes("there are none")


def _xfrm(prefixes: str) -> Answer:
    found = policies()
    if found is None:
        return Answer(None, "the kernel doesn't tell")
    pods = [ip_network(each) for each in prefixes.split(",")]
    held = [str(each) for each in found if each.concerns(pods)]
    return no(", ".join(held)) if held else yes("there are none for pods")


PROBES = {
    "masquerade_ports": Probe(_ports, "nothing"),
    "masquerade_netfilter": Probe(_netfilter, "nothing"),
    "masquerade_xfrm": Probe(_xfrm, "nothing"),
}
