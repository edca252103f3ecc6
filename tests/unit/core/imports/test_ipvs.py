# SPDX-License-Identifier: Apache-2.0
"""Tables of IPVS: what becomes of each option, and what is refused."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from tests.unit.core.imports.harness_imports import (
    beside,
    ipvsadm,
    left_out,
    only,
    refused,
    said,
)

from towpath.core.imports.imported import NoteKind
from towpath.core.imports.ipvs import import_proc, import_table, kind_of
from towpath.core.imports.lvs import Method, RealServer, VirtualServer
from towpath.model import Affinity, Backend, Protocol
from towpath.model.kinds import ANY_PORT

VIP = "203.0.113.10:80"
A, B = "192.0.2.11", "192.0.2.12"
TABLE = f"""\
-A -t {VIP} -s wrr
-a -t {VIP} -r {A}:80 -g -w 3
-a -t {VIP} -r {B}:80 -g -w 1
"""


def service(how: str = "-s wrr", *reals: str, vip: str = f"-t {VIP}") -> str:
    """A virtual server with its options, and real servers with theirs."""
    servers = reals or (f"{A}:80 -g -w 1",)
    return "\n".join([f"-A {vip} {how}", *(f"-a {vip} -r {each}" for each in servers)])


def backend(address: str, weight: int = 1, port: int | None = None) -> Backend:
    """A backend by its address as text."""
    return Backend(ip_address(address), weight=weight, port=port)


def test_a_saved_table() -> None:
    """Address, port and protocol, the way to servers, their weights."""
    found = only(ipvsadm(TABLE))
    assert (found.name, str(found.key)) == ("tcp-203.0.113.10-80", "203.0.113.10:80/tcp")
    assert found.forwarding == "l2"
    assert found.backends == (backend(A, 3), backend(B, 1))
    assert (found.affinity, found.flow_table, found.flow_timeout) == (None, True, None)


@pytest.mark.parametrize(
    ("option", "forwarding"), [("-g", "l2"), ("-i", "dsr"), ("-m", "snat"), ("", "l2")]
)
def test_ways_to_servers(option: str, forwarding: str) -> None:
    """Without one it is direct routing."""
    assert only(ipvsadm(service("", f"{A}:80 {option}"))).forwarding == forwarding


def test_nat_has_ports_and_needs_addresses() -> None:
    """Which is said once, as is what servers then see."""
    imported = ipvsadm(
        service("", f"{A}:8080 -m", f"{B}:80 -m") + "\n" + service(vip="-t 203.0.113.11:80")
    )
    assert imported.services[0].backends == (backend(A, port=8080), backend(B))
    assert said(imported, NoteKind.NEEDS) == ["1: snat.ipv4"]
    assert "1: NAT" in said(imported, NoteKind.DIFFERS)


def test_flows_of_udp_last_as_long_as_there() -> None:
    """Translated ones too, whose timeout here is otherwise another."""
    text = service("", f"{A}:53 -i", vip="-u 203.0.113.10:53")
    assert only(ipvsadm(text)).flow_timeout is None
    assert only(ipvsadm(text.replace("-i", "-m"))).flow_timeout == 300
    assert only(ipvsadm(f"--set 900 120 30\n{text}")).flow_timeout == 30
    assert only(ipvsadm(f"--set 900 120 0\n{text}")).flow_timeout is None
    capped = ipvsadm(f"--set 900 120 3600\n{text}")
    assert only(capped).flow_timeout == 1800
    assert beside(capped) == ["None: UDP timeout of 3600 s"]


@pytest.mark.parametrize("scheduler", ["rr", "lc"])
def test_weights_that_do_not_count(scheduler: str) -> None:
    """These two ask for nothing but whether it is 0."""
    imported = ipvsadm(
        service(f"-s {scheduler}", f"{A}:80 -w 5", f"{B}:80 -w 1", "192.0.2.13:80 -w 0")
    )
    assert [each.weight for each in only(imported).backends] == [1, 1, 0]
    assert beside(imported) == ["1: weights 5, 1, 0"]


def test_weights_that_are_too_large() -> None:
    """Their proportion stays, exactly if it can."""
    weights = [
        each.weight
        for each in only(ipvsadm(service("", f"{A} -w 300000", f"{B} -w 100000"))).backends
    ]
    assert weights == [3, 1]
    imported = ipvsadm(service("", f"{A} -w 2147483647", f"{B} -w 1", "192.0.2.13 -w 0"))
    assert [each.weight for each in only(imported).backends] == [65535, 1, 0]
    assert beside(imported) == ["1: weight 2147483647"]


@pytest.mark.parametrize("scheduler", ["rr", "wrr", "lc", "wlc", "sed", "nq", "twos"])
def test_what_schedulers_differ_in_is_told_once(scheduler: str) -> None:
    """However many services have one."""
    text = service(f"-s {scheduler}") + "\n" + service(f"-s {scheduler}", vip="-t 203.0.113.11:80")
    imported = ipvsadm(text)
    assert len(imported.services) == 2
    assert said(imported, NoteKind.DIFFERS) == [f"1: scheduler {scheduler}"]


@pytest.mark.parametrize("scheduler", ["dh", "lblc", "lblcr", "fo", "ovf", "own"])
def test_schedulers_that_nothing_here_does(scheduler: str) -> None:
    """Their services are left out, and others aren't."""
    imported = ipvsadm(service(f"-s {scheduler}") + "\n" + service(vip="-t 203.0.113.11:80"))
    assert [each.name for each in imported.services] == ["tcp-203.0.113.11-80"]
    (why,) = left_out(imported)
    assert why.startswith(
        f"1: 203.0.113.10:80/tcp: scheduler {scheduler!r}"
        if scheduler == "own"
        else f"1: 203.0.113.10:80/tcp: scheduler {scheduler} "
    )


