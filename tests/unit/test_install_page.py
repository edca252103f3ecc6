# SPDX-License-Identifier: Apache-2.0
"""docs/install.md says of the compilers that are supported what was found."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tools.compilers import build
from tools.compilers.supported import NEWEST, OLDEST, ROOT, SUPPORTED
from tools.debian import page
from tools.kernels import growth
from tools.kernels.supported import SUPPORTED as KERNELS

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_compilers_are_those_that_are_supported() -> None:
    """Each has made every object there is."""
    sources = len(list((ROOT / "bpf").glob("*/*.bpf.c")))
    rows = [line.strip("| ").split(" | ") for line in page.section("compilers").splitlines()[4:]]
    assert [(title, clang.partition(".")[0], objects) for title, clang, _, _, objects in rows] == [
        (each.distribution.title, str(each.major), str(sources)) for each in SUPPORTED
    ]
    told = re.sub(r"\s+", " ", page.PAGE.read_text())
    assert f"clang {OLDEST.major} ({OLDEST.distribution.title}) or newer" in told
    assert f"clang {OLDEST.major} or newer" in (ROOT / "README.md").read_text()


def test_every_kernel_that_must_not_fail_has_loaded_what_the_newest_makes() -> None:
    """Its sizes are accepted."""
    accepted = growth.accepted()[growth.compiler(str(NEWEST.major))]
    blocking = [each for each in KERNELS if each.blocking]
    assert all("compilers" in each.suites for each in blocking)
    assert {each.name for each in blocking} <= accepted.keys()


def test_what_is_compiled_with_is_what_is_declared() -> None:
    """Of the compiler's own major, where packages have one in their names."""
    assert OLDEST.packages == [
        *("clang-14", "binutils", "llvm-14", "libbpf-dev", "linux-libc-dev", "libc6-dev"),
    ]


def test_only_its_own_section_of_the_page_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there was nothing before."""
    made = tmp_path / "install.md"
    made.write_text("a\n<!-- make x -->\n<!-- end -->\nb\n<!-- make y -->\nold\n<!-- end -->\nc\n")
    monkeypatch.setattr(page, "PAGE", made)
    page.write("x", "X\n")
    page.write("y", "Y\n")
    expected = "a\n<!-- make x -->\nX\n<!-- end -->\nb\n<!-- make y -->\nY\n<!-- end -->\nc\n"
    assert made.read_text() == expected
    assert (page.section("x"), page.section("y")) == ("X\n", "Y\n")


def test_versions_are_upstreams() -> None:
    """Epochs and Debian's revisions say nothing to who has another distribution."""
    of = {"1:23.1.4-2": "23.1.4", "1:1.1.2-0+deb12u1": "1.1.2", "7.2.13-1": "7.2.13"}
    assert {version: build.upstream(version) for version in of} == of
