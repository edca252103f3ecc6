# SPDX-License-Identifier: Apache-2.0
"""Checks over UDP, against servers that answer in their own ways."""

from __future__ import annotations

import asyncio
import socket
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from scapy.layers.dns import DNS
from tests.unit.agent.harness_servers import HOST, outcome, target

from towpath.agent.health.datagram import question_for
from towpath.model.health import CheckType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Answers = Callable[[bytes], list[bytes]]

PASSED = ""


@contextmanager
def serving(answers: Answers) -> Iterator[int]:
    """A server that sends these datagrams for each that comes; its port."""
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind((str(HOST), 0))
        port = server.getsockname()[1]

        def serve() -> None:
            while True:
                data, client = server.recvfrom(65535)
                if data == b"end":
                    return
                for each in answers(data):
                    server.sendto(each, client)

        thread = Thread(target=serve)
        thread.start()
        try:
            yield port
        finally:
            with socket.socket(type=socket.SOCK_DGRAM) as ender:
                ender.sendto(b"end", (str(HOST), port))
            thread.join()


def tried(answers: Answers, kind: CheckType, **fields: object) -> str:
    """How a check of such a server ends."""
    with serving(answers) as port:
        return asyncio.run(outcome(target(port, kind, **fields)))


def answer_to(question: bytes, code: int) -> bytes:
    """An answer of DNS, as scapy makes it."""
    asked = DNS(question)
    return bytes(DNS(id=asked.id, qr=1, rcode=code, qd=asked.qd))


@pytest.mark.parametrize(
    ("send", "expect", "answer", "passes"),
    [
        ("ping", "", b"anything", True),
        ("ping", "pong", b"so: pong", True),
        ("hex:0d0a00ff", "hex:ff00", b"\xff\x00", True),
        ("ping", "pong", b"ping", False),
        ("ping", "", b"", True),
    ],
)
def test_an_answer_has_what_is_wanted(
    send: str,
    expect: str,
    answer: bytes,
    passes: bool,  # noqa: FBT001 -- a case
) -> None:
    """Anywhere in it, or nothing is wanted of it."""
    got: list[bytes] = []

    def answers(data: bytes) -> list[bytes]:
        got.append(data)
        return [answer]

    ended = tried(answers, CheckType.UDP, send=send, expect=expect, timeout=5.0)
    wanted = bytes.fromhex(send[4:]) if send.startswith("hex:") else send.encode()
    assert got == [wanted]
    assert ended == (PASSED if passes else "the answer is 'ping'; wanted: pong")


def test_what_is_lost_is_sent_again() -> None:
    """Twice within the check's time."""
    got: list[bytes] = []

    def answers(data: bytes) -> list[bytes]:
        got.append(data)
        return [b"pong"] if len(got) == 3 else []

    assert tried(answers, CheckType.UDP, send="ping", timeout=1.0) == PASSED
    assert len(got) == 3


def test_silence_fails() -> None:
    """When the check's time is over."""
    assert tried(lambda _: [], CheckType.UDP, send="ping", timeout=0.2) == "no answer within 0.2 s"


def test_nobody_there_fails_at_once() -> None:
    """The backend's kernel says so."""
    with socket.socket(type=socket.SOCK_DGRAM) as bound:
        bound.bind((str(HOST), 0))
        port = bound.getsockname()[1]
    ended = asyncio.run(outcome(target(port, CheckType.UDP, send="ping", timeout=10.0)))
    assert ended == "no answer: connection refused"


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        (0, PASSED),
        (3, PASSED),
        (2, "answers SERVFAIL"),
        (5, "answers REFUSED"),
        (9, "answers code 9"),
    ],
)
def test_the_code_of_an_answer_decides(code: int, ended: str) -> None:
    """Whether the name is there doesn't matter."""
    found = tried(lambda asked: [answer_to(asked, code)], CheckType.DNS, query="example.com")
    assert found == ended


def test_what_answers_something_else_is_passed_over() -> None:
    """Other IDs, questions, and what is no DNS."""

    def answers(asked: bytes) -> list[bytes]:
        other = bytes((asked[0] ^ 1,)) + asked[1:]
        return [b"", asked, b"\0" * 11, answer_to(other, 0), answer_to(asked, 2)]

    assert tried(answers, CheckType.DNS) == "answers SERVFAIL"


@pytest.mark.parametrize(
    ("name", "asked", "kind"),
    [
        ("example.com", b"example.com.", 1),
        ("example.com.", b"example.com.", 1),
        ("_dns.x-1.example", b"_dns.x-1.example.", 1),
        (".", b".", 2),
    ],
)
def test_scapy_reads_the_question(name: str, asked: bytes, kind: int) -> None:
    """One question, recursion desired, and nothing else."""
    read = DNS(question_for(name, 0x1234))
    assert (read.id, read.qr, read.rd, read.qdcount, read.ancount) == (0x1234, 0, 1, 1, 0)
    question = read.qd[0] if isinstance(read.qd, list) else read.qd
    assert (question.qname, question.qtype, question.qclass) == (asked, kind, 1)
