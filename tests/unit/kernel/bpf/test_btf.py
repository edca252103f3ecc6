# SPDX-License-Identifier: Apache-2.0
"""BTF as dtypes and enums; the compiler's own offsetof and sizeof are the oracle."""

from __future__ import annotations

import re
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.kernel.c_types import PRELUDE, Leaf, Record, Writer, records
from tests.unit.kernel.harness_clang import ROOT, compile_bpf

from towpath.kernel.bpf import _elf
from towpath.kernel.bpf.btf import Btf, BtfError, Dtype, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Give a directory for objects that goes with the module."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def make(directory: Path, source: str) -> Path:
    """Compile C to an object."""
    return compile_bpf(source, directory / "made.bpf.o")


def rodata(path: Path, name: str) -> bytes:
    """Return what the ELF file has from a symbol in .rodata on."""
    sections = _elf.sections(path.read_bytes())
    (symbol,) = (each for each in _elf.symbols(sections) if each.name == name)
    assert sections[symbol.section].name == ".rodata"
    return sections[symbol.section].data[symbol.value :]


# ---- Layout --------------------------------------------------------------------------------------


def write(number: int, record: Record) -> tuple[str, list[Leaf]]:
    """Write one record and the compiler's answers about it as C."""
    writer = Writer()
    body = writer.record(record, "").removeprefix(record.keyword)
    kind = f"{record.keyword} s{number}"
    packed, _, members = body.partition("{")
    lines = [f"{record.keyword} {packed} s{number} {{{members};"]
    answers = [f"sizeof({kind})"]
    answers += [f"__builtin_offsetof({kind}, {leaf.path})" for leaf in writer.leaves]
    lines.append(f"{kind} marker{number};")
    lines.append(f"const volatile unsigned long answers{number}[] = {{ {', '.join(answers)} }};")
    return "\n".join(lines), writer.leaves


def place(dtype: Dtype, path: str) -> tuple[Dtype, int]:
    """Walk a dtype along a C path: the dtype there, and its offset."""
    offset = 0
    for step in path.replace("[0]", "").split("."):
        fields = dtype.base.fields
        assert fields is not None
        dtype, at = fields[step][:2]
        offset += at
    return dtype, offset


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=st.lists(records, min_size=1, max_size=15))
def test_layout_is_the_compilers(directory: Path, made: list[Record]) -> None:
    """Every member of every record is where, and what, the compiler says."""
    written = [write(number, record) for number, record in enumerate(made)]
    path = make(directory, PRELUDE + "\n".join(source for source, _ in written))
    btf = Btf.from_elf(path)
    for number, (_, leaves) in enumerate(written):
        dtype = btf.dtype(f"s{number}")
        data = rodata(path, f"answers{number}")
        size, *offsets = struct.unpack_from(f"<{1 + len(leaves)}Q", data)
        assert dtype.itemsize == size
        for leaf, offset in zip(leaves, offsets, strict=True):
            found, at = place(dtype, leaf.path)
            assert at == offset, leaf
            assert (found.base, found.shape) == (np.dtype(leaf.code), leaf.shape), leaf


VALUES = """
typedef unsigned short __be16; typedef unsigned int __be32; typedef unsigned long long __be64;
enum e { E_MINUS = -3, E_SEVEN = 7 };
struct inner { __be16 port; unsigned char mac[6]; };
struct outer {
    __be32 addr[2]; struct inner pair[2]; signed char small; double ratio; enum e which; _Bool yes;
    __be64 wide; union { unsigned int word; unsigned char bytes[4]; }; void *nothing;
};
const volatile struct outer value = {
    .addr = { __builtin_bswap32(0xc0000201), __builtin_bswap32(1) },
    .pair = { { __builtin_bswap16(80), { 1, 2, 3, 4, 5, 6 } }, { __builtin_bswap16(443), { 7 } } },
    .small = -1, .ratio = 0.5, .which = E_MINUS, .yes = 1,
    .wide = __builtin_bswap64(0x0102030405060708ULL), .word = 0x11223344,
};
"""


def test_values_read_as_written(directory: Path) -> None:
    """What C stores in a record, numpy reads from it, network byte order included."""
    path = make(directory, VALUES)
    btf = Btf.from_elf(path)
    value = np.frombuffer(rodata(path, "value"), btf.dtype("outer"), count=1)[0]
    assert value["addr"].tolist() == [0xC0000201, 1]
    assert value["pair"]["port"].tolist() == [80, 443]
    assert value["pair"][0]["mac"].tolist() == [1, 2, 3, 4, 5, 6]
    assert (value["small"], value["ratio"], value["yes"]) == (-1, 0.5, True)
    # Not every compiler marks an enum as signed; value and enumerator agree either way.
    assert value["which"] == btf.enum("e")["E_MINUS"]
    assert value["wide"] == 0x0102030405060708
    assert value["word"] == 0x11223344
    assert value["bytes"].tolist() == [0x44, 0x33, 0x22, 0x11]
    assert value["nothing"] == 0


def test_records_that_cross_have_no_holes(directory: Path) -> None:
    """Every byte of every struct in abi/ belongs to a member: none is left to chance."""
    headers = sorted((ROOT / "bpf" / "abi").glob("*.h"))
    text = "\n".join(header.read_text() for header in headers)
    names = re.findall(r"^struct (\w+) {", text, re.MULTILINE)
    includes = "\n".join(f'#include "abi/{header.name}"' for header in headers)
    markers = "\n".join(f"struct {name} marker_{name};" for name in names)
    btf = Btf.from_elf(make(directory, f"{includes}\n{markers}"))
    assert names
    for name in names:
        dtype = btf.dtype(name)
        assert dtype.fields is not None
        assert sum(part.itemsize for part, *_ in dtype.fields.values()) == dtype.itemsize, name


