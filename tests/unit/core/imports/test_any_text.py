# SPDX-License-Identifier: Apache-2.0
"""Whatever a text is: services that are right, or ConfigError."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.imports.harness_imports import ipvsadm, katran, keepalived

from towpath.cli.imported import written
from towpath.core.imports.ipvs import import_proc, kind_of
from towpath.model import ConfigError, parse_services

if TYPE_CHECKING:
    from collections.abc import Callable

    from towpath.core.imports.imported import Imported

WORDS = {
    "ipvsadm": (
        "-A -E -D -a -e -d -C -t -u -f -6 -s rr sh own -p -M 64 255.255.0.0 --pe sip -b sh-port -o "
        "-r -g -i -m -w -x --tun-type gue 0 7 99999999999 203.0.113.10:80 [2001:db8::1]:0 "
        "192.0.2.11:81 fe80::1%x 127.0.0.1:80 ' \" # --set"
    ),
    "proc": (
        "TCP UDP FWM -> CB00710A:0050 C000020B:0050 [2001:0db8:0000:0000:0000:0000:0000:0010]:01BB "
        "00000007 rr own ops persistent 75000 FFFFFF00 Masq Route Local Tunnel 0 1 -1 99999999999"
    ),
    "keepalived": (
        "virtual_server virtual_server_group group G real_server { } 203.0.113.10 80 0 fwmark 7 "
        "203.0.113.1-9 203.0.113.0/24 fe80::1%x-5 2001:db8::1-ffff protocol TCP UDP lb_algo rr sh "
        "lb_kind NAT DR TUN type gue weight 3 TCP_CHECK HTTP_GET url path / /x status_code 200 "
        "MISC_CHECK misc_path /bin/x delay_loop 0 0.5 retry inhibit_on_failure ops include conf "
        '$A=x $A= $A ${A} ${_PWD} ~SEQ(N,1,3) ~LST(N,1,2) $N @lb1 @^lb1 \\ " # ! global_defs {} '
        "persistence_timeout 192.0.2.11 192.0.2.12 vrrp_instance"
    ),
    "katran": (
        "katran_goclient -A -E -D -a -e -d -C -t -u -r -w -vf -rf -unset NO_SPORT LOCAL_VIP "
        "QUIC_VIP LOCAL_REAL 203.0.113.10:80 [2001:db8::1]:0 192.0.2.11 fe80::1%x 0 7 9999999999 ' "
        "VIP: Port: 80 Protocol: tcp -> weight: flags: Vip's 203.0.113.10"
    ),
}
RIGHT = {
    "ipvsadm": """\
-A -t 203.0.113.10:80 -s wrr -p 60 -M 255.255.255.0
-a -t 203.0.113.10:80 -r 192.0.2.11:80 -g -w 3 -x 7
-A -u [2001:db8::10]:53 -s sh -b sh-port -o
-a -u [2001:db8::10]:53 -r [2001:db8:1::11]:53 -m -w 1
-E -t 203.0.113.10:80 -s mh
""",
    "proc": """\
TCP CB00710A:0050 wrr persistent 75000 FFFFFF00
 -> C000020B:0050 Route 3 12 7
UDP [2001:0db8:0000:0000:0000:0000:0000:0010]:01BB rr ops
 -> [2001:0db8:0000:0000:0000:0000:0000:0011]:01BB Masq 1 0 0
""",
    "keepalived": """\
$N= \\
192.0.2.11 80
virtual_server_group G {
203.0.113.1-9 80
fwmark 7
}
virtual_server group G {
protocol TCP
lb_kind DR
delay_loop 6
~SEQ(X, 12, 14) real_server 192.0.2.$X 80 { TCP_CHECK { connect_port 81
} }
real_server $N
{
weight 3
MISC_CHECK {
misc_path "/bin/x 192.0.2.11 'a b'"
}
}
@lb1 persistence_timeout 50
}
""",
    "katran": """\
katran_goclient -A -t 203.0.113.10:80 -vf NO_LRU
katran_goclient -a -t 203.0.113.10:80 -r 192.0.2.11 -w 3
katran_goclient -E -t 203.0.113.10:80 -vf NO_SPORT -unset
""",
}
READ: dict[str, Callable[[str], Imported]] = {
    "ipvsadm": ipvsadm,
    "proc": lambda text: import_proc(text, "ip_vs", 250),
    "keepalived": lambda text: keepalived(text, {"conf": text}),
    "katran": katran,
}


def texts(kind: str) -> st.SearchStrategy[str]:
    """Text of any kind, and words that mean something, in any order."""
    words = st.sampled_from([*WORDS[kind].split(), "\n", "\n", "\n"])
    lines = st.lists(words, max_size=60).map(" ".join)
    right = [word for line in RIGHT[kind].splitlines() for word in (*line.split(), "\n")]
    edits = st.lists(st.tuples(st.integers(0, len(right) - 1), words), max_size=4)
    return st.one_of(edits.map(lambda each: _edited(right, each)), lines, st.text(max_size=200))


def _edited(words: list[str], edits: list[tuple[int, str]]) -> str:
    """A text with some words exchanged."""
    words = words.copy()
    for at, word in edits:
        words[at] = word
    return " ".join(words).replace(" \n ", "\n")


@pytest.mark.parametrize("kind", WORDS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_nothing_but_what_is_right_or_refused(kind: str, data: st.DataObject) -> None:
    """What is printed of it is what a file may have, and says the same."""
    text = data.draw(texts(kind))
    kind_of(text)
    try:
        imported = READ[kind](text)
    except ConfigError:
        return
    printed = yaml.safe_dump({"services": [written(each) for each in imported.services]})
    assert parse_services(printed, "printed") == imported.services
