# SPDX-License-Identifier: Apache-2.0
"""The command starts fast, explains itself, and keeps to its exit codes."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from towpath.cli.command import Manual
from towpath.cli.main import VERBS, cli

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

HEAVY = ("numpy", "pydantic", "pyroute2", "rich", "yaml", "fastapi", "uvicorn", "http.client")


def run(*arguments: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli, arguments, prog_name="towpath")


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command of this package's agent side, with its path."""
    for verb in ("agent", "status", "service", "backend", "trace", "import"):
        command = VERBS[verb].load()
        yield verb, command
        if isinstance(command, click.Group):
            for name, sub in command.commands.items():
                yield f"{verb} {name}", sub


def test_help_imports_little() -> None:
    """Beside click, a few modules: what a start takes is what it imports."""
    count = "import sys; print(len(sys.modules), file=sys.stderr)"
    help_ = "from towpath.cli.main import cli\ntry: cli(['--help'])\nfinally:\n    "
    click_, all_ = (
        int(
            subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=True
            ).stderr
        )
        for program in (f"import click; {count}", help_ + count)
    )
    assert all_ - click_ < 40


@pytest.mark.parametrize("arguments", ["--help", "service --help", "backend add --help"])
def test_help_imports_nothing_heavy(arguments: str) -> None:
    """What makes a command slow is what it imports."""
    program = (
        "import sys\n"
        "from towpath.cli.main import cli\n"
        f"try: cli({arguments.split()!r})\n"
        f"finally: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stderr.strip() == "[]"


def test_the_client_imports_nothing_heavy() -> None:
    """Scripts that talk to the agent start fast too."""
    heavy = [name for name in HEAVY if name != "http.client"]
    program = (
        "import sys, towpath; towpath.Client\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


def test_every_verb_is_listed_with_what_it_does() -> None:
    """And there is a command for each."""
    result = run("--help")
    assert result.exit_code == 0
    for name, verb in VERBS.items():
        assert f"  {name}" in result.output
        assert verb.summary in result.output
        assert verb.load().name == name


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=[path for path, _ in commands()]
)
def test_every_command_has_a_manual(path: str, command: click.Command) -> None:
    """A description, examples that call it, and exit codes."""
    assert isinstance(command, Manual)
    assert command.help
    assert any(f"towpath {path}" in example for example in command.examples)
    result = run(*path.split(), "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert "Exit codes:" in result.output


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=[path for path, _ in commands()]
)
def test_every_example_is_a_command_line(path: str, command: click.Command) -> None:
    """Its verb and options exist: an example that does not work is worse than none."""
    assert isinstance(command, Manual)
    for example in command.examples:
        words = example.split(" | ")[0].split('"')[0].split()
        if words[0] != "towpath":
            continue
        context = click.Context(cli)
        found: click.Command = cli
        options: set[str] = set()
        for word in words[1:]:
            if isinstance(found, click.Group) and not word.startswith("-"):
                sub = found.get_command(context, word)
                assert sub is not None, f"{path}: {example}"
                found = sub
                options = {name for each in found.params for name in each.opts}
            elif word.startswith("-"):
                assert word in options, f"{path}: {example}"


def test_the_version() -> None:
    """One line."""
    assert run("--version").output == "towpath 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["service"], "Usage: towpath service"),
        (["service", "get"], "Missing argument 'NAME'"),
        (["status", "-o", "xml"], "'xml' is not one of 'table', 'json', 'yaml'"),
        (["agent"], "Missing option '--config'"),
        (["backend", "add", "web", "192.0.2.300"], "is not an IPv4 or IPv6 address"),
        (
            ["backend", "set", "web", "192.0.2.1"],
            "--weight, --state, --port, --server-id or several",
        ),
        (["backend", "set", "web", "192.0.2.1", "--state", "ill"], "'ill' is not one of 'active'"),
        (["backend", "set", "web", "192.0.2.1", "--weight", "-1"], "0<=x<=65535"),
        (["trace", "nonsense"], "is not a flow"),
        (["trace", "192.0.2.1:0 -> 203.0.113.10:80"], "0 is out of range; allowed: 1 to 65535"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], message: str) -> None:
    """With what is wrong on stderr."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["service", "list"],
        ["service", "get", "web"],
        ["service", "delete", "web"],
        ["backend", "list", "web"],
        ["backend", "add", "web", "192.0.2.1"],
        ["backend", "remove", "web", "192.0.2.1"],
        ["trace", "198.51.100.7:40000 -> 203.0.113.10:80 tcp"],
    ],
)
def test_no_agent_is_1(tmp_path: Path, arguments: list[str]) -> None:
    """With one line: what, where, what to do."""
    socket = tmp_path / "agent.sock"
    result = run(*arguments, "--socket", str(socket))
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: no agent answers at {socket}; start one (towpath agent --config FILE)"
        " or name its socket (--socket, TOWPATH_SOCKET)\n"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("services: [", "not YAML"),
        (
            "services:\n  - {name: web, vip: 1.2.3.4}",
            "services.yaml:2: services[0].port: is missing",
        ),
        ("service: []", "services.yaml:1: service: unknown key; did you mean services?"),
    ],
)
def test_a_wrong_file_is_1(tmp_path: Path, content: str, message: str) -> None:
    """Before any agent is asked."""
    file = tmp_path / "services.yaml"
    file.write_text(content)
    for verb in ("apply", "plan"):
        result = run("service", verb, str(file))
        assert result.exit_code == 1
        assert message in result.stderr


def test_a_file_that_is_not_there_is_1(tmp_path: Path) -> None:
    """With its path."""
    result = run("service", "apply", str(tmp_path / "none"))
    assert result.exit_code == 1
    assert "none" in result.stderr


def test_a_file_that_is_not_text_is_1(tmp_path: Path) -> None:
    """With its path."""
    (tmp_path / "file").write_bytes(b"\xff\xfe")
    result = run("service", "apply", str(tmp_path / "file"))
    assert result.exit_code == 1
    assert f"{tmp_path}/file: not UTF-8 text" in result.stderr
