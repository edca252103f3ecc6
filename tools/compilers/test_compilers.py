# SPDX-License-Identifier: Apache-2.0
"""The compilers themselves: each is of its own release, and what one doesn't take is told."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tools.compilers import __main__ as command
from tools.compilers import build, root
from tools.compilers.supported import NEWEST, OLDEST, SUPPORTED
from tools.debian.archive import MIRROR_VARIABLE, Archive, DownloadError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tools.compilers.supported import Compiler

PROGRAM = """\
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
%s
__u64 packets;
SEC("xdp") int count(struct xdp_md *ctx)
{
	%s;
	return XDP_PASS;
}
char _license[] SEC("license") = "Dual BSD/GPL";
"""
HARMLESS = ("", "packets++")
# bpf_helpers.h has such a macro since libbpf 1.7.
UNGUARDED = ("#define likely(x) __builtin_expect(!!(x), 1)", "packets++")
UNUSED = ("", "int unused")
# Its result is not asked for: clang had no instruction fetch it before 20.
FETCHING = ("", "__sync_fetch_and_add(&packets, 1)")


@contextmanager
def compiled(compiler: Compiler, program: tuple[str, str], tree: Path) -> Iterator[list[Path]]:
    """What a compiler makes of a checkout of one program."""
    (tree / "bpf/count").mkdir(parents=True)
    (tree / "hatch_build.py").touch()
    (tree / "bpf/count/count.bpf.c").write_text(PROGRAM % program)
    with (
        root.obtained(compiler) as found,
        build.compiled(compiler, found, tree) as place,
    ):
        yield list(place.rglob("*.bpf.o"))
    assert not place.exists()


@pytest.mark.parametrize("compiler", SUPPORTED, ids=lambda compiler: compiler.name)
def test_each_compiles_with_its_own_headers(compiler: Compiler, tmp_path: Path) -> None:
    """And makes an object of the one program there is."""
    with compiled(compiler, HARMLESS, tmp_path) as objects:
        assert [each.name for each in objects] == ["count.bpf.o"]
        build.check_atomics(objects)


def test_a_macro_that_newer_headers_have_is_refused_with_them(tmp_path: Path) -> None:
    """With the compiler's words, and the line of the checkout. Older headers don't mind."""
    with compiled(OLDEST, UNGUARDED, tmp_path / "old") as objects:
        assert objects
    tree = tmp_path / "new"
    with (
        pytest.raises(build.CompileError) as caught,
        compiled(NEWEST, UNGUARDED, tree),
    ):
        pass
    said = str(caught.value).splitlines()
    assert said[0].startswith(f"{tree}/bpf/count/count.bpf.c:3:9: error: 'likely' macro redefined")
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("compiler", SUPPORTED, ids=lambda compiler: compiler.name)
def test_a_warning_is_an_error(compiler: Compiler, tmp_path: Path) -> None:
    """Of any kind that -Wall has."""
    with (
        pytest.raises(build.CompileError, match="unused variable 'unused'"),
        compiled(compiler, UNUSED, tmp_path),
    ):
        pass


def test_an_atomic_that_fetches_is_told(tmp_path: Path) -> None:
    """The oldest compiler makes none of the same source."""
    with compiled(OLDEST, FETCHING, tmp_path / "old") as objects:
        build.check_atomics(objects)
    with (
        compiled(NEWEST, FETCHING, tmp_path / "new") as objects,
        pytest.raises(build.CompileError, match=r"count\.bpf\.o has 1 atomic instructions"),
    ):
        build.check_atomics(objects)


def test_what_an_archive_does_not_have_is_told(tmp_path: Path) -> None:
    """What is there by no name, and what can't be installed together."""
    archive = Archive.opened(NEWEST.distribution.name, tmp_path / "apt")
    untold = replace(NEWEST, major=999)
    with pytest.raises(DownloadError, match="Unable to locate package clang-999"):
        archive.versions(untold.packages)
    library = f"libllvm{NEWEST.major}"
    with pytest.raises(DownloadError, match=rf"(?s)clang-{NEWEST.major}.*{library}"):
        archive.versions([f"{library}-", *NEWEST.packages])
    found = archive.versions(NEWEST.packages)
    assert {"libbpf-dev", library, *NEWEST.packages} <= found.keys()


@pytest.fixture
def unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with nothing in it, while no archive can be reached; where the newest would be."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(MIRROR_VARIABLE, f"file:{tmp_path}/nothing")
    return tmp_path / "towpath/compilers" / NEWEST.name


def test_without_a_compiler_the_run_fails_and_says_why(unreachable: Path) -> None:
    """It is no compiler's refusal."""
    result = command.attempt(NEWEST, fresh=False)
    assert isinstance(result, command.Failure)
    assert result.told.startswith("NOTHING WAS TRIED")
    assert "nothing sid Release" in result.told
    assert "says\nnothing of Towpath" in result.told
    assert not unreachable.exists()


def test_what_was_unpacked_is_used_while_the_archive_is_not_to_be_had(unreachable: Path) -> None:
    """As long as it is younger than a week the archive isn't even asked."""
    unreachable.mkdir(parents=True)
    record = unreachable / "packages.json"
    record.write_text(json.dumps({"versions": {"clang-23": "1:23"}, "newest": 24}))
    with root.obtained(NEWEST) as found:
        assert (found.path, found.newest, found.trouble) == (unreachable / "root", 24, "")
    then = time.time() - (root.DAYS + 1) * 86400
    os.utime(record, (then, then))
    with root.obtained(NEWEST) as found:
        assert found.path == unreachable / "root"
        assert "nothing sid Release" in found.trouble
        assert round(found.days) == root.DAYS + 1
    made = build.Made(NEWEST, "23.1", "1.7", "7.2", 10, 1.0, newest=24, warning="")
    untried = command.newer([made])
    assert untried
    assert (untried.major, untried.blocking) == (24, False)
    assert command.newer([replace(made, newest=NEWEST.major)]) is None
