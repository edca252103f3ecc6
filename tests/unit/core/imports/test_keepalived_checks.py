# SPDX-License-Identifier: Apache-2.0
"""Checkers of keepalived's real servers: which check a service has of them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.core.imports.harness_imports import beside, keepalived, only, refused

from towpath.core.imports.imported import NoteKind
from towpath.model import AllFailed, CheckType, Health, OnDown

USUAL: dict[str, Any] = {"rise": 1, "on_all_failed": AllFailed.CLOSED}


def checked(*checkers: str, virtual: str = "delay_loop 6", way: str = "DR", port: int = 80) -> str:
    """A virtual server with a real server for each of these blocks, which are from line 4 on."""
    reals = [
        f"real_server 192.0.2.{11 + number} {port} {{\n{each}\n}}\n"
        for number, each in enumerate(checkers)
    ]
    head = f"virtual_server 203.0.113.10 80 {{\n{virtual}\nlb_kind {way}\nprotocol TCP\n"
    return f"{head}{''.join(reals)}}}\n"


TCP = "TCP_CHECK {\n}"
HTTP = """\
HTTP_GET {
url {
path /ready?full=1
status_code 200-299 404
}
connect_timeout 2.5
retry 3
}"""


def test_tcp() -> None:
    """What isn't said is as keepalived has it: every minute, 5 s, one more try."""
    found = only(keepalived(checked(TCP, TCP, virtual="")))
    assert found.health == Health(CheckType.TCP, interval=60, timeout=5, fall=2, **USUAL)


@pytest.mark.parametrize(("kind", "type_"), [("HTTP_GET", "http"), ("SSL_GET", "https")])
def test_http(kind: str, type_: str) -> None:
    """Path, status, host, times with fractions."""
    text = checked(
        HTTP.replace("HTTP_GET", kind), virtual="delay_loop 0.5\nvirtualhost www.example.org"
    )
    assert only(keepalived(text)).health == Health(
        CheckType(type_),
        interval=0.5,
        timeout=2.5,
        fall=4,
        path="/ready?full=1",
        host="www.example.org",
        status="200-299,404",
        **USUAL,
    )


def test_hosts_and_statuses_by_default() -> None:
    """The innermost host counts; without status_code it is 200 to 299."""
    inner = HTTP.replace("status_code 200-299 404", "virtualhost in.example.org")
    health = only(keepalived(checked(f"virtualhost real.example.org\n{inner}"))).health
    assert health is not None
    assert (health.host, health.status) == ("in.example.org", "200-299")
    health = only(keepalived(checked(f"virtualhost real.example.org\n{HTTP}"))).health
    assert health is not None
    assert health.host == "real.example.org"


def test_a_real_server_s_times_go_before_the_virtual_server_s() -> None:
    """And the checker's before both."""
    virtual = "delay_loop 6\nretry 2\nconnect_timeout 3"
    health = only(keepalived(checked(f"delay_loop 7\n{TCP}", virtual=virtual))).health
    assert health == Health(CheckType.TCP, interval=7, timeout=3, fall=3, **USUAL)
    own = "TCP_CHECK {\ndelay_loop 8\nretry 0\n}"
    health = only(keepalived(checked(f"delay_loop 7\n{own}", virtual=virtual))).health
    assert health == Health(CheckType.TCP, interval=8, timeout=3, fall=1, **USUAL)


@pytest.mark.parametrize(
    ("way", "port", "connect", "expected"),
    [
        ("DR", 80, 80, None),
        ("DR", 80, 8081, 8081),
        ("NAT", 8080, 8080, None),
        ("NAT", 8080, 80, 80),
        ("NAT", 8080, None, None),
    ],
)
def test_ports(way: str, port: int, connect: int | None, expected: int | None) -> None:
    """Only one that isn't checked anyway is said."""
    line = f"connect_port {connect}" if connect else ""
    text = checked(f"TCP_CHECK {{\n{line}\n}}", way=way, port=port)
    health = only(keepalived(text)).health
    assert health is not None
    assert health.port == expected


def test_inhibit_on_failure_keeps_flows() -> None:
    """Of the virtual server or of a real one."""
    health = only(keepalived(checked(TCP, virtual="inhibit_on_failure"))).health
    assert health is not None
    assert health.on_down is OnDown.KEEP
    imported = keepalived(checked(f"inhibit_on_failure\n{TCP}", TCP))
    assert only(imported).health is not None
    assert beside(imported) == ["1: inhibit_on_failure of some real servers"]


