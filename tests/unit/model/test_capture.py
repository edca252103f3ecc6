# SPDX-License-Identifier: Apache-2.0
"""What people write to say what is to be captured."""

from __future__ import annotations

import pytest

from towpath.model import ConfigError
from towpath.model.capture import Capture, Filter, filter_text, parse_capture
from towpath.model.kinds import FieldError

RIGHT = [
    ("0.0.0.0/0 0 192.168.33.11/32 80 TCP", "0.0.0.0/0 0 192.168.33.11/32 80 tcp"),
    ("ANY any 192.168.33.11 80-90 17", "any 0 192.168.33.11/32 80-90 udp"),
    ("0 0 0 0 0", "any 0 any 0 any"),
    ("2001:db8::/32 1-65535 ::/0 53 UDP", "2001:db8::/32 1-65535 ::/0 53 udp"),
    ("  10.0.0.0/8   0 0 0   99 ", "10.0.0.0/8 0 any 0 99"),
    ("10.0.0.0/8 0 0 0 icmpv6", "10.0.0.0/8 0 any 0 icmpv6"),
]


@pytest.mark.parametrize(("line", "written"), RIGHT)
def test_a_filter_is_read(line: str, written: str) -> None:
    """Anything may be 0 or any, in any case; what is written is read as the same again."""
    found = Filter.parse(line)
    assert str(found) == written
    assert Filter.parse(written) == found


WRONG = [
    ("10.0.0.1/8 0 0 0 tcp", "source: '10.0.0.1/8' has host bits set; allowed: 10.0.0.0/8, or"),
    ("10.0.0.0/33 0 0 0 tcp", "source: '10.0.0.0/33' is not a prefix; allowed: a prefix such as"),
    ("0 0 web 0 tcp", "destination: 'web' is not a prefix; allowed:"),
    ("0 90-80 0 0 tcp", "source port: '90-80' ends before it begins; allowed: 80-90"),
    ("0 0 0 65536 tcp", "destination port: '65536' is out of range; allowed: 1 to 65535"),
    ("0 0 0 -1 tcp", "destination port: '-1' is neither a port nor a range; allowed:"),
    ("0 0 0 http tcp", "destination port: 'http' is neither a port nor a range; allowed:"),
    ("0 0 0 0 tpc", "protocol: 'tpc' is not known; allowed: icmp, igmp,"),
    ("0 0 0 0 256", "protocol: '256' is not known; allowed:"),
    ("0 0 0 tcp", "has 4 parts; allowed: SOURCE PORT DESTINATION PORT PROTOCOL"),
    ("", "'' has 0 parts; allowed:"),
    ("10.0.0.0/8 0 ::/0 0 0", "source 10.0.0.0/8 is IPv4, destination ::/0 is IPv6; allowed:"),
]


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_a_wrong_filter_is_refused(line: str, message: str) -> None:
    """The error says which part is wrong and what is allowed."""
    with pytest.raises(FieldError) as refusal:
        Filter.parse(line)
    assert message in str(refusal.value)


def test_a_capture_is_made_of_plain_data() -> None:
    """Filters are kept as they are always written."""
    found = parse_capture({"filters": ["0 0 10.0.0.1 80 TCP"], "services": ["web"], "packets": 3})
    assert found == Capture(("any 0 10.0.0.1/32 80 tcp",), ("web",), packets=3)
    assert parse_capture(found) == found
    assert filter_text(found) == "any 0 10.0.0.1/32 80 tcp or service web"
    assert filter_text(Capture()) == ""
    assert filter_text(Capture(("0 0 0 0 0",), expression="tcp")) == "(0 0 0 0 0) and (tcp)"
    assert len(filter_text(Capture(("0 0 0 0 0",) * 1000))) == 1000


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"snaplen": 0}, "snaplen: 0 is out of range; allowed: 1 to 65535"),
        ({"sample": 0}, "sample: 0 is out of range; allowed: 1 to"),
        ({"packets": -1}, "packets: -1 is out of range; allowed: 0 to"),
        ({"direction": "up"}, "direction: 'up' is not known; allowed: distinct, both, in, out"),
        ({"filters": "0 0 0 0 0"}, "filters: '0 0 0 0 0' is not a list; allowed:"),
        ({"services": ["-"]}, "services: '-' is not a name; allowed:"),
        ({"expression": "\0"}, "expression:"),
        ({"keep": 1000}, "keep: 1000 is out of range; allowed: 131072 to 1073741824, or 0"),
        ({"keep": 1 << 31}, "keep: 2147483648 is out of range; allowed: 0 to 1073741824"),
        ({"on_down": True}, "on_down: is for a capture that keeps what was last; allowed: with"),
        ({"on_drops": 9}, "on_drops: is for a capture that keeps what was last; allowed: with"),
        ({"keep": 1 << 20, "packets": 1}, "packets: would end with what came first; allowed: 0,"),
        ({"keep": 1 << 20, "bytes": 1}, "bytes: would end with what came first; allowed: 0,"),
        ({"snap": 1}, "snap: unknown key; did you mean snaplen?"),
    ],
)
def test_a_wrong_capture_is_refused(raw: dict[str, object], message: str) -> None:
    """The error names the field."""
    with pytest.raises(ConfigError) as refusal:
        parse_capture(raw)
    assert message in str(refusal.value)
