# SPDX-License-Identifier: Apache-2.0
"""keepalived.conf: virtual servers, groups, what is beside them, and what is refused."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from tests.unit.core.imports.harness_imports import (
    beside,
    keepalived,
    left_out,
    only,
    refused,
    said,
)

from towpath.core.imports.imported import NoteKind
from towpath.model import Affinity, Protocol
from towpath.model.kinds import ANY_PORT

WEB = """\
! Two web servers behind one address.
global_defs {
    notification_email { ops@example.org }
    router_id lb1          # of this host
}

vrrp_instance VI_1 {
    state MASTER
    interface eth0
    virtual_router_id 51
    virtual_ipaddress {
        203.0.113.10/24 dev eth0
    }
}

virtual_server 203.0.113.10 80 {
    delay_loop 6
    lvs_sched wrr
    lvs_method DR
    protocol TCP
    real_server 192.0.2.11 80 {
        weight 3
    }
    real_server 192.0.2.12 80 { weight 1 }
}
"""


def virtual(body: str, whom: str = "203.0.113.10 80") -> str:
    """A virtual server of TCP with one real server, and something more."""
    return f"virtual_server {whom} {{\nprotocol TCP\n{body}\nreal_server 192.0.2.11 80 {{\n}}\n}}\n"


def test_a_whole_file() -> None:
    """Its virtual server, and what does the rest instead: once for each block."""
    imported = keepalived(WEB)
    found = only(imported)
    assert (found.name, found.forwarding) == ("tcp-203.0.113.10-80", "l2")
    assert [(str(each.address), each.weight) for each in found.backends] == [
        ("192.0.2.11", 3),
        ("192.0.2.12", 1),
    ]
    assert (found.health, found.affinity) == (None, None)
    assert said(imported, NoteKind.ELSEWHERE) == ["2: global_defs", "7: vrrp_instance VI_1"]
    assert beside(imported) == []


@pytest.mark.parametrize(
    ("body", "forwarding"),
    [
        ("lb_kind NAT", "snat"),
        ("lb_kind DR", "l2"),
        ("lvs_method TUN", "dsr"),
        ("lvs_method TUN type ipip nocsum", "dsr"),
        ("", "snat"),
    ],
)
def test_both_names_of_the_way(body: str, forwarding: str) -> None:
    """NAT, where none is said."""
    assert only(keepalived(virtual(body))).forwarding == forwarding


def test_a_real_server_has_a_way_and_a_weight_of_its_own() -> None:
    """Else its virtual server's."""
    text = virtual("weight 4\nlb_kind NAT").replace(
        "192.0.2.11 80 {",
        "192.0.2.12 80 {\nlvs_method DR\nweight 9\n}\nreal_server 192.0.2.11 80 {",
    )
    assert "reached by direct routing and NAT" in left_out(keepalived(text))[0]
    found = only(keepalived(text.replace("lvs_method DR", "")))
    assert [each.weight for each in found.backends] == [9, 4]


def test_without_a_protocol_it_is_udp() -> None:
    """As keepalived has it, and says so too."""
    imported = keepalived(virtual("").replace("protocol TCP", ""))
    assert only(imported).protocol is Protocol.UDP
    assert beside(imported) == ["1: protocol"]


@pytest.mark.parametrize(
    ("body", "seconds", "notes"),
    [
        ("persistence_timeout 50", 50, []),
        ("persistence_timeout", 360, []),
        (
            "persistence_granularity 255.255.255.0",
            360,
            ["1: persistence by network (255.255.255.0)"],
        ),
        (
            "persistence_timeout 9\npersistence_engine sip",
            9,
            ["1: persistence engine sip"],
        ),
    ],
)
def test_persistence(body: str, seconds: int, notes: list[str]) -> None:
    """Six minutes, where there is no time."""
    imported = keepalived(virtual(body))
    assert only(imported).affinity == Affinity(seconds)
    assert beside(imported) == notes


def test_no_port_is_any_and_persistent() -> None:
    """IPVS has no other way to have all ports."""
    found = only(
        keepalived(virtual("lb_kind DR", "203.0.113.10").replace("192.0.2.11 80", "192.0.2.11"))
    )
    assert (found.port, found.affinity) == (ANY_PORT, Affinity(360))


def test_flags_and_ops() -> None:
    """By their names."""
    text = virtual("lb_algo sh\nsh-port\nops").replace("TCP", "UDP")
    found = only(keepalived(text))
    assert (found.affinity, found.flow_table) == (None, False)