def test_what_a_check_can_not_look_at() -> None:
    """Contents, further pages, other names, sources."""
    text = checked(
        "SSL_GET {\nenable_sni\nsni_name other.example.org\nbindto 192.0.2.1\nurl {\npath /a\n"
        "digest 9b3a0c85a887a256d6939da88aabd8cd\nregex ok\n}\nurl {\npath /b\n}\n}"
    )
    imported = keepalived(text)
    health = only(imported).health
    assert health is not None
    assert health.path == "/a"
    assert beside(imported) == [
        "15: url /b",
        "12: digest 9b3a0c85a887a256d6939da88aabd8cd",
        "13: regex ok",
        "6: sni_name other.example.org",
        "9: SSL_GET bindto 192.0.2.1",
    ]


def test_checks_that_differ_are_none() -> None:
    """Which is told with the lines."""
    imported = keepalived(checked(HTTP, HTTP.replace("/ready", "/other"), HTTP))
    assert only(imported).health is None
    (note,) = [each for each in imported.notes if each.service]
    assert (note.line, note.what) == (16, "HTTP_GET of 192.0.2.12")
    assert "differs from that of 192.0.2.11" in note.why
    imported = keepalived(checked(TCP, ""))
    assert only(imported).health is None
    assert beside(imported) == ["1: checks of some real servers"]


def test_several_checks_of_a_server() -> None:
    """Whoever asks over HTTP has connected as well."""
    imported = keepalived(checked(f"{TCP}\n{HTTP}"))
    health = only(imported).health
    assert health is not None
    assert (health.type, beside(imported)) == (CheckType.HTTP, [])
    imported = keepalived(checked(f"TCP_CHECK {{\nconnect_port 22\n}}\n{HTTP}\nPING_CHECK {{\n}}"))
    health = only(imported).health
    assert health is not None
    assert (health.type, health.port) == (CheckType.TCP, 22)
    assert beside(imported) == ["17: PING_CHECK", "9: HTTP_GET"]


@pytest.mark.parametrize(
    "checker",
    [
        "SMTP_CHECK {\nhelo_name x\nhost {\nconnect_port 25\n}\n}",
        "DNS_CHECK {\nname a..b\n}",
        "UDP_CHECK {\npayload 01 02\n}",
        "UDP_CHECK {\nrequire_reply\n}",
        "UDP_CHECK {\npayload 01\nrequire_reply 0x\n}",
        "PING_CHECK {\n}",
        "BFD_CHECK {\nname x\n}",
        "FILE_CHECK {\ntrack_file x\nweight 1\n}",
        "TCP_CHECK {\nconnect_ip 192.0.2.99\n}",
        "HTTP_GET {\nurl {\npath ready\n}\n}",
        "MISC_CHECK {\nmisc_path check.sh\n}",
        "MISC_CHECK {\nmisc_path /bin/check\nmisc_dynamic\n}",
    ],
)
def test_checkers_that_nothing_here_does(checker: str) -> None:
    """The service has no check, and that is told."""
    imported = keepalived(checked(checker, checker))
    assert only(imported).health is None
    first, *_ = [each for each in imported.notes if each.service]
    assert first.line == 6
    assert first.why.endswith("the service has no check")


def test_questions_of_dns() -> None:
    """With keepalived's own name and number of tries where nothing is said."""
    checks = {
        "DNS_CHECK {\n}": (".", 4),
        "DNS_CHECK {\ntype a\nname example.org\nretry 1\n}": ("example.org", 2),
    }
    for checker, (query, fall) in checks.items():
        imported = keepalived(checked(checker))
        assert only(imported).health == Health(
            CheckType.DNS, interval=6, timeout=5, fall=fall, query=query, **USUAL
        )
        (note,) = [each for each in imported.notes if each.service]
        assert note.what.startswith("DNS_CHECK of ")
        assert ("with type NS" in note.why) == (query == ".")


def test_datagrams() -> None:
    """What is sent, and what the answer must have in it."""
    checks = {
        "require_reply": ("", []),
        "require_reply 0AFF 00\nmin_reply_length 3\nmax_reply_length 9": (
            "hex:0aff00",
            ["require_reply", "min_reply_length 3", "max_reply_length 9"],
        ),
    }
    for more, (expect, notes) in checks.items():
        imported = keepalived(checked(f"UDP_CHECK {{\npayload 01 0203\n{more}\n}}"))
        assert only(imported).health == Health(
            CheckType.UDP, interval=6, timeout=5, fall=2, send="hex:010203", expect=expect, **USUAL
        )
        assert {each.what for each in imported.notes if each.service} == set(notes)


