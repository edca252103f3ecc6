# SPDX-License-Identifier: Apache-2.0
"""Objects: opened, prepared, loaded, refused."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.prog.kernel.harness_caps import only
from tests.unit.kernel.harness_clang import compile_bpf

from towpath.kernel.bpf import object as object_module
from towpath.kernel.bpf.btf import Kind
from towpath.kernel.bpf.maps import Map
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.errors import CAP_BPF, KernelError, LayoutError, VerifierError

if TYPE_CHECKING:
    from collections.abc import Callable

PACKET = bytes(64)


def open_files() -> int:
    """How many file descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


# ---- Before the load -----------------------------------------------------------------------------


def test_constants_have_their_compiled_values(opened: BpfObject) -> None:
    """What the source says is there until something else is stored."""
    constants = opened.rodata
    assert set(constants) == {"verdict", "cookie", "home", "name"}
    assert len(constants) == 4
    assert (constants["verdict"], constants["cookie"]) == (2, 0x1122334455667788)
    assert constants["home"]["mac"].tolist() == [0] * 6


def test_constants_reach_the_program(opened: BpfObject) -> None:
    """What is stored before the load is what the program sees."""
    opened.rodata["verdict"] = 1
    opened.load()
    assert opened.programs["count"].test_run(PACKET).retval == 1
    assert opened.rodata["verdict"] == 1


def test_constants_take_records_and_bytes(opened: BpfObject) -> None:
    """Every form that a map's value has will do."""
    home = np.zeros((), opened.btf.dtype("entry"))
    home["addr"], home["port"] = 0xC0000201, 80
    opened.rodata["home"] = home
    opened.rodata["name"] = b"towpath\0"
    assert opened.rodata["home"] == home
    assert opened.rodata["name"].tobytes() == b"towpath\0"
    opened.load()
    assert opened.programs["count"].test_run(PACKET).retval == 0  # home.port isn't 0 any more
    assert opened.maps[".rodata"].lookup(0)["home"]["port"] == 80


def test_constants_can_not_change_once_loaded(sample: BpfObject) -> None:
    """The verifier relied on them."""
    with pytest.raises(
        RuntimeError, match=r"sample\.bpf\.o is loaded: constants are stored before"
    ):
        sample.rodata["verdict"] = 1


def test_unknown_constants_are_refused(opened: BpfObject) -> None:
    """The message names those that there are."""
    with pytest.raises(KeyError, match="no constant 'colour' in this object; there are: verdict"):
        opened.rodata["colour"] = 1
    with pytest.raises(TypeError, match="can't be removed"):
        del opened.rodata["verdict"]


def test_constants_of_the_wrong_size_are_refused(opened: BpfObject) -> None:
    """Nothing is cut."""
    with pytest.raises(ValueError, match="constant name: 3 bytes where 8 are needed"):
        opened.rodata["name"] = b"abc"
    with pytest.raises(OverflowError, match="constant verdict"):
        opened.rodata["verdict"] = 2**32


def test_object_without_constants_has_none(objects: Path) -> None:
    """That is not an error."""
    with BpfObject(objects / "refused.bpf.o") as made:
        assert dict(made.rodata) == {}


def test_resized_maps_have_that_size(opened: BpfObject) -> None:
    """The number in the source is only the default."""
    opened.resize("entries", 1000)
    opened.load()
    assert opened.maps["entries"].max_entries == 1000
    with pytest.raises(KernelError, match=r"resize map entries to 5: .*: the object is loaded"):
        opened.resize("entries", 5)


def test_left_out_programs_are_not_loaded(opened: BpfObject) -> None:
    """What is off is not there afterwards; what the source leaves out can be put in."""
    opened.autoload("count", on=False)
    opened.autoload("touch", on=True)
    opened.load()
    assert set(opened.programs) == {"grow", "let_pass", "let_drop", "touch"}


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (
            lambda made: made.resize("maps", 1),
            "no map 'maps' in sample.bpf.o; there are: .bss, .rodata, by_cpu",
        ),
        (lambda made: made.layout("maps"), "no map 'maps' in sample.bpf.o"),
        (lambda made: made.autoload("run", on=True), "no program 'run' in sample.bpf.o; there are"),
    ],
)
def test_unknown_names_are_refused(
    opened: BpfObject, attempt: Callable[[BpfObject], object], message: str
) -> None:
    """The message names what there is."""
    with pytest.raises(KeyError, match=re.escape(message)):
        attempt(opened)


# ---- Load ----------------------------------------------------------------------------------------


def test_loaded_object_has_maps_and_programs(sample: BpfObject) -> None:
    """All under their C names, sections with a dot."""
    assert set(sample.maps) == {
        *("entries", "triples", "pairs", "by_cpu", "counts_by_cpu", "prefixes", "devices_out"),
        *("untyped", ".rodata", ".bss"),
    }
    assert set(sample.programs) == {"count", "grow", "let_pass", "let_drop"}
    assert "entry" in sample.btf.names(Kind.STRUCT)


def test_refusal_is_one_line_with_the_source(objects: Path) -> None:
    """The message says which program, why and where; the whole log is in ``log``."""
    with BpfObject(objects / "refused.bpf.o") as made, pytest.raises(VerifierError) as caught:
        made.load()
    message = str(caught.value)
    assert message.startswith("load refused.bpf.o: program careless: Permission denied (EACCES): ")
    assert "R1 offset is outside of the packet (at: return *data;" in message
    assert "\n" not in message
    assert "processed " in caught.value.log
    assert caught.value.errno == errno.EACCES


