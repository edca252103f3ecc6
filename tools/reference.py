# SPDX-License-Identifier: Apache-2.0
"""Write docs/reference/python.md: what is public, as its docstrings have it.

    python -m tools.reference          print it
    python -m tools.reference --write  write it

Nothing is imported: the sources are read, so that the page is the same with every Python.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "python.md"

HEAD = """\
# Python reference

Made from docstrings by `python -m tools.reference --write`. What is listed here is public: it
changes with an entry in the [changelog](../../CHANGELOG.md) only. Where no other module is named,
names are imported from `towpath`.
"""


class Section(NamedTuple):
    """A heading, and the classes below it by module."""

    title: str
    text: str
    classes: dict[str, tuple[str, ...]]


SECTIONS = (
    Section(
        "Load balancers",
        "`LoadBalancer` balances in the script's own process, `SocketLoadBalancer` does so at\n"
        "sockets, `Client` and `AsyncClient` ask a running agent. What is said of `Balancing`\n"
        "holds for all of them; of the others only what they have besides is listed.",
        {
            "towpath.balancing": ("Balancing", "CaptureFile"),
            "towpath.loadbalancer": ("LoadBalancer",),
            "towpath.socketloadbalancer": ("SocketLoadBalancer",),
            "towpath.api.client": ("Client",),
            "towpath.api.aio": ("AsyncClient",),
        },
    ),
    Section(
        "What is wished for",
        "Plain, frozen dataclasses. Where a method takes fields, addresses may be text and what\n"
        "has a default may be left out.",
        {
            "towpath.model.service": (
                "Service",
                "Backend",
                "BackendState",
                "Affinity",
                "SourceRoute",
                "ServiceKey",
            ),
            "towpath.model.quic": ("Quic",),
            "towpath.model.health": ("Health",),
            "towpath.model.settings": (
                "Device",
                "Source",
                "Icmp",
                "Limits",
                "Drain",
                "Local",
                "Unwrap",
            ),
            "towpath.model.snat": ("Snat",),
            "towpath.model.flow": ("FlowTuple",),
            "towpath.model.capture": ("Capture",),
            "towpath.model.fields": ("ServiceFields", "BackendFields", "FlowFields"),
        },
    ),
    Section(
        "What is answered",
        "In `towpath.documents`; what only an agent has to say is in `towpath.api.documents` and\n"
        "`towpath.api.captures`. As JSON they are what the HTTP API and `-o json` give.",
        {
            "towpath.documents": (
                "Plan",
                "ServiceChange",
                "ServiceName",
                "BackendStatus",
                "DeviceStatus",
                "Counters",
                "ServiceCounters",
                "BackendCounters",
                "CpuCounters",
                "CpuVerdicts",
                "Refused",
                "Flow",
                "Translation",
                "FlowCounts",
                "FlowCount",
                "Trace",
            ),
            "towpath.api.documents": ("ServiceEntry", "Check", "Status", "FileStatus", "Use"),
            "towpath.api.captures": ("CaptureEntry",),
        },
    ),
    Section(
        "Errors",
        "In `towpath.errors`, all of them below `Error`.",
        {
            "towpath.errors": ("Error", "NotFoundError", "ConflictError"),
            "towpath.model.problems": ("ConfigError", "Problem"),
            "towpath.datapath.errors": ("DatapathError", "CapacityError"),
            "towpath.kernel.errors": ("KernelError", "VerifierError", "LayoutError"),
            "towpath.api.errors": ("ClientError", "UnreachableError", "ApiError"),
            "towpath.wildcard.errors": (
                "WildcardError",
                "FullError",
                "TooComplexError",
                "NoSuchRuleError",
            ),
        },
    ),
    Section(
        "Wildcard tables",
        "In `towpath.wildcard`; [the tutorial](../wildcard.md) shows them at work.",
        {
            "towpath.wildcard.table": ("WildcardTable", "Match", "Statistics"),
            "towpath.wildcard.rule": ("Rule", "Packet"),
        },
    ),
)


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for section in SECTIONS:
        parts.append(f"## {section.title}\n\n{section.text}\n")
        for module, names in section.classes.items():
            found = _classes(module)
            parts += [_class(found[name]) for name in names]
    return "\n".join(parts)


def _classes(module: str) -> dict[str, ast.ClassDef]:
    """All of a module, or of those of a package."""
    path = ROOT / "src" / Path(*module.split("."))
    files = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    nodes = [node for each in files for node in ast.parse(each.read_text(encoding="utf-8")).body]
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


def _class(node: ast.ClassDef) -> str:
    """Return what a class, its fields and its methods say."""
    bases = [ast.unparse(base) for base in node.bases]
    shown = [base for base in bases if base not in {"Protocol", "Closeable", "NamedTuple"}]
    lines = [f"### {node.name}", ""]
    if shown:
        lines += [f"Is a {' and a '.join(f'`{base}`' for base in shown)}.", ""]
    lines += [_prose(ast.get_docstring(node) or ""), ""]
    if fields := list(_fields(node)):
        lines += ["| field | type | default | |", "| --- | --- | --- | --- |", *fields, ""]
    inherited = _described(node.name)
    for method in node.body:
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
            lines += _method(node, method, inherited)
    return "\n".join(lines)


def _described(name: str) -> set[str]:
    """Methods of a load balancer's class that are described elsewhere."""
    if name not in {"LoadBalancer", "SocketLoadBalancer", "Client", "AsyncClient"}:
        return set()
    others = _classes("towpath.balancing")["Balancing"].body
    if name == "AsyncClient":
        others = others + _classes("towpath.api.client")["Client"].body
    described = {each.name for each in others if isinstance(each, ast.FunctionDef)}
    return described - {"remove_backend", "close"}