def test_timeouts_of_udp_are_global() -> None:
    """They stand in global_defs."""
    text = virtual("lb_kind TUN").replace("TCP", "UDP")
    assert only(keepalived(text)).flow_timeout is None
    timed = "global_defs {\n lvs_timeouts tcp 900 udp 30\n}\n" + text
    assert only(keepalived(timed)).flow_timeout == 30


def test_what_has_no_counterpart_stands_beside_the_service() -> None:
    """With its line; what has no effect on packets isn't told."""
    body = """\
alpha
omega
quorum 2
hysteresis 1
quorum_up "/usr/local/bin/up 'a b' $X" nobody
sorry_server 192.0.2.99 80
sorry_server_lvs_method DR
ha_suspend
smtp_alert on
warmup 3.5
snmp_name shop"""
    imported = keepalived(virtual(body))
    assert only(imported).name == "shop"
    assert beside(imported) == [
        "3: alpha",
        "4: omega",
        "5: quorum 2",
        "6: hysteresis 1",
        "7: quorum_up /usr/local/bin/up 'a b' $X nobody",
        "8: sorry_server 192.0.2.99 80",
        "10: ha_suspend",
        "11: smtp_alert on",
    ]


def test_of_real_servers_too() -> None:
    """Thresholds, scripts, ports that have no effect."""
    text = WEB.replace("weight 3", "uthreshold 100\nnotify_down /bin/x\nweight 3").replace(
        "192.0.2.12 80", "192.0.2.12 8080"
    )
    assert beside(keepalived(text)) == [
        "23: notify_down /bin/x",
        "21: thresholds of 192.0.2.11 (upper 100)",
        "26: port 8080 of 192.0.2.12",
    ]


# ---- Groups --------------------------------------------------------------------------------------

GROUP = """\
virtual_server group SHOP {
    lb_algo wlc
    lb_kind TUN
    protocol TCP
    real_server 192.0.2.11 { }
}
virtual_server_group SHOP {
    203.0.113.1 8080
    203.0.113.8-15 80
    203.0.114.0-203.0.114.2 443
    2001:db8::10-1f 80
    203.0.115.0/29 80
    fwmark 3
}
"""


def test_a_group_is_a_service_for_each_range() -> None:
    """As few prefixes as there can be; marks are left out."""
    imported = keepalived(GROUP)
    assert [str(each.key) for each in imported.services] == [
        "203.0.113.1:8080/tcp",
        "203.0.113.8/29:80/tcp",
        "203.0.114.0/31:443/tcp",
        "203.0.114.2:443/tcp",
        "203.0.115.0/29:80/tcp",
    ]
    assert imported.services[1].name == "SHOP-203.0.113.8_29-80"
    assert imported.services[1].vip == ip_network("203.0.113.8/29")
    marked, six = left_out(imported)[::-1]
    assert marked.startswith("1: firewall mark 3")
    assert "192.0.2.11 is IPv4 but the vip 2001:db8::10/124 is IPv6" in six


def test_a_group_may_be_in_parts() -> None:
    """And is for a server of TCP and one of UDP."""
    text = """\
virtual_server_group G {
  203.0.113.1 53
}
virtual_server_group G {
  203.0.113.2 53
}
virtual_server group G {
  protocol TCP
  real_server 192.0.2.11 53 { }
}
virtual_server group G {
  protocol UDP
  real_server 192.0.2.11 53 { }
}
"""
    names = [each.name for each in keepalived(text).services]
    assert names == [
        "G-203.0.113.1-53",
        "G-203.0.113.2-53",
        "G-203.0.113.1-53-2",
        "G-203.0.113.2-53-2",
    ]


def test_prefixes_of_many_lengths_are_told() -> None:
    """Before an agent refuses them."""
    imported = keepalived(
        "virtual_server_group G {\n203.0.113.1-203.0.120.254 80\n}\nvirtual_server group G {\n"
        "protocol TCP\nreal_server 192.0.2.11 80 { }\n}\n"
    )
    assert "None: IPv4 prefixes of 9 lengths" in said(imported, NoteKind.NEEDS)


# ---- Lines ---------------------------------------------------------------------------------------