def test_long_log_is_whole(tmp_path: Path) -> None:
    """A log longer than any buffer that was guessed comes complete."""
    steps = "x += bpf_get_prandom_u32();\n" * 3000
    source = f"""
    #include <linux/bpf.h>
    #include <bpf/bpf_helpers.h>
    SEC("xdp") int lengthy(struct xdp_md *c)
    {{ int x = 0; {steps} return x + *(volatile int *)(long)c->data; }}
    """
    path = compile_bpf(source, tmp_path / "lengthy.bpf.o")
    with BpfObject(path) as made, pytest.raises(VerifierError) as caught:
        made.load()
    assert len(caught.value.log) > 100_000
    lines = caught.value.log.splitlines()
    assert any(line.startswith("0: (") for line in lines[:10])
    assert any(line.startswith("processed ") for line in lines[-3:])


def test_refused_map_is_named(objects: Path) -> None:
    """A map that the kernel won't make is told by name."""
    with BpfObject(objects / "bad_map.bpf.o") as made:
        with pytest.raises(KernelError, match=r"load bad_map.bpf.o: .*EINVAL.*map 'wide_keys'"):
            made.load()
        assert not made.maps


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A path that leads nowhere is told."""
    with pytest.raises(KernelError, match=r"open .*/none.bpf.o: No such file or directory"):
        BpfObject(tmp_path / "none.bpf.o")


def test_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    """The reason is libbpf's."""
    path = tmp_path / "text.bpf.o"
    path.write_text("not an object")
    with pytest.raises(KernelError, match=r"open .*/text.bpf.o: .*ELF"):
        BpfObject(path)


@pytest.mark.parametrize(
    ("held", "hint"),
    [((), "needs CAP_BPF and CAP_NET_ADMIN"), ((CAP_BPF,), "needs CAP_NET_ADMIN")],
)
def test_missing_capabilities_are_named(
    opened: BpfObject, held: tuple[int, ...], hint: str
) -> None:
    """EPERM says what is lacking, and only that."""
    with only(*held), pytest.raises(KernelError, match=f"EPERM.*{hint}$"):
        opened.load()


def test_packaged_objects_are_found_by_name(objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name alone is enough; one that isn't there is told with those that are."""
    monkeypatch.setattr(object_module, "OBJECTS", objects)
    with BpfObject.packaged("sample") as made:
        assert made.path == objects / "sample.bpf.o"
    with pytest.raises(KernelError, match=r"there are: bad_map, .*other_layout, refused, sample"):
        BpfObject.packaged("nothing")


# ---- Maps of others ------------------------------------------------------------------------------


def test_reused_map_is_the_same_map(objects: Path, sample: BpfObject) -> None:
    """Two objects share what one of them made."""
    with BpfObject(objects / "sample.bpf.o") as second:
        second.reuse("entries", sample.maps["entries"])
        second.load()
        second.maps["entries"].update(3, (1, 2, [3] * 6))
        assert second.maps["entries"].id == sample.maps["entries"].id
    assert sample.maps["entries"].lookup(3)["port"] == 2


@pytest.mark.parametrize("name", ["devices_out", "untyped", ".rodata", ".bss", "prefixes"])
def test_every_kind_of_map_can_be_reused(
    objects: Path, sample: BpfObject, pins: Path, name: str
) -> None:
    """Types that the kernel doesn't keep are no obstacle."""
    path = pins / name.lstrip(".")
    sample.maps[name].pin(path)
    with BpfObject(objects / "sample.bpf.o") as second, Map.from_pin(path) as pinned:
        second.reuse(name, pinned)
        second.load()
        assert second.maps[name].id == sample.maps[name].id


def test_map_of_another_layout_is_refused(objects: Path, sample: BpfObject) -> None:
    """The message has all differences."""
    path = objects / "other_layout.bpf.o"
    with BpfObject(path) as other, pytest.raises(LayoutError) as caught:
        other.reuse("entries", sample.maps["entries"])
    assert caught.value.differences == [
        "max_entries is 16 instead of 32",
        "flags are 0x400 instead of 0x0",
        "value.port is be16 instead of u16",
        "value.vlan is missing",
        "value.mac is at byte 6 instead of 8",
        "value._reserved is missing",
        "value has 12 bytes instead of 16",
    ]
    assert str(caught.value).startswith("map entries of other_layout.bpf.o can't be <Map entries")


# ---- Life ----------------------------------------------------------------------------------------


def test_closing_closes_everything(objects: Path) -> None:
    """No file descriptor is left, also after refusals, and closing twice is once."""
    before = open_files()
    for name in ("sample", "refused", "bad_map"):
        with BpfObject(objects / f"{name}.bpf.o") as made:
            try:
                made.load()
            except KernelError:
                assert name != "sample"
        made.close()
    assert open_files() == before


def test_closed_object_says_so(objects: Path) -> None:
    """Whatever is asked of it after closing; libbpf's memory is gone by then."""
    with BpfObject(objects / "sample.bpf.o") as made:
        constants = made.rodata
    attempts: list[Callable[[], object]] = [
        made.load,
        lambda: made.resize("entries", 5),
        lambda: made.layout("entries"),
        lambda: constants["verdict"],
        lambda: constants.update(verdict=1),
    ]
    for attempt in attempts:
        with pytest.raises(RuntimeError, match=r"sample\.bpf\.o is closed"):
            attempt()


def test_maps_outlive_the_object_while_held(objects: Path) -> None:
    """A second file descriptor keeps a map."""
    with BpfObject(objects / "sample.bpf.o") as made:
        made.load()
        kept = Map.from_id(made.maps["entries"].id)
    with kept:
        assert kept.lookup(0)["port"] == 0
    with pytest.raises(KernelError, match=r"open map with id \d+: No such file"):
        Map.from_id(kept.id)
