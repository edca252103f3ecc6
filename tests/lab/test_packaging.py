# SPDX-License-Identifier: Apache-2.0
"""What is built and installed: the wheel, its objects, the pinned versions, the service."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import tomllib
import zipfile
from configparser import RawConfigParser
from itertools import chain
from pathlib import Path

import pytest
from hatch_build import compile_objects, object_name
from tools.compilers.atomics import MEANT, fetching, fetching_in

import towpath
from towpath.kernel.bpf._elf import sections

ROOT = Path(__file__).resolve().parents[2]

HEADER = "enum answer { ANSWER = %d };\n"
PROGRAM = """\
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "answer.h"
SEC("xdp") int answer(struct xdp_md *ctx) { return ANSWER; }
char _license[] SEC("license") = "Dual BSD/GPL";
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout."""
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--no-index", "--wheel-dir", str(directory), str(ROOT)),
        ],
        check=True,
    )
    (made,) = directory.glob("*.whl")
    return made


def test_the_wheel_carries_every_compiled_object(wheel: Path) -> None:
    """One object for each BPF source, the native library, the licences, the public headers."""
    names = zipfile.ZipFile(wheel).namelist()
    sources = list((ROOT / "bpf").glob("*/*.bpf.c"))
    assert len(sources) >= 4
    for source in sources:
        assert f"towpath/objects/{object_name(source)}.bpf.o" in names
    assert "towpath/objects/libtowpath_core.so" in names
    assert "towpath/py.typed" in names
    assert sum("licenses" in name for name in names) == 3
    include = "towpath/objects/include/towpath/"
    assert {name.removeprefix(include) for name in names if name.endswith((".c", ".h"))} == {
        "wildcard.h",
        "abi/wildcard.h",
    }


def test_the_wheel_is_for_this_platform_and_any_python(wheel: Path) -> None:
    """Native code is reached through ctypes, so no Python version is in the tag."""
    assert re.fullmatch(r"towpath-[\d.]+-py3-none-linux_\w+\.whl", wheel.name)


def test_an_installed_wheel_loads_its_programs_without_a_compiler(
    wheel: Path, tmp_path: Path
) -> None:
    """Nothing of the source tree and no tool is needed where it runs."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = (
        "import towpath; from towpath.kernel.bpf.object import BpfObject\n"
        "assert 'site' in towpath.__file__\n"
        "with BpfObject.packaged('lab_pass') as program: program.load()\n"
        "print('loaded')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": "", "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "loaded\n", done.stderr


def test_objects_keep_btf_and_lose_dwarf() -> None:
    """BTF is what Python reads; DWARF is twenty times as much and read by nobody."""
    for built in (ROOT / "src" / "towpath" / "objects").glob("*.bpf.o"):
        listing = subprocess.run(
            ["llvm-readelf", "-S", str(built)], capture_output=True, text=True, check=True
        )
        assert " .BTF " in listing.stdout
        assert ".debug_" not in listing.stdout


def test_no_atomic_fetches_what_nobody_asks_for() -> None:
    """Linux 5.10 has none that do; clang 20 and newer make them where sources are not careful."""
    fetch, plain = ((0xDB, 0x10, 0, each) for each in (1, 0))
    assert fetching(struct.pack("<BBhi", *fetch) + struct.pack("<BBhi", *plain)) == 1
    for built in (ROOT / "src" / "towpath" / "objects").glob("*.bpf.o"):
        assert any(each.executable for each in sections(built.read_bytes()))
        assert bool(fetching_in(built)) == (built.name in MEANT), built.name


def _tree(root: Path, answer: int) -> None:
    (root / "bpf" / "answer").mkdir(parents=True, exist_ok=True)
    (root / "hatch_build.py").touch()
    (root / "bpf" / "answer" / "answer.h").write_text(HEADER % answer)
    (root / "bpf" / "answer" / "answer.bpf.c").write_text(PROGRAM)


def test_an_object_is_compiled_again_when_a_header_changes_and_only_then(tmp_path: Path) -> None:
    """Second runs cost nothing; edits are never missed."""
    _tree(tmp_path, 1)
    (made,) = compile_objects(tmp_path)
    first = made.read_bytes()
    stamp = made.stat().st_mtime_ns
    compile_objects(tmp_path)
    assert made.stat().st_mtime_ns == stamp
    header = tmp_path / "bpf" / "answer" / "answer.h"
    header.write_text(HEADER % 2)
    os.utime(header, ns=(stamp + 1, stamp + 1))
    compile_objects(tmp_path)
    assert made.read_bytes() != first


def test_a_program_that_does_not_compile_leaves_the_old_object(tmp_path: Path) -> None:
    """The compiler's failure is the build's."""
    _tree(tmp_path, 1)
    (made,) = compile_objects(tmp_path)
    before = made.read_bytes()
    source = tmp_path / "bpf" / "answer" / "answer.bpf.c"
    source.write_text("#error no\n")
    later = made.stat().st_mtime_ns + 1
    os.utime(source, ns=(later, later))
    with pytest.raises(subprocess.CalledProcessError):
        compile_objects(tmp_path)
    assert made.read_bytes() == before


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_pin_every_requirement_by_name_and_version_alone() -> None:
    """The file says what, never where from."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {_normal(pin.partition("==")[0]) for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    assert {_normal(name) for name in wanted} <= pinned


def test_the_version_is_the_same_everywhere() -> None:
    """What is imported is what was built."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert towpath.__version__ == project["version"]


def test_importing_towpath_imports_next_to_nothing() -> None:
    """The public classes come when they are asked for."""
    script = "import sys, towpath; print({'numpy', 'pyroute2', 'ctypes'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
    with pytest.raises(AttributeError, match="has no attribute 'Balancer'"):
        towpath.Balancer  # noqa: B018


def test_the_service_has_the_capabilities_it_needs_and_no_other() -> None:
    """What it starts with is also the most it can ever have."""
    unit = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(ROOT / "deploy" / "towpath.service")
    service = unit["Service"]
    wanted = {"CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"}
    assert set(service["CapabilityBoundingSet"].split()) == wanted
    assert set(service["AmbientCapabilities"].split()) == wanted
    assert service["NoNewPrivileges"] == "yes"
