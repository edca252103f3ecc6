# SPDX-License-Identifier: Apache-2.0
"""Tables in other people's programs: of any kind, several in one, pinned, of other versions."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.kernel.harness_clang import compile_bpf

from towpath.bench.frames import frame
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.errors import KernelError, LayoutError
from towpath.model.flow import FlowTuple
from towpath.wildcard import (
    Packet,
    Rule,
    WildcardError,
    WildcardTable,
    pin,
    resize,
    reuse,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.thorough

SOURCE = Path(__file__).with_name("rules.bpf.c")
OTHER = Path(__file__).with_name("other.bpf.c")
DROP, PASS, TX = 1, 2, 3
OK, SHOT = 0, 2
FRAME = frame(FlowTuple.parse("10.1.2.3:1234 -> 192.0.2.1:80 tcp"))
PACKET = Packet(ip_address("10.1.2.3"), ip_address("192.0.2.1"), 0, 0, 6)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test's program, by the headers as they are installed."""
    output = tmp_path_factory.mktemp("wildcard") / "wildcard.bpf.o"
    return compile_bpf(SOURCE, output)


@pytest.fixture(scope="module")
def loaded_object(compiled: Path) -> Iterator[BpfObject]:
    """The test's program, loaded."""
    with BpfObject(compiled) as obj:
        obj.load()
        yield obj


def test_two_tables_in_one_program(loaded_object: BpfObject) -> None:
    """Each has its own rules; the program does with their values what it likes."""
    program = loaded_object.programs["both_tables"]
    with WildcardTable(loaded_object, "acl") as acl, WildcardTable(loaded_object, "marks") as marks:
        assert program.test_run(FRAME).retval == PASS
        mark = marks.insert(Rule.of("10.1.0.0/16", protocol="tcp"))
        assert program.test_run(FRAME).retval == TX
        deny = acl.insert(Rule.of(None, "192.0.2.0/24", value=DROP))
        assert program.test_run(FRAME).retval == DROP
        acl.set_value(deny, PASS)
        assert program.test_run(FRAME).retval == TX
        marks.delete(mark)
        acl.delete(deny)
        assert program.test_run(FRAME).retval == PASS
        assert acl.statistics().ipv4.limit == 100
        assert marks.statistics().ipv6.limit == 5


def test_programs_share_a_table(loaded_object: BpfObject) -> None:
    """What is written once is seen by XDP, tc and cgroup programs alike."""
    with WildcardTable(loaded_object, "acl") as acl:
        number = acl.insert(Rule.of("10.0.0.0/8", value=SHOT))
        assert loaded_object.programs["one_table"].test_run(FRAME).retval == SHOT
        assert loaded_object.programs["both_tables"].test_run(FRAME).retval == PASS
        acl.delete(number)
        assert loaded_object.programs["one_table"].test_run(FRAME).retval == OK
    assert loaded_object.programs["allowed"].id


def test_a_table_that_is_not_there(loaded_object: BpfObject) -> None:
    """All maps that are missing are named."""
    with pytest.raises(LayoutError) as raised:
        WildcardTable(loaded_object, "nat")
    assert [f"nat_{part}4 is missing" in str(raised.value) for part in ("index", "slots", "rules")]
    assert len(raised.value.differences) == 6


def test_a_table_of_another_version(tmp_path: Path) -> None:
    """Headers that lay things out otherwise make a table that is refused, differences named."""
    with BpfObject(compile_bpf(OTHER, tmp_path / "other.bpf.o")) as obj:
        obj.load()
        with pytest.raises(LayoutError, match=r"acl_rules4: value\.head\.dport_span is missing"):
            WildcardTable(obj, "acl")


def test_maps_that_something_else_has_written_to(compiled: Path) -> None:
    """What isn't a table's memory is refused, not followed."""
    with BpfObject(compiled) as obj:
        obj.load()
        with obj.maps["acl_index4"].mmap() as mapped:
            mapped.array["tuples"]["place"] = 0x7FFFFFFF
        with pytest.raises(WildcardError, match="the IPv4 maps hold no wildcard table"):
            WildcardTable(obj, "acl")


def test_sizes_before_the_load(compiled: Path) -> None:
    """Each family has the room it is given."""
    with BpfObject(compiled) as obj:
        resize(obj, "acl", ipv4=1, ipv6=0)
        with pytest.raises(ValueError, match="ipv4: -1; allowed: 0 or more"):
            resize(obj, "acl", ipv4=-1, ipv6=0)
        obj.load()
        with WildcardTable(obj, "acl") as acl:
            acl.insert(Rule.of("10.0.0.0/8"))
            with pytest.raises(WildcardError, match="allowed: 1;"):
                acl.insert(Rule.of("10.0.0.0/8"))
            with pytest.raises(WildcardError, match="allowed: 0;"):
                acl.insert(Rule.of("::/0"))


# ---- Pins ----------------------------------------------------------------------------------------


def test_a_pinned_table_outlives_its_program(compiled: Path, pins: Path) -> None:
    """Its rules are there for the next program, and for the next writer."""
    with BpfObject(compiled) as obj:
        obj.load()
        pin(obj, "acl", pins)
        with WildcardTable(obj, "acl") as acl:
            first = acl.insert(Rule.of("10.0.0.0/8", ifindex=3, value=SHOT))
            second = acl.insert(Rule.of(None, "192.0.2.0/24", value=SHOT))
    with BpfObject(compiled) as obj:
        resize(obj, "acl", ipv4=7, ipv6=7)  # whatever it says itself
        reuse(obj, "acl", pins)
        obj.load()
        assert obj.programs["one_table"].test_run(FRAME).retval == SHOT
        with WildcardTable(pins, "acl") as acl:
            assert list(acl) == [first, second]
            assert acl[first] == Rule.of("10.0.0.0/8", ifindex=3, value=SHOT)
            assert acl.lookup(PACKET) == (second, SHOT)
            acl.delete(second)
            assert obj.programs["one_table"].test_run(FRAME).retval == OK
            assert acl.insert(Rule()) > second


def test_a_pinned_table_has_one_writer(compiled: Path, pins: Path) -> None:
    """A second one is told who has it."""
    with BpfObject(compiled) as obj:
        obj.load()
        pin(obj, "acl", pins)
        with pytest.raises(FileExistsError):
            pin(obj, "acl", pins)
    with (
        WildcardTable(pins, "acl"),
        pytest.raises(KernelError, match=f"process {os.getpid()} has it"),
    ):
        WildcardTable(pins, "acl")
    with WildcardTable(pins, "acl"):
        pass
    with pytest.raises(KernelError, match="nowhere"):
        WildcardTable(pins / "nowhere", "acl")