@pytest.mark.parametrize("scheduler", ["sh", "mh"])
def test_hashes(scheduler: str) -> None:
    """Of the address alone, unless the port is said to count."""
    assert only(ipvsadm(service(f"-s {scheduler}"))).affinity == Affinity()
    imported = ipvsadm(service(f"-s {scheduler} -b {scheduler}-port,{scheduler}-fallback"))
    assert only(imported).affinity is None
    assert said(imported, NoteKind.DIFFERS) == []
    assert only(ipvsadm(service(f"-s {scheduler} -b flag-2"))).affinity is None
    without = ipvsadm(service(f"-s {scheduler} -b {scheduler}-port"))
    assert said(without, NoteKind.DIFFERS) == [
        f"1: scheduler {scheduler} without {scheduler}-fallback"
    ]


@pytest.mark.parametrize(
    ("option", "seconds"), [("-p", 300), ("-p 50", 50), ("-p50", 50), ("--persistent=50", 50)]
)
def test_persistence(option: str, seconds: int) -> None:
    """With a time, or without."""
    imported = ipvsadm(service(f"-s wlc {option} -M 255.255.255.255"))
    assert only(imported).affinity == Affinity(seconds)
    assert beside(imported) == []


def test_persistence_in_other_ways() -> None:
    """By networks, for weeks, by SIP: the nearest that there is, and what it lacks."""
    imported = ipvsadm(service("-s wlc -p 2000000 -M 255.255.255.0 --pe sip"))
    assert only(imported).affinity == Affinity(7 * 86400)
    assert beside(imported) == [
        "1: persistence engine sip",
        "1: persistence by network (255.255.255.0)",
        "1: persistence of 2000000 s",
    ]
    six = service("-p 300 -M 64", "[2001:db8:1::11]:80 -i", vip="-t [2001:db8::10]:80")
    assert beside(ipvsadm(six)) == ["1: persistence by network (/64)"]
    assert beside(ipvsadm(six.replace("64", "128"))) == []


def test_any_port() -> None:
    """Port 0; with persistence, as IPVS has it."""
    found = only(ipvsadm(service("-s rr -p 300", f"{A}:0 -g", vip="-t 203.0.113.10:0")))
    assert (found.port, found.name) == (ANY_PORT, "tcp-203.0.113.10-any")
    (why,) = left_out(ipvsadm(service("-p 60", f"{A}:8080 -m", vip="-t 203.0.113.10:0")))
    assert "all ports go to port 8080" in why


def test_one_packet_scheduling() -> None:
    """Flows aren't remembered."""
    imported = ipvsadm(service("-s rr -o", f"{A}:53 -i", vip="-u 203.0.113.10:53"))
    assert (only(imported).flow_table, only(imported).protocol) == (False, Protocol.UDP)
    assert "1: one-packet scheduling" in said(imported, NoteKind.DIFFERS)


def test_thresholds_and_ports_that_have_no_effect() -> None:
    """Are told with the line of the server."""
    imported = ipvsadm(service("-s wlc", f"{A}:80 -g -x 100 -y 50", f"{B}:8080 -g -w 0"))
    assert beside(imported) == [
        f"2: thresholds of {A} (upper 100, lower 50)",
        f"3: port 8080 of {B}",
    ]
    assert only(imported).backends == (backend(A), backend(B, 0))


