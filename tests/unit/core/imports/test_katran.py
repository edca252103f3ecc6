# SPDX-License-Identifier: Apache-2.0
"""Scripts of katran_goclient, and what it lists."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from tests.unit.core.imports.harness_imports import (
    beside,
    katran,
    only,
    refused,
    said,
)

from towpath.core.imports.imported import NoteKind
from towpath.model import Affinity, Protocol
from towpath.model.kinds import ANY_PORT
from towpath.model.quic import Quic

SCRIPT = """\
#!/bin/sh
set -e
# the web
./katran_goclient -A -t 203.0.113.10:443
./katran_goclient -a -t 203.0.113.10:443 -r 192.0.2.11 -w 3
sudo ./katran_goclient -a -t 203.0.113.10:443 \\
    -r 2001:db8:1::12

+ katran_goclient -server 127.0.0.1:50051 -A -u [2001:db8::10]:53
katran_goclient --a --u=[2001:db8::10]:53 --r=2001:db8:1::11 -w=0
"""


def weights(text: str) -> dict[str, int]:
    """Backends of the one service that comes of a text."""
    return {str(each.address): each.weight for each in only(katran(text)).backends}


def test_a_script() -> None:
    """All goes through tunnels; flows of UDP end after half a minute, as there."""
    imported = katran(SCRIPT)
    web, dns = imported.services
    assert (web.name, web.forwarding, web.flow_timeout) == ("tcp-203.0.113.10-443", "dsr", None)
    assert [(str(each.address), each.weight) for each in web.backends] == [
        ("192.0.2.11", 3),
        ("2001:db8:1::12", 1),
    ]
    assert (str(dns.vip), dns.protocol, dns.flow_timeout) == ("2001:db8::10", Protocol.UDP, 30)
    assert [each.weight for each in dns.backends] == [0]
    assert said(imported, NoteKind.DIFFERS) == ["4: outer source address"]


def test_commands_in_their_order() -> None:
    """What is there in the end counts."""
    text = """\
katran_goclient -A -t 203.0.113.9:80
katran_goclient -C
katran_goclient -A -t 203.0.113.10:80 -vf NO_LRU
katran_goclient -E -t 203.0.113.10:80 -vf NO_SPORT
katran_goclient -E -t 203.0.113.10:80 -vf NO_LRU -unset
katran_goclient -a -t 203.0.113.10:80 -r 192.0.2.11
katran_goclient -a -t 203.0.113.10:80 -r 192.0.2.12 -w 5
katran_goclient -e -t 203.0.113.10:80 -r 192.0.2.11 -w 7
katran_goclient -d -t 203.0.113.10:80 -r 192.0.2.12
katran_goclient -A -u 203.0.113.10:80
katran_goclient -D -u 203.0.113.10:80
katran_goclient -s -lru
katran_goclient -l
"""
    found = only(katran(text))
    assert weights(text) == {"192.0.2.11": 7}
    assert (found.flow_table, found.affinity) == (True, Affinity())


@pytest.mark.parametrize(
    ("flag", "field", "value", "notes"),
    [
        ("NO_LRU", "flow_table", False, []),
        ("NO_SPORT", "affinity", Affinity(), ["1: NO_SPORT"]),
        ("QUIC_VIP", "quic", Quic("katran"), ["1: QUIC_VIP"]),
        ("LOCAL_VIP", "affinity", None, ["1: LOCAL_VIP"]),
    ],
)
def test_flags(flag: str, field: str, value: object, notes: list[str]) -> None:
    """What each comes to, and what it doesn't."""
    imported = katran(f"katran_goclient -A -u 203.0.113.10:443 -vf {flag}")
    assert getattr(only(imported), field) == value
    assert beside(imported) == notes


def test_flows_of_a_destination_port() -> None:
    """Go to one backend, whoever sends them: that goes before a client's."""
    given = "katran_goclient -A -u 203.0.113.10:0 -vf DPORT_HASH"
    listed = "VIP: 203.0.113.10 Port: 0 Protocol: udp\nVip's flags: NO_SPORT DPORT_HASH"
    for imported in map(katran, (given, listed)):
        assert (only(imported).hash_by, only(imported).affinity) == ("port", None)
        assert beside(imported) == []


