# SPDX-License-Identifier: Apache-2.0
"""The load balancer as another version would have compiled it: other structs, same packets."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING
from unittest.mock import patch

from tests.prog.lb import told
from tests.unit.kernel.harness_clang import KEPT, ROOT, kept

from towpath.kernel.bpf import probe
from towpath.kernel.bpf.object import BpfObject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Edits = tuple[tuple[str, str], ...]
"""What to replace in the headers of ``bpf/abi/``, and by what."""

_FLOW = """\
	__u64 ref;
	struct address saddr;
	__u32 service; /* and enum flow_flags */
	__be16 sport;
	__u16 seen; /* low bits of jiffies >> FLOW_SEEN_SHIFT */
"""
_OTHER_FLOW = """\
	__u32 service;
	__u16 seen;
	__be16 sport;
	__u64 more;
	__u64 ref;
	struct address saddr;
"""

VERSIONS: dict[str, Edits] = {
    # Fields that moved, came and went; verdicts that have other numbers.
    "records": (
        (_FLOW, _OTHER_FLOW),
        ("struct backend {\n", "struct backend {\n\t__u64 more;\n"),
        (
            "struct service_cpu {\n\t__u64 packets;\n\t__u64 bytes;\n",
            "struct service_cpu {\n\t__u64 more;\n\t__u64 bytes;\n\t__u64 packets;\n",
        ),
        ("\tVERDICT_DROP_NO_BACKEND,\n", "\tVERDICT_PASS_ONCE,\n\tVERDICT_DROP_NO_BACKEND,\n"),
        ("__u64 packets[64]; /* by enum verdict; a", "__u64 packets[128]; /* by enum verdict; a"),
        ("DROP_REASONS = 28", "DROP_REASONS = 32"),
        ("__u64 dropped[28];", "__u64 dropped[32];"),
        ("struct settings {\n", "struct settings {\n\t__u64 more;\n"),
        ("struct service {\n", "struct service {\n\t__u64 more;\n"),
        ("\t__u64 _reserved;\n};\n\nenum vip_limits", "\t__u64 more[2];\n};\n\nenum vip_limits"),
    ),
    # Nothing but verdicts that have other numbers.
    "verdicts": (
        ("\tVERDICT_DROP_NO_BACKEND,\n", "\tVERDICT_PASS_ONCE,\n\tVERDICT_DROP_NO_BACKEND,\n"),
    ),
    # Other ways to divide the same things.
    "numbers": (
        ("FLOW_WAYS = 8", "FLOW_WAYS = 4"),
        ("HANDLE_INDEX_BITS = 20", "HANDLE_INDEX_BITS = 18"),
        ("HANDLE_GENERATION_BITS = 12", "HANDLE_GENERATION_BITS = 14"),
        ("MAGLEV_LINE = 16", "MAGLEV_LINE = 8"),
        ("__u32 handle[16];", "__u32 handle[8];"),
    ),
}


@contextmanager
def version(name: str) -> Iterator[None]:
    """Load balancers that are loaded in the block are of that version."""
    packaged = BpfObject.packaged
    tell = not probe.test_run_context()

    def compiled(wanted: str) -> BpfObject:
        if wanted == "lb_tables":
            return BpfObject(_compiled_tables(name))
        return BpfObject(_compiled(name, tell=tell)) if wanted == "lb" else packaged(wanted)

    with (
        patch.object(BpfObject, "packaged", compiled),
        patch.object(told, "_compiled", lambda _: _compiled(name, tell=tell)),
    ):
        yield


def compile_versions() -> None:
    """Compile everything that a test may ask for, on any kernel."""
    for name in VERSIONS:
        _compiled_tables(name)
        for tell in (False, True):
            _compiled(name, tell=tell)


@cache
def _compiled(name: str, *, tell: bool) -> Path:
    """Compile a version; ``tell``: as kernels need it whose test runs take no context."""
    headers = _edited(VERSIONS[name])
    source = told.SOURCES["lb"].read_text() if tell else '#include "lb/lb.bpf.c"\n'
    return kept(source, "-mcpu=v3", "-I", str(headers))  # as the shipped one is compiled


@cache
def _compiled_tables(name: str) -> Path:
    """The maps of a version."""
    headers = _edited(VERSIONS[name])
    return kept('#include "lb/tables.bpf.c"\n', "-mcpu=v3", "-I", str(headers))


def _edited(edits: Edits) -> Path:
    """A copy of the sources with the edits made."""
    texts = {path.name: path.read_text() for path in sorted((ROOT / "bpf" / "abi").glob("*.h"))}
    for old, new in edits:
        (name,) = (name for name, text in texts.items() if old in text)
        assert texts[name].count(old) == 1, old
        texts[name] = texts[name].replace(old, new)
    digest = hashlib.sha256("".join(texts.values()).encode())
    for path in sorted((ROOT / "bpf").rglob("*.[ch]")):
        digest.update(path.read_bytes())
    directory = KEPT / f"version-{digest.hexdigest()[:16]}"
    shutil.copytree(ROOT / "bpf", directory, dirs_exist_ok=True)
    for name, text in texts.items():
        (directory / "abi" / name).write_text(text)
    return directory