@pytest.mark.parametrize(
    ("options", "encap", "port"),
    [
        ("-i", "ipip", None),
        ("-i --tun-type gre --tun-csum", "gre", None),
        ("-i --tun-type gue --tun-port 6080 --tun-nocsum", "gue0", None),
        ("-i --tun-type gue --tun-port 9886", "gue0", 9886),
    ],
)
def test_tunnels_are_of_the_same_kind(options: str, encap: str, port: int | None) -> None:
    """GUE as IPVS sends it has a header of variant 0."""
    made = only(ipvsadm(service("", f"{A}:80 {options}")))
    assert (made.forwarding, made.encap, made.encap_port) == ("dsr", encap, port)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (service(vip="-f 7"), "1: firewall mark 7: packets are chosen by a firewall mark"),
        (service(vip=f"--sctp-service {VIP}"), "1: 203.0.113.10:80/sctp: protocol sctp"),
        (service("", f"{A}:80 -g", f"{B}:80 -m"), "reached by direct routing and NAT"),
        (service("", f"{A}:80 -i --tun-type gue --tun-port 6080 --tun-remcsum"), "remcsum"),
        (service("", f"{A}:80 -i --tun-type gre", f"{B}:80 -i"), "tunnels of gre and ipip"),
        (service("", f"{A}:80 -m", f"{A}:81 -m"), "192.0.2.11 is there with 2 ports"),
        (service("", "127.0.0.1:80 -g"), "127.0.0.1 is a loopback address"),
        (service("", "203.0.113.10:80 -m"), "is the service's own vip"),
        (service("", f"{A}:80 -i", vip="-t [2001:db8::10]:80"), "192.0.2.11 is IPv4 but the vip"),
    ],
)
def test_services_that_are_left_out(text: str, why: str) -> None:
    """With the line of the service and the reason."""
    imported = ipvsadm(text)
    assert imported.services == ()
    (said_of,) = left_out(imported)
    assert said_of.startswith("1: ")
    assert why in said_of


def test_a_table_without_servers() -> None:
    """Whoever is sent there gets nothing, as there."""
    assert only(ipvsadm(f"-A -t {VIP} -s rr")).backends == ()


def test_many_backends_have_a_table_that_is_large_enough() -> None:
    """So that shares follow the weights."""
    reals = [f"192.0.2.{n}:80 -g -w 1" for n in range(1, 251)]
    assert only(ipvsadm(service("-s wrr", *reals))).table_size == 25013


def test_commands_in_their_order() -> None:
    """A script that adds, changes and removes leaves what is there in the end."""
    text = f"""\
# a comment
ipvsadm -C

ipvsadm --add-service --tcp-service {VIP} --scheduler rr
ipvsadm --add-server --tcp-service={VIP} --real-server={A}:80 --masquerading --weight=2
ipvsadm -a -t {VIP} -r {B} -m
ipvsadm -E -t {VIP} -s wrr -p 60
ipvsadm -e -t {VIP} -r {A} -m -w 7
ipvsadm -d -t {VIP} -r {B}:80
sudo /sbin/ipvsadm -A -u {VIP} -s rr
ipvsadm -D -u {VIP}
ipvsadm --start-daemon master --mcast-interface eth0
ipvsadm -Z
"""
    imported = ipvsadm(text)
    found = only(imported)
    assert (found.backends, found.affinity) == ((backend(A, 7),), Affinity(60))
    assert said(imported, NoteKind.ELSEWHERE) == ["12: synchronization daemon"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            "-A -t www.example.org:http -s rr",
            "table:1: -t 'www.example.org:http' is not an address and a port in numbers",
        ),
        ("-A -t 203.0.113.10:http", "`ipvsadm -S -n` prints"),
        (f"-A -t {VIP}\n-a -t {VIP} -r web1:80", "table:2: -r 'web1:80'"),
        ("-A -t 203.0.113.10:65536", "65536"),
        (
            f"-A -t {VIP}\n-A -t {VIP}",
            "table:2: 203.0.113.10:80/tcp is there already, since line 1",
        ),
        (
            f"-a -t {VIP} -r {A}",
            "there is no service 203.0.113.10:80/tcp before this line; there is: none",
        ),
        (f"-A -t {VIP}\n-d -t {VIP} -r {A}", "is not there before this line"),
        (
            f"-A -t {VIP}\n-a -t {VIP} -r {A}\n-a -t {VIP} -r {A}:80",
            "table:3: 192.0.2.11:80 is there already",
        ),
        (f"-A -t {VIP}\n-a -t {VIP}", "-a without -r"),
        (f"-A -t {VIP} -u {VIP}", "allowed: one of -t, -u, --sctp-service, -f"),
        ("-A", "names no service"),
        ("-L -n", "'-L' is no command of ipvsadm; allowed: -A, -E"),
        (f"-A -t {VIP} --nonsense", "'--nonsense' is no option of ipvsadm; allowed: -t, -u"),
        (f"-A -t {VIP} -s", "-s has no value"),
        (f"-A -t {VIP} -b sh-ports", "'sh-ports' is no flag; allowed: flag-1"),
        (f"-A -t {VIP} -p 300 -M 255.255", "is not a netmask"),
        (f"-A -t {VIP} -p 0", "-p '0' is not a number from 1"),
        (f"-A -t {VIP}\n-a -t {VIP} -r {A} -g -m", "several ways to a server"),
        (f"-A -t {VIP}\n-a -t {VIP} -r {A} -w -1", "-w '-1' is not a number"),
        (f"-A -t {VIP}\n-a -t {VIP} -r {A} -i --tun-type vxlan", "allowed: ipip, gue, gre"),
        ("--set 900 120", "--set has three times"),
        ("-A -t '203.0.113.10:80", "no closing quotation"),
        ("TCP 203.0.113.10:80 wlc", "'TCP' is no command of ipvsadm"),
    ],
)
def test_what_is_refused(text: str, what: str) -> None:
    """With its line, and what is allowed."""
    (problem,) = refused(ipvsadm, text)
    assert what in problem