def test_a_real_on_this_host() -> None:
    """Is a local backend, if the VIP may have such."""
    local = (
        "katran_goclient -A -t 203.0.113.10:80 -vf LOCAL_VIP\n"
        "katran_goclient -a -t 203.0.113.10:80 -r 192.0.2.11 -rf LOCAL_REAL\n"
        "katran_goclient -a -t 203.0.113.10:80 -r 192.0.2.12\n"
    )
    imported = katran(local)
    assert [each.local for each in only(imported).backends] == [True, False]
    assert beside(imported) == []
    imported = katran(local.replace(" -vf LOCAL_VIP", ""))
    assert [each.local for each in only(imported).backends] == [False, False]
    assert beside(imported) == ["2: LOCAL_REAL of 192.0.2.11"]


def test_any_port() -> None:
    """Is noted: there the port isn't hashed."""
    imported = katran("katran_goclient -A -t 203.0.113.10:0")
    assert only(imported).port == ANY_PORT
    assert beside(imported) == ["1: port 0"]
    assert beside(katran("katran_goclient -A -t 203.0.113.10:0 -vf NO_SPORT")) == ["1: NO_SPORT"]


def test_what_services_have_not() -> None:
    """Is told with its line."""
    text = """\
katran_goclient -new_hc 192.0.2.11 -somark 1000
katran_goclient -change_mac 02:00:00:00:00:01
"""
    assert said(katran(text), NoteKind.ELSEWHERE) == [
        "1: -new_hc",
        "2: -change_mac",
    ]


QUIC_SCRIPT = """\
katran_goclient -A -u 203.0.113.10:443 -vf QUIC_VIP
katran_goclient -a -u 203.0.113.10:443 -r 192.0.2.11
katran_goclient -a -u 203.0.113.10:443 -r 192.0.2.12
katran_goclient -quic_mapping 192.0.2.11=7
katran_goclient -quic_mapping 192.0.2.12=8
katran_goclient -quic_mapping 192.0.2.11=9
katran_goclient -quic_mapping 192.0.2.99=10
katran_goclient -quic_mapping 192.0.2.12=11
katran_goclient -quic_mapping 192.0.2.12=11 -del_qm
katran_goclient -quic_mapping 192.0.2.11=8 -del_qm
"""
QUIC_LISTING = """\
VIP:         203.0.113.10 Port:    443 Protocol: udp
Vip's flags:  QUIC_VIP 
 ->192.0.2.11        weight: 1 flags: 
 ->192.0.2.12        weight: 1 flags: 
printing address to quic's connection id mapping
real:           192.0.2.11 = connection id:      9
real:           192.0.2.11 = connection id:      7
real:           192.0.2.12 = connection id:      8
exiting
"""  # noqa: W291 - as it is printed


def test_ids_in_connection_ids() -> None:
    """Are backends' own, several of them too; who isn't the VIP's is noted."""
    imported = katran(QUIC_SCRIPT)
    assert [each.server_id for each in only(imported).backends] == [(7, 9), (8,)]
    assert only(imported).quic == Quic("katran")
    assert beside(imported) == ["7: connection id 10"]
    imported = katran(QUIC_LISTING)
    assert [each.server_id for each in only(imported).backends] == [(7, 9), (8,)]
    assert beside(imported) == []
    more = [f"katran_goclient -quic_mapping 192.0.2.11={n}" for n in range(100, 164)]
    imported = katran("\n".join([QUIC_SCRIPT, *more]))
    assert only(imported).backends[0].server_id == (7, 9, *range(100, 162))
    assert beside(imported)[1:] == ["74: connection id 162", "75: connection id 163"]
    imported = katran(QUIC_SCRIPT.replace("-u ", "-t "))
    assert only(imported).quic is None
    assert beside(imported) == ["1: QUIC_VIP"]


LISTING = """\
2030/01/02 03:04:05 vips len 2
VIP:         203.0.113.10 Port:    443 Protocol: tcp
Vip's flags:  NO_SPORT  NO_LRU 
 ->192.0.2.11        weight: 3 flags: 
 ->2001:db8:1::12    weight: 1 flags:  LOCAL_REAL 
VIP:         2001:db8::10 Port:      0 Protocol: udp
Vip's flags: 
-> 2001:db8:1::11 weight 0
exiting
"""  # noqa: W291 - as it is printed


