# SPDX-License-Identifier: Apache-2.0
"""Every program that is run is declared in outside.txt, with its package.

Two nets, for each has holes. Here the source is read: where a process is started, by whomever,
the program must be a literal that is declared, or the function must be one of those below, which
run what they are given. `tests/conftest.py` looks at what tests really start. `make declared`
hides from tests what is not declared.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.outside import DECLARED, ESSENTIAL, UNKNOWN, programs, shell_programs, undeclared

from towpath.doctor.outside import declared, is_library

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = ("src", "tests", "tools")
SCRIPTS = ("tools/install", "tools/bare/enter", ".ci/run")
# Who uses what is run there, the longest path first.
USERS = {
    "tests/guest": {"kernels", "test"},
    "tests/kubernetes": {"kubernetes", "test"},
    "tools/bare/test_": {"bare", "test"},
    "tests/": {"test", "demo"},
    "tools/kernels": {"kernels", "build"},
    "tools/instructions": {"kernels", "build"},
    "tools/debian": {"kernels"},
    "tools/kubernetes": {"kubernetes", "build"},
    "tools/compilers": {"kernels", "build"},
    "tools/bare": {"bare"},
    "src/": {"run", "demo", "bench"},
    "hatch_build.py": {"build"},
}
STARTERS = {
    *("subprocess.run", "subprocess.Popen", "subprocess.call"),
    *("subprocess.check_call", "subprocess.check_output", "subprocess.getoutput"),
    *("asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"),
    *("os.execv", "os.execve", "os.execvp", "os.execvpe", "os.execl", "os.execlp"),
    *("os.posix_spawn", "os.posix_spawnp", "os.spawnv", "os.system", "os.popen", "shutil.which"),
    *("namespaces.run", "namespaces.spawn", "lab.spawn", "self._lab.spawn", "self.lab.spawn"),
}
# The command follows a namespace's name.
_SECOND = ("namespaces.run", "namespaces.spawn", "lab.spawn", "self._lab.spawn", "self.lab.spawn")
# Functions that run what they are given or put together, by file and name.
HANDED_ON = {
    "hatch_build.py::run",
    "hatch_build.py::tool",
    "src/towpath/agent/health/command.py::run",
    "src/towpath/agent/sources/kubernetes/access.py::_run",
    "src/towpath/bench/bandwidth_ways.py::_call",
    "src/towpath/bench/bandwidth_world.py::run",
    "src/towpath/bench/control.py::_run",
    "src/towpath/bench/forward_rules.py::_nft",
    "src/towpath/bench/socket_ipvs.py::_feed",
    "src/towpath/cli/lab.py::lab",
    "src/towpath/cli/lab.py::execute",
    "src/towpath/doctor/outside.py::_find",
    "src/towpath/doctor/sources/kubernetes.py::_container_runtime",
    "src/towpath/kernel/net/netfilter.py::forward_chains",
    "src/towpath/kernel/net/nft.py::_nft",
    "src/towpath/kernel/net/xtables.py::_run",
    "src/towpath/kernel/net/xtables.py::programs",
    "src/towpath/lab/lab.py::spawn",
    "src/towpath/lab/namespaces.py::run",
    "src/towpath/lab/namespaces.py::spawn",
    "src/towpath/lab/web.py::start",
    "tests/again.py::_ended",
    "tests/guest/harness_guest.py::run",
    "tests/lab/harness_packets.py::run",
    "tests/guest/test_bandwidth.py::sh",
    "tests/guest/test_degrade.py::_output",
    "tests/guest/test_dispatcher.py::succeeds",
    "tests/lab/harness_agent.py::start",
    "tests/lab/harness_handoff.py::run",
    "tests/lab/harness_record.py::accepted",
    "tests/lab/harness_record.py::recording",
    "tests/lab/test_agent_upgrade.py::test_killed_at_any_moment_of_a_start",
    "tests/lab/test_lab_drain.py::test_a_drain_waits_for_a_connection",
    "tests/lab/test_lab_drain.py::test_a_removed_backend_keeps_its_connection",
    "tests/lab/test_masquerade_programs.py::run",
    "tests/lab/test_record_command.py::piped",
    "tests/prog/doctor/test_doctor.py::ip",
    "tools/bare/test_view.py::test_a_program_without_its_declaration_is_hidden",
    "tools/bare/view.py::_links",
    "tools/bare/view.py::_output",
    "tools/bare/view.py::main",
    "tools/kernels/guest.py::_boot",
    "tools/kernels/guest.py::_share",
    "tools/kernels/initramfs.py::_applets",
    "tools/kernels/initramfs.py::_pack",
    "tools/debian/archive.py::run",
    "tests/kubernetes/harness_install.py::_run",
    "tests/kubernetes/harness_load.py::load",
    "tools/kubernetes/runc.py::main",
    "tools/kubernetes/binaries.py::_compile",
    "tools/kubernetes/binaries.py::go",
    "tools/kubernetes/chart.py::helm",
    "tools/kubernetes/control_plane.py::_run",
    "tools/kubernetes/control_plane.py::kubectl",
    "tools/kubernetes/demo.py::look",
    "tools/kubernetes/image.py::_run",
    "tools/kubernetes/node.py::_has_socket",
    "tools/kubernetes/node.py::run",
    "tools/kubernetes/programs.py::start",
    "tools/kernels/test_rig.py::test_a_program_that_a_kernel_refuses_is_told",
}


def files() -> list[Path]:
    """All Python of the repository."""
    found = [path for root in SOURCES for path in Path(root).rglob("*.py")]
    return sorted([*found, Path("hatch_build.py")])


class Starts(ast.NodeVisitor):
    """Finds where processes are started."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scopes: list[tuple[str, dict[str, ast.expr]]] = [("", {})]
        self.known: list[tuple[str, list[str]]] = []
        self.unknown: list[str] = []

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Names that a function gives to lists are its own."""
        self.scopes.append((node.name, {}))
        self.generic_visit(node)
        self.scopes.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - as ast calls it

    def visit_Assign(self, node: ast.Assign) -> None:
        """A name for a command."""
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.scopes[-1][1][target.id] = node.value
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """A process may be started."""
        called = ast.unparse(node.func)
        if called in STARTERS:
            at = f"{self.path}::{self.scopes[-1][0]}"
            wanted = node.args[1 if called in _SECOND else 0 :][:1]
            words = self.words(wanted[0]) if wanted else None
            if words is None:
                self.unknown.append(at)
            else:
                self.known.append((at, words))
        self.generic_visit(node)

    def words(self, node: ast.expr) -> list[str] | None:  # noqa: PLR0911 - one for each form
        """The first words of a command; None: they are known only when it runs."""
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.Attribute() if ast.unparse(node) == "sys.executable":
                return [sys.executable]
            case ast.List(elts=elements) | ast.Tuple(elts=elements) if elements:
                return self.listed(elements)
            case ast.Starred(value=value):
                return self.words(value)
            case ast.Name(id=name):
                found = [scope[name] for _, scope in reversed(self.scopes) if name in scope]
                return self.words(found[0]) if found and found[0] is not node else None
            case ast.BinOp(left=left, op=ast.Add()):
                return self.words(left)
            case ast.Call(func=called) if ast.unparse(called) in {"python", "children.python"}:
                return [sys.executable]
            case ast.Call(func=ast.Attribute(value=value, attr="split")):
                return split(value)
        return None

    def listed(self, elements: list[ast.expr]) -> list[str] | None:
        """The words of a list, as far as they are there."""
        first = self.words(elements[0])
        if first is None:
            return None
        return first + [word for each in elements[1:] for word in self.words(each) or [UNKNOWN]]


def split(node: ast.expr) -> list[str] | None:
    """The words of a literal text."""
    match node:
        case ast.Constant(value=str(text)):
            return text.split()
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]) if " " in text:
            return text.split()
    return None


def starts() -> Iterator[Starts]:
    """What each file starts."""
    for path in files():
        visitor = Starts(path)
        visitor.visit(ast.parse(path.read_text()))
        yield visitor


def test_every_program_is_declared() -> None:
    """Where the source says which it is."""
    found = [each for one in starts() for each in one.known]
    assert len(found) > 50
    own = [Path(sys.prefix)]
    wrong = [(at, gone) for at, words in found if (gone := undeclared(words, own))]
    assert wrong == []
    for at, words in found:
        users = next(users for place, users in USERS.items() if at.startswith(place))
        assert undeclared(words, own, users) == [], f"{at}: not for {users}"


def test_who_runs_what_it_is_given_is_known() -> None:
    """Whoever adds one sees to it that what it is given is declared."""
    assert {each for one in starts() for each in one.unknown} == HANDED_ON


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_run_what_is_declared(script: str) -> None:
    """And what is in every Debian."""
    lines = Path(script).read_text().splitlines()
    functions = {line.partition("()")[0].strip() for line in lines if "() {" in line}
    found = set(shell_programs(Path(script).read_text())) - functions
    assert found
    # systemctl: used where there is one.
    assert found <= DECLARED | ESSENTIAL | {"systemctl", *SCRIPTS}


def test_words_of_a_shell() -> None:
    """Programs are found wherever they stand."""
    text = "if a=1 ip x && (b | c); then exec d >&2 2>/dev/null & fi; echo 'e; f' $(g h)"
    assert list(shell_programs(text)) == ["ip", "b", "c", "d", "g"]
    command = ["ip", "netns", "exec", "x", "sh", "-c", "ethtool -K eth0 tx off"]
    assert list(programs(command)) == ["ip", "sh", "ethtool"]
    assert undeclared(command, []) == ["ethtool"]


def test_an_undeclared_program_is_found_in_source() -> None:
    """Also behind a name, and as what a namespace runs."""
    visitor = Starts(Path("x"))
    visitor.visit(
        ast.parse(
            "def f(x):\n"
            "    off = ['ethtool', '-K', x]\n"
            "    subprocess.run(off)\n"
            "    namespaces.run(x, ['sysctl', '-a'])\n"
            "    subprocess.run(x)\n"
        )
    )
    assert [undeclared(words, []) for _, words in visitor.known] == [["ethtool"], ["sysctl"]]
    assert visitor.unknown == ["x::f"]


def test_each_line_of_the_table_is_whole() -> None:
    """What doctor tells of says what is lost, and each of the others is for a command."""
    told = {"run", "demo", "bench"}
    for need in declared():
        users = set(need.users)
        assert users <= told | {"build", "test", "kernels", "kubernetes", "bare"}
        assert bool(need.needed_by and need.loses) == bool(users & told)
        assert all(
            each.startswith("/") or is_library(each) or "/" not in each for each in need.ways
        )


def test_what_really_runs_is_watched() -> None:
    """Whatever the source looks like. In a process of its own: a hook stays."""
    code = (
        "import subprocess\n"
        "from tests.outside import Watch\n"
        "watch = Watch()\n"
        "watch.begin()\n"
        "for name in ('hostname', 'true', 'sh -c \"dir\"'):\n"
        "    subprocess.run(name.replace('\"', '').split(), check=True, capture_output=True)\n"
        "print(*watch.seen)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.split() == ["hostname", "dir"]