def test_parameters() -> None:
    """As the manual has them: put in where they are used, as they are then."""
    text = """\
$BASE=192.0.${NET}
$NET=2
$METHOD=lb_kind DR
virtual_server 203.0.113.10 80 {
    $METHOD
    protocol TCP
    real_server ${BASE}.11 80 { }
    $NET=9
    real_server ${BASE}.12 80 { }
    quorum_up "${_PWD}/x ${_INSTANCE} ${_HASH} $UNKNOWN ${UNKNOWN}"
}
"""
    imported = keepalived(text, config_id="lb7")
    assert [str(each.address) for each in only(imported).backends] == ["192.0.2.11", "192.0.9.12"]
    assert beside(imported) == ["10: quorum_up ./x lb7 # $UNKNOWN ${UNKNOWN}"]


def test_parameters_of_several_lines() -> None:
    """They may have others in them, and define some."""
    text = """\
$RS= \\
    real_server 192.0.2.${NUMBER} 80 { \\
@lb1    weight 7 \\
@lb2    weight 8 \\
    }

$VS= \\
  virtual_server 203.0.113.${VIP} 80 { \\
    protocol TCP \\
    # nothing \\
    $NUMBER=11 \\
    $RS \\
    $NUMBER=12 \\
    $RS \\
  }
$VIP=1
$VS
$VIP=2
$VS
"""
    imported = keepalived(text)
    assert [str(each.vip) for each in imported.services] == ["203.0.113.1", "203.0.113.2"]
    for each in imported.services:
        assert [(str(one.address), one.weight) for one in each.backends] == [
            ("192.0.2.11", 7),
            ("192.0.2.12", 7),
        ]


def test_repetitions() -> None:
    """Of numbers, of values, of both."""
    text = """\
$VS= \\
virtual_server 203.0.${A}.${B} 80 { \\
protocol TCP \\
~SEQ(N, 11, 12) real_server 192.0.2.$N 80 { } \\
~LST({N, W}, {13, 5}, {14}) real_server 192.0.2.${N} 80 { } \\
}
~LST(A, 113, 114) ~SEQ(B, 3, -2, 1) $VS
~SEQx(C, 0x9, 0xa) virtual_server 203.0.113.2${C} 80 { }
"""
    problems = refused(keepalived, text)
    assert [each.split(":")[1] for each in problems] == ["8"]
    imported = keepalived(text.rpartition("~SEQx")[0])
    assert [str(each.vip) for each in imported.services] == [
        "203.0.113.3",
        "203.0.113.1",
        "203.0.114.3",
        "203.0.114.1",
    ]
    assert [str(each.address) for each in imported.services[0].backends] == [
        *("192.0.2.11", "192.0.2.12", "192.0.2.13", "192.0.2.14"),
    ]


def test_lines_for_other_hosts() -> None:
    """@ID, @^ID."""
    text = virtual("@lb1 lb_kind DR\n@lb2 lb_kind NAT\n@^lb2 quorum 2\n@^lb1 quorum 3")
    imported = keepalived(text)
    assert only(imported).forwarding == "l2"
    assert beside(imported) == ["5: quorum 2"]


def test_comments_quotes_and_braces() -> None:
    """Anywhere in a line."""
    text = (
        "virtual_server 203.0.113.10 80 { protocol TCP   ! one\n"
        'quorum_up "/bin/x # not one ! {" nobody # one\n'
        "real_server 192.0.2.11 80\n{\n}real_server 192.0.2.12 80{weight 2}}"
    )
    imported = keepalived(text)
    assert [each.weight for each in only(imported).backends] == [1, 2]
    assert beside(imported) == ["2: quorum_up /bin/x # not one ! { nobody"]