def test_a_listing() -> None:
    """The same as a script's; of two versions."""
    imported = katran(LISTING)
    web, any_ = imported.services
    assert (str(web.key), web.flow_table, web.affinity) == (
        "203.0.113.10:443/tcp",
        False,
        Affinity(),
    )
    assert [(each.address, each.weight) for each in web.backends] == [
        (ip_address("192.0.2.11"), 3),
        (ip_address("2001:db8:1::12"), 1),
    ]
    assert (str(any_.key), any_.backends[0].weight) == ("[2001:db8::10]:any/udp", 0)
    assert beside(imported) == ["3: NO_SPORT", "5: LOCAL_REAL of 2001:db8:1::12", "6: port 0"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("ipvsadm -C", "setup.sh:1: 'ipvsadm' is not katran_goclient; allowed: commands of"),
        ("for i in 1 2; do", "'for' is not katran_goclient"),
        ("katran_goclient -X", "'-X' is no option of katran_goclient; allowed: -A, -E"),
        ("katran_goclient -A -t", "-t has no value"),
        ("katran_goclient -quic_mapping 192.0.2.11", "'192.0.2.11' is no mapping; allowed: ADDR"),
        ("katran_goclient -quic_mapping 192.0.2.11=0", "id '0' is not one; allowed: 1 to 21474"),
        ("katran_goclient -A", "'' is no VIP; allowed: -t or -u ADDRESS:PORT"),
        ("katran_goclient -A -t 203.0.113.10", "'203.0.113.10' is no VIP"),
        ("katran_goclient -A -t $VIP:80", "-t '$VIP' is not an address"),
        (
            "katran_goclient -A -t 203.0.113.10:http",
            "port 'http' is not a number; allowed: 0 to 65535",
        ),
        (
            "katran_goclient -A -t 203.0.113.10:80 -vf NO_PORT",
            "'NO_PORT' is not known; allowed: NO_SPORT, NO_LRU",
        ),
        (
            "katran_goclient -D -t 203.0.113.10:80",
            "there is no VIP 203.0.113.10:80/tcp before this line",
        ),
        ("\n\nkatran_goclient -a -t 203.0.113.10:80 -r x", "setup.sh:3: there is no VIP"),
        ("katran_goclient -A -t '203.0.113.10:80", "No closing quotation"),
        ("VIP: 203.0.113.10 Port: 80 Protocol: tcp\n->web1 weight: 1", "setup.sh:2: real 'web1'"),
        (
            "VIP: 203.0.113.10 Port: 80 Protocol: tcp\nnonsense",
            "setup.sh:2: not a line of the listing",
        ),
        ("Vip's flags: NO_LRU", "setup.sh:1: not a line of the listing"),
        ("VIP: 203.0.113.10 Port: 80 Protocol: tcp\nVip's flags: FOO", "setup.sh:2: flag 'FOO'"),
    ],
)
def test_what_is_refused(text: str, what: str) -> None:
    """With its line, and what is allowed."""
    (problem,) = refused(katran, text)
    assert what in problem


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ("-A -t 203.0.113.10:80", "is there already, since line 1"),
        ("-a -t 203.0.113.10:80 -r web1", "-r 'web1' is not an address"),
        ("-a -t 203.0.113.10:80 -r 192.0.2.11 -w -1", "-w '-1' is not a number"),
        ("-a -t 203.0.113.10:80 -r 192.0.2.11 -rf X", "flag 'X' is not known; allowed: LOCAL_REAL"),
        (
            "-d -t 203.0.113.10:80 -r 192.0.2.11",
            "is no real of 203.0.113.10:80/tcp before this line; it has: none",
        ),
    ],
)
def test_what_is_refused_of_a_second_command(more: str, what: str) -> None:
    """It depends on the first."""
    (problem,) = refused(katran, f"katran_goclient -A -t 203.0.113.10:80\nkatran_goclient {more}")
    assert problem.startswith("setup.sh:2: ")
    assert what in problem