def _fields(node: ast.ClassDef) -> Iterator[str]:
    """Rows of a class's annotated fields, each with the text below it."""
    following = [*node.body[1:], None]
    for each, after in zip(node.body, following, strict=True):
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]).startswith("_"):
            continue
        if isinstance(each, ast.Assign) and "Enum" in "".join(map(ast.unparse, node.bases)):
            name, kind, default = ast.unparse(each.targets[0]), "", ast.unparse(each.value)
        elif isinstance(each, ast.AnnAssign) and not ast.unparse(each.target).startswith("_"):
            name, kind = ast.unparse(each.target), _type(each.annotation)
            default = ast.unparse(each.value) if each.value else ""
        else:
            continue
        text = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = " ".join(str(after.value.value).split())
        cells = (f"`{name}`", f"`{kind}`" if kind else "", f"`{default}`" if default else "", text)
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |".replace(
            "&#124;", r"\|"
        )


def _type(annotation: ast.expr) -> str:
    """Return a field's type without what else it is annotated with."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        inner = annotation.slice
        return _type(inner.elts[0] if isinstance(inner, ast.Tuple) else inner)
    return ast.unparse(annotation)


def _method(
    owner: ast.ClassDef, node: ast.FunctionDef | ast.AsyncFunctionDef, inherited: set[str]
) -> list[str]:
    """Return a method's signature and text; nothing for one that isn't public."""
    if node.name == "__init__":
        signature = f"{owner.name}{_arguments(node)}"
        return (
            [f"```python\n{signature}\n```", ""] if node.args.args[1:] or node.args.vararg else []
        )
    doc = ast.get_docstring(node)
    if node.name.startswith("_") or node.name in inherited or not doc:
        return []
    decorators = {ast.unparse(each) for each in node.decorator_list}
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    if decorators & {"property", "cached_property"}:
        signature = f"{node.name}{returns.replace(' -> ', ': ')}"
    else:
        word = {True: "async ", False: ""}[isinstance(node, ast.AsyncFunctionDef)]
        if "contextmanager" in decorators:
            returns = returns.replace("Iterator[", "ContextManager[")
        signature = f"{word}{node.name}{_arguments(node)}{returns}"
    return [f"**`{signature}`**", "", _prose(doc), ""]


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return the arguments besides self, in brackets."""
    text = ast.unparse(node.args)
    return f"({re.sub(r'^(self|cls)(, )?', '', text)})"


def _prose(doc: str) -> str:
    """Return a docstring as Markdown: no roles, lists of arguments, code that is code."""
    text = re.sub(r":class:`(?:towpath\.(?:[a-z_]+\.)*)?(\w+)`", r"`\1`", dedent(doc))
    text = text.replace("``", "`")
    return "\n".join(_lines(text.split("\n")))


def _lines(lines: list[str]) -> Iterator[str]:
    inside = False
    for line in lines:
        if line in {"Args:", "Raises:", "Attributes:"}:
            inside = True
            yield f"{line}\n"
        elif inside and re.match(r"    \w[\w/]*: ", line):
            name, _, rest = line.strip().partition(": ")
            yield f"- `{name}`: {rest}"
        elif inside and line.startswith("        "):
            yield f"  {line.strip()}"
        else:
            inside = inside and not line
            yield line


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page())