def test_includes() -> None:
    """Lines of what is included are those of that file; what isn't there is told."""
    files = {"conf.d/a.conf": "protocol TCP\nquorum 3\n", "conf.d/b": "$X=1\n"}
    text = virtual("include conf.d/{a.conf,b}\ninclude none\nsnmp_name a$X").replace(
        "protocol TCP", ""
    )
    imported = keepalived(text, files)
    assert only(imported).protocol is Protocol.TCP
    (note,) = [each for each in imported.notes if each.service]
    assert (note.place, note.what) == ("conf.d/a.conf:2", "quorum 3")
    assert said(imported, NoteKind.ELSEWHERE) == ["4: include none"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            virtual("lb_alog wlc"),
            "conf:3: 'lb_alog' is not known in virtual_server; did you mean lb_algo? known: alpha",
        ),
        (
            "virtual_sever 203.0.113.1 80 {\n}",
            "conf:1: 'virtual_sever' is not known here; did you mean virtual_server?",
        ),
        (
            virtual("").replace("80 {\n}", "80 {\nwieght 3\n}"),
            "conf:5: 'wieght' is not known in real_server; did you mean weight?",
        ),
        (virtual("lb_algo wl"), "conf:3: lb_algo 'wl' is not known; allowed: rr, wrr"),
        (virtual("lb_kind FULLNAT"), "'FULLNAT' is not known; allowed: NAT, DR, TUN"),
        (virtual("lb_kind TUN type vxlan"), "allowed: ipip, gue, gre"),
        (virtual("lb_kind TUN sum"), "'sum' is not known; allowed: type, port"),
        (virtual("protocol ICMP"), "allowed: TCP, UDP, SCTP"),
        (virtual("persistence_timeout 5m"), "'5m' is not a number; allowed: 1 to"),
        (virtual("weight 0"), "weight '0' is not a number; allowed: 1 to"),
        (virtual("weight"), "weight has no value"),
        (virtual("quorum 2 {\n}"), "conf:3: quorum has no block"),
        (virtual("real_server 192.0.2.12 80"), "conf:3: real_server has a block"),
        (virtual("real_server web1 80 {\n}"), "conf:3: real_server 'web1' is not an address"),
        (virtual("real_server 192.0.2.12 http {\n}"), "port of real_server 'http'"),
        (virtual("", "www 80"), "conf:1: 'www' is no address and no range; allowed: ADDRESS"),
        (virtual("", "203.0.113.1 http"), "port 'http' is not a number"),
        (virtual("", "203.0.113.9-3 80"), "is no address and no range"),
        (virtual("", "fwmark x"), "fwmark 'x'"),
        (virtual("", "group G"), "conf:1: group 'G' is not there; virtual_server_group: none"),
        (
            "virtual_server_group G {\n 203.0.113.1/24 80\n}",
            "conf:2: '203.0.113.1/24' is no address",
        ),
        ("virtual_server_group {\n}", "virtual_server_group has no name"),
        (
            "virtual_server 203.0.113.1 80 {\n",
            "conf:1: the block of 'virtual_server 203.0.113.1 80' is not closed",
        ),
        ("}\n", "conf:1: closes a block that was not opened"),
        ("{\n", "conf:1: opens a block of nothing"),
        ('quorum_up "x\n', 'has a " without its other one'),
        ("protocol \\\n", "conf:1: ends with \\; allowed: at the end of a line of a definition"),
        ("$A=$A\n$A\n", "conf:2: parameters stand for themselves"),
        ("$A=$A $A $A\n$A\n", "conf:2: "),
        ("${_RANDOM 1 3}\n", "is another number each time; allowed: what it is, written out"),
        ("${_ENV HOME}\n", "keepalived's environment"),
        ("includer none\n", "conf:1: includer 'none': no such file"),
        ("~SEQ(A, 1, 0, 3) x\n", "never gets to"),
        ("~SEQ(A, 1, 999999999) x\n", "allowed: 200000"),
        ("~LST(A) x\n", "not a repetition; allowed: ~SEQ(NAME"),
        ("~LST({A, B}, {1, 2, 3}) x\n", "3 values for 2 names"),
        ("global_defs {\n lvs_timeouts udp x\n}", "conf:2: lvs_timeouts udp 'x'"),
        ("x" * 5000, "has 5000 characters"),
    ],
)
def test_what_is_refused(text: str, what: str) -> None:
    """With its line, and what is known there."""
    assert what in "\n".join(refused(keepalived, text))


def test_files_that_include_themselves() -> None:
    """Are refused, and nothing runs away."""
    problems = refused(lambda text: keepalived(text, {"conf": "include conf\n"}), "include conf\n")
    assert "does one include itself?" in problems[0]


def test_all_that_is_wrong_is_told() -> None:
    """With the line of each."""
    problems = refused(keepalived, virtual("nonsense\nlb_algo x\nprotocol y"))
    assert [each.split(":")[1] for each in problems] == ["3", "4", "5"]


def test_addresses_are_as_they_are_written() -> None:
    """IPv6 too."""
    text = virtual("lb_kind DR", "2001:db8::10 80").replace("192.0.2.11", "2001:db8:1::11")
    found = only(keepalived(text))
    assert (found.vip, found.name) == (ip_address("2001:db8::10"), "tcp-2001:db8::10-80")