def test_a_command() -> None:
    """With its timeout; without one that of the interval."""
    misc = (
        "MISC_CHECK {\nmisc_path \"/usr/local/bin/check 'a b' c\"\nmisc_timeout 3\nuser nobody\n}"
    )
    imported = keepalived(checked(misc, misc))
    words = ("/usr/local/bin/check", "a b", "c")
    expected = Health(CheckType.COMMAND, interval=6, timeout=3, fall=1, command=words, **USUAL)
    assert only(imported).health == expected
    assert beside(imported) == ["6: MISC_CHECK"]
    health = only(keepalived(checked(misc.replace("misc_timeout 3", "retry 1")))).health
    assert health is not None
    assert (health.timeout, health.fall) == (6, 2)


def test_a_command_that_is_told_its_server() -> None:
    """By an argument there, by the environment here."""
    misc = "MISC_CHECK {{\nmisc_path \"/bin/check -H {0} 'u={0}; x' $1\"\n}}"
    imported = keepalived(checked(misc.format("192.0.2.11"), misc.format("192.0.2.12")))
    health = only(imported).health
    assert health is not None
    assert health.command == (
        "/bin/sh",
        "-c",
        "exec /bin/check -H \"$TOWPATH_BACKEND\" u=\"$TOWPATH_BACKEND\"'; x' '$1'",
    )
    other = keepalived(checked(misc.format("192.0.2.11"), misc.format("192.0.2.99")))
    assert only(other).health is None


def test_times_that_there_are_not() -> None:
    """The nearest one is taken."""
    imported = keepalived(
        checked("TCP_CHECK {\nconnect_timeout 0.01\nretry 500\n}", virtual="delay_loop 7200")
    )
    health = only(imported).health
    assert health is not None
    assert (health.interval, health.timeout, health.fall) == (3600, 0.05, 100)
    assert beside(imported) == ["6: interval of 7200", "6: timeout of 0.01", "6: fall of 501"]


def test_a_check_that_a_service_can_not_have_goes_alone() -> None:
    """The rest of the service stays."""
    imported = keepalived(checked(HTTP.replace("}\nconnect", "virtualhost a_b/c\n}\nconnect")))
    assert only(imported).health is None
    assert beside(imported) == ["1: check: health.host"]


def test_what_all_checks_differ_in_is_told_once() -> None:
    """By the first of them."""
    imported = keepalived(checked(TCP) + checked(TCP).replace("113.10", "113.11"))
    notes = [each for each in imported.notes if each.what == "checks"]
    assert [(each.kind, each.line) for each in notes] == [(NoteKind.DIFFERS, 1)]


@pytest.mark.parametrize(
    ("checker", "what"),
    [
        (
            "TCP_CHEK {\n}",
            "conf:6: 'TCP_CHEK' is not known in real_server; did you mean TCP_CHECK?",
        ),
        ("TCP_CHECK", "conf:6: TCP_CHECK has a block"),
        ("TCP_CHECK {\npath /\n}", "conf:7: 'path' is not known in TCP_CHECK"),
        (
            "TCP_CHECK {\nconnect_port 0\n}",
            "conf:7: connect_port '0' is not a number; allowed: 1 to 65535",
        ),
        ("TCP_CHECK {\nconnect_timeout soon\n}", "conf:7: connect_timeout 'soon' is not a time"),
        ("HTTP_GET {\n}", "conf:6: HTTP_GET has no url"),
        ("HTTP_GET {\nurl {\npth /\n}\n}", "conf:8: 'pth' is not known in url; did you mean path?"),
        (
            "HTTP_GET {\nurl {\npath /\nstatus_code 600\n}\n}",
            "conf:9: status_code: '600' is not a status",
        ),
        ("MISC_CHECK {\n}", "conf:6: MISC_CHECK has no misc_path"),
        ('MISC_CHECK {\nmisc_path "/bin/x \'a"\n}', "has quotes that don't fit"),
        (
            "TCP_CHECK {\nalpha maybe\n}\ninhibit_on_failure maybe",
            "'maybe'; allowed: nothing, on, true",
        ),
    ],
)
def test_what_is_refused(checker: str, what: str) -> None:
    """With its line, and what is known there."""
    assert what in "\n".join(refused(keepalived, checked(checker)))