def test_all_that_is_wrong_is_told() -> None:
    """In the order of the lines."""
    assert [each[:8] for each in refused(ipvsadm, "-X\n-A\n-Y")] == [
        "table:1:",
        "table:2:",
        "table:3:",
    ]


PROC = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  CB00710A:0050 wrr persistent 75000 FFFFFF00
  -> C000020C:0050      Route   1      0          0         
  -> C000020B:0050      Route   3      12         7         
UDP  CB00710A:0035 rr ops
  -> C000020B:14E9      Masq    1      0          0         
TCP  [2001:0db8:0000:0000:0000:0000:0000:0010]:01BB sh persistent 15000 40000000
  -> [2001:0db8:0001:0000:0000:0000:0000:0011]:01BB      Tunnel  1      0          0         
FWM  00000007 rr
  -> C000020B:0000      Local   1      0          0         
TCP  CB00710B:0050 lc
  -> 0A000001:0050      Local   1      0          0         
"""  # noqa: W291 - as the kernel writes it


def test_proc() -> None:
    """Hexadecimal numbers, jiffies, netmasks."""
    imported = import_proc(PROC, "ip_vs", 250)
    web, dns, six = imported.services
    assert web.backends == (backend(B), backend(A, 3))
    assert (web.affinity, web.forwarding) == (Affinity(300), "l2")
    assert (str(dns.key), dns.flow_table) == ("203.0.113.10:53/udp", False)
    assert dns.backends == (backend(A, port=5353),)
    assert (str(six.key), six.forwarding) == ("[2001:db8::10]:443/tcp", "dsr")
    assert six.affinity == Affinity(60)
    assert beside(imported) == [
        "4: persistence by network (255.255.255.0)",
        "9: persistence by network (/64)",
    ]
    assert [each.partition(": ")[0] for each in left_out(imported)] == ["11", "13"]
    assert "None: options" in said(imported, NoteKind.DIFFERS)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("TCP  203.0.113.10:80 wlc", "is it of `ipvsadm -Ln`? `ipvsadm -Sn` prints what is taken"),
        ("  -> 192.0.2.11:80             Masq    1      0          0", "`ipvsadm -Ln`"),
        ("nonsense", "not a line of the table; allowed: lines of /proc/net/ip_vs"),
        ("  -> C000020B:0050      Masq    1      0          0", "a server without a service"),
    ],
)
def test_what_is_refused_of_proc(line: str, what: str) -> None:
    """With its line."""
    (problem,) = refused(lambda text: import_proc(text, "ip_vs", 250), f"{line}\n")
    assert problem.startswith("ip_vs:1: ")
    assert what in problem


def test_a_running_table() -> None:
    """Has no lines."""
    real = RealServer(ip_address(A), 80, Method.NAT, weight=2)
    imported = import_table(
        [VirtualServer(vip=ip_address("203.0.113.10"), port=80, reals=(real,))], 60
    )
    assert only(imported).backends == (backend(A, 2),)
    assert {note.place for note in imported.notes} == {""}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (TABLE, "ipvsadm"),
        (f"# saved\n\nipvsadm -A -t {VIP}", "ipvsadm"),
        (f"#!/bin/sh\nsudo /sbin/ipvsadm -A -t {VIP}", "ipvsadm"),
        (PROC, "proc"),
        ("! Configuration\nglobal_defs {\n}", "keepalived"),
        ("", "ipvsadm"),
    ],
)
def test_what_a_text_is_of(text: str, kind: str) -> None:
    """By what it begins with."""
    assert kind_of(text) == kind