# ---- Enums, sections, names ----------------------------------------------------------------------

NAMES = """
enum colour { RED, GREEN = 5, ALSO_GREEN = 5 };
typedef enum { ODD = 1, EVEN = 2 } parity;
typedef enum colour paint;
typedef unsigned int number;
enum colour c; parity p; paint q; number n;
const volatile unsigned long seed = 1;
const volatile unsigned short ports[3] = { 1, 2, 3 };
struct fields { int a : 3; int b : 5; } bits;
struct also { int whole; int : 4; } padded;
int function(int x) { return x + n; }
"""


@pytest.fixture(scope="module")
def names(directory: Path) -> Btf:
    """Compile a little of everything."""
    return Btf.from_elf(compile_bpf(NAMES, directory / "names.bpf.o"))


def test_enum_has_c_names(names: Btf) -> None:
    """Enumerators keep their names and values, aliases included."""
    colour = names.enum("colour")
    assert {name: int(value) for name, value in colour.__members__.items()} == {
        "RED": 0,
        "GREEN": 5,
        "ALSO_GREEN": 5,
    }
    assert colour(5).name == "GREEN"
    assert [int(value) for value in names.enum("parity")] == [1, 2]
    assert names.enum("paint")["RED"] == 0


def test_section_is_a_record_of_its_variables(names: Btf) -> None:
    """A data section has its variables where the linker puts them."""
    dtype = names.dtype(".rodata")
    assert dtype.fields is not None
    assert {name: part for name, (part, *_) in dtype.fields.items()} == {
        "seed": np.dtype("u8"),
        "ports": np.dtype(("u2", (3,))),
    }
    variables = names.variables(".rodata")
    assert variables["seed"].size == 8
    assert {v.offset for v in variables.values()} == {0, 8}
    assert names.variables(".nowhere") == {}


def test_names_lists_types_by_kind(names: Btf) -> None:
    """Types can be listed by what they are."""
    assert names.names(Kind.STRUCT) == ["fields", "also"]
    assert names.names(Kind.FUNC) == ["function"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fields", "struct fields: bit-field 'a' has no dtype"),
        ("nothing", "no type 'nothing' in this BTF"),
        ("function", "no type 'function'"),
    ],
)
def test_dtype_refusals_say_what_and_why(names: Btf, name: str, message: str) -> None:
    """What has no dtype is refused by name."""
    with pytest.raises(BtfError, match=re.escape(message)):
        names.dtype(name)


@pytest.mark.parametrize(
    ("name", "message"), [("number", "not an enum"), ("fields", "no type 'fields'")]
)
def test_enum_refusals_say_what_and_why(names: Btf, name: str, message: str) -> None:
    """What is no enum is refused by name."""
    with pytest.raises(BtfError, match=message):
        names.enum(name)


def test_nameless_padding_is_no_field(names: Btf) -> None:
    """A nameless bit-field is a hole, and no obstacle."""
    assert names.dtype("also") == np.dtype({"names": ["whole"], "formats": ["i4"], "itemsize": 8})


# ---- What isn't BTF ------------------------------------------------------------------------------


def test_object_without_types_is_refused(directory: Path) -> None:
    """An object compiled without -g says what to do."""
    path = directory / "plain.bpf.o"
    compile_bpf("int x;", path, "-g0")
    with pytest.raises(BtfError, match="compile with -g"):
        Btf.from_elf(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    """A file that isn't ELF is refused with its path."""
    path = tmp_path / "notes.txt"
    path.write_text("not an object")
    with pytest.raises(BtfError, match=r"notes\.txt: not a little-endian 64-bit ELF file"):
        Btf.from_elf(path)


def section(path: Path) -> bytes:
    """Return the .BTF section of an object."""
    (found,) = (each for each in _elf.sections(path.read_bytes()) if each.name == ".BTF")
    return found.data


def use(blob: bytes) -> None:
    """Ask a blob everything; BtfError is the one way to fail."""
    try:
        btf = Btf.from_bytes(blob)
    except BtfError:
        return
    for kind in Kind:
        for name in btf.names(kind):
            for question in (btf.dtype, btf.enum, btf.map_types):
                try:
                    question(name)
                except BtfError:
                    continue


@settings(max_examples=400)
@given(data=st.data())
def test_damage_is_a_btf_error(directory: Path, names: Btf, data: st.DataObject) -> None:
    """A damaged blob fails as BTF, never otherwise, and doesn't hang."""
    assert names  # compiles the object
    blob = bytearray(section(directory / "names.bpf.o"))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    use(bytes(blob[: data.draw(st.integers(0, len(blob)))] if data.draw(st.booleans()) else blob))


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_elf_is_a_value_error(directory: Path, names: Btf, data: st.DataObject) -> None:
    """A damaged ELF file fails as such."""
    assert names
    blob = bytearray((directory / "names.bpf.o").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        blob[data.draw(st.integers(6, 63))] = data.draw(st.integers(0, 255))
    try:
        _elf.symbols(_elf.sections(bytes(blob)))
    except ValueError as error:
        assert "ELF" in str(error)  # noqa: PT017 -- most damage does no harm
