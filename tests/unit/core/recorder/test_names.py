# SPDX-License-Identifier: Apache-2.0
"""Names of addresses in a capture's file: what they are, that Wireshark shows them, and when."""

from __future__ import annotations

import subprocess
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from tests.read_pcapng import read
from tests.unit.native.test_records import Sent, reading

from towpath.core.recorder.names import MOST_NAMES, backend_name, names
from towpath.core.recorder.pcapng import (
    Interface,
    Section,
    interface_block,
    names_block,
    section_header,
)

if TYPE_CHECKING:
    from pathlib import Path

VIP, VIP6 = ip_address("203.0.113.10"), ip_address("2001:db8::10")
BACKEND, BACKEND6 = ip_address("192.0.2.11"), ip_address("2001:db8:1::11")
POD = "web-6d4b75cb6d-hx2vq.default"


def test_vips_are_called_by_their_services_and_backends_by_their_own_names() -> None:
    """All services of a VIP, in one order; a prefix isn't called anything."""
    found = names(VIP, ["web-tls", "web"], BACKEND, POD)
    assert found == {VIP: ("web", "web-tls"), BACKEND: (POD,)}
    assert names(ip_network("203.0.113.0/24"), ["web"], None, "") == {}
    assert names(VIP, ["web"], VIP, POD) == {VIP: ("web",)}
    assert len(names(VIP, map(str, range(100)), None, "")[VIP]) == MOST_NAMES


def test_a_backend_without_a_name_is_called_by_its_address_and_service() -> None:
    """As Kubernetes' DNS has it; a name begins and ends with what a name may."""
    assert backend_name(BACKEND, "web") == "192-0-2-11.web"
    assert backend_name(ip_address("fd00::"), "web") == "fd00.web"
    assert backend_name(BACKEND6, "web") == "2001-db8-1--11.web"


def test_a_block_has_what_the_format_wants() -> None:
    """Both families, several names, none longer than Wireshark takes, none with an end in it."""
    wanted = {VIP: ("a", "bcd"), BACKEND6: ("x" * 300,), BACKEND: ("a\0b",)}
    found = read(section_header(system="s", application="a") + names_block(wanted))
    assert found.names == {
        str(VIP): ("a", "bcd"),
        str(BACKEND6): ("x" * 255,),
        str(BACKEND): ("ab",),
    }


def test_only_what_is_new_is_said() -> None:
    """A name once, again when it is another one; of several addresses those that have changed."""
    section = Section(section_header(system="s", application="a"))
    section.name({VIP: ("web",), BACKEND: ("one",)})
    assert section.pending() == section_header(system="s", application="a")
    section.add(Interface("eth0-in", "d", 64))
    assert section.pending().startswith(interface_block(section.interfaces[0]))
    section.name({VIP: ("web",), BACKEND: ("one",)})
    assert section.pending() == b""
    section.name({VIP: ("other",), BACKEND: ("other",)})
    section.pending()
    section.name({VIP: ("web",), BACKEND: ("one",)})
    assert section.pending() == names_block({VIP: ("web",), BACKEND: ("one",)})
    section.name({VIP: ("web",), BACKEND: ("two",), BACKEND6: ()})
    assert section.pending() == names_block({BACKEND: ("two",)})
    section.name({VIP: ("web",)})
    assert section.pending() == b""


def test_wireshark_shows_them(tmp_path: Path) -> None:
    """For both families, from the file alone; of several names the last one. It can be copied."""
    made = reading()
    for inner in (IP(src=str(BACKEND), dst=str(VIP)), IPv6(src=str(BACKEND6), dst=str(VIP6))):
        made.ring.put(Sent(bytes(Ether(dst="02:00:00:00:00:01") / inner / TCP())).record())
    made.section.name(
        {VIP: ("web", "web-tls"), VIP6: ("web6",), BACKEND: (POD,), BACKEND6: ("b6",)}
    )
    path, copy = tmp_path / "file.pcapng", tmp_path / "copy.pcapng"
    path.write_bytes(made.section.pending() + made.take())
    assert read(path.read_bytes()).named[0][0] == 0
    assert shown(path) == [[POD, "web-tls"], ["b6", "web6"]]
    subprocess.run(["mergecap", "-w", str(copy), str(path)], check=True)
    assert len(shown(copy)) == 2
    subprocess.run(["editcap", str(path), str(copy)], check=True)
    assert len(shown(copy)) == 2


def shown(path: Path) -> list[list[str]]:
    """Who sent each packet to whom, as tshark says."""
    names = [f"{family}.{end}_host" for end in ("src", "dst") for family in ("ip", "ipv6")]
    fields = [word for name in names for word in ("-e", name)]
    command = ["tshark", "-N", "n", "-r", str(path), "-T", "fields", *fields]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split() for line in made.stdout.splitlines()]
