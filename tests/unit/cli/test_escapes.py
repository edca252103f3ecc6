# SPDX-License-Identifier: Apache-2.0
"""Whatever names devices, cgroups and files have: no terminal gets escape sequences from them."""

from __future__ import annotations

import ast
from dataclasses import fields, is_dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from tests.unit.agent.http.test_metrics import BANDWIDTH
from tests.unit.api.test_codec import DOCUMENTS

import towpath.cli
from towpath.api.codec import plain
from towpath.api.documents import CgroupRoot, Masquerade, NextHops, Socket
from towpath.cli import bandwidth, cgroup, masquerade, neigh, route, socket
from towpath.cli.main import cli
from towpath.documents import Route, SocketCounters

if TYPE_CHECKING:
    from collections.abc import Callable

HIDE = "\x1b[8m\x9b31m\u202e\x07\r"
SHOWN = "\\x1b[8m\\x9b31m\\u202e\\x07\\r"
ROUTE = Route(ip_address("192.0.2.1"), "eth0", "sent", "it is on the link", "eth0")


def hiding(value: Any) -> Any:
    """The same with escape sequences in all of its text, but for keys."""
    if type(value) is str:
        return value + HIDE
    if isinstance(value, tuple | list):
        return tuple(map(hiding, value))
    if isinstance(value, dict):
        return {key: hiding(each) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{each.name: hiding(getattr(value, each.name)) for each in fields(value)}
        )
    return value


def document(kind: type) -> Any:
    """One of it."""
    return next(each for each in DOCUMENTS if isinstance(each, kind))


SOCKET = replace(document(Socket), counters=SocketCounters({}, ()))

PRINTED: dict[str, Callable[[], object]] = {
    "socket": lambda: socket._print(hiding(SOCKET)),
    "masquerade": lambda: masquerade._print(hiding(document(Masquerade))),
    "bandwidth": lambda: bandwidth._print(hiding(replace(BANDWIDTH, troubles=("fq",))), None),
    "neigh": lambda: neigh._print(hiding(document(NextHops))),
    "cgroup": lambda: cgroup._print(plain(hiding(document(CgroupRoot)))),
    "route": lambda: route._print(hiding(ROUTE), {"dev": HIDE}),
}


@pytest.mark.parametrize("command", PRINTED)
def test_what_is_printed_can_be_seen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In tables and beside them."""
    PRINTED[command]()
    printed = capsys.readouterr().out
    assert SHOWN in printed
    assert not [each for each in printed if not each.isprintable() and each != "\n"]


@pytest.mark.parametrize(
    "arguments", [(HIDE,), ("service", "get", "x", f"--{HIDE}"), ("trace", HIDE), ("decap", HIDE)]
)
def test_errors_in_arguments_can_be_seen(arguments: tuple[str, ...]) -> None:
    """Those that click finds, too."""
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert not [each for each in result.output if not each.isprintable() and each != "\n"]


def test_commands_print_by_what_escapes() -> None:
    """Not past it; benchmarks print what they have made themselves."""
    found = {
        path.stem
        for path in Path(towpath.cli.__file__).parent.glob("*.py")
        if not path.stem.startswith("bench")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"click.echo", "click.secho", "print"}
    }
    assert found == {"output", "record"}  # record: where its progress is on the line
