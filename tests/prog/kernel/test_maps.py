# SPDX-License-Identifier: Apache-2.0
"""Maps in the kernel: one element, many, and every kind against a plain dict."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.prog.kernel.harness_caps import only

from towpath.kernel.bpf.libbpf import lib
from towpath.kernel.bpf.map_types import BPF_EXIST, BPF_NOEXIST, MapType
from towpath.kernel.bpf.maps import Map, possible_cpus
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.kernel.bpf._records import Array
    from towpath.kernel.bpf.object import BpfObject

# Kinds of maps with batches and without, of which the tests ask the same.
KINDS = ["entries", "pairs", "by_cpu", "counts_by_cpu", "prefixes", "untyped"]


@pytest.fixture(params=["batched", "one by one"])
def batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with batches, and again as on a kernel without."""
    if request.param == "one by one":
        for name in ("lookup", "update", "delete"):
            monkeypatch.setattr(
                lib, f"bpf_map_{name}_batch", lambda *_: -errno.EINVAL, raising=False
            )


def some(made: Map, count: int) -> tuple[Array, Array]:
    """Make that many keys and values of a map, all different."""
    keys = np.zeros(count, made.key_dtype)
    numbers = np.arange(count, dtype="u4")
    raw: Array = keys.view("u1").reshape(count, made.key_dtype.itemsize)
    if made.type == MapType.LPM_TRIE:
        keys["prefix_length"] = 32
        raw = keys["addr"]
    raw[:, :2] = numbers.view("u1").reshape(count, 4)[:, :2]
    shape = (count, possible_cpus()) if made.is_percpu else (count,)
    values = np.zeros(shape, made.value_dtype)
    random = np.random.default_rng(count)
    values.view("u1")[...] = random.integers(0, 256, values.view("u1").shape, "u1")
    return keys, values


def as_dict(made: Map) -> dict[bytes, list[bytes] | bytes]:
    """Return what a map has, as bytes."""
    return {key.tobytes(): value.tobytes() for key, value in made.items()}


# ---- What a map tells of itself ------------------------------------------------------------------


def test_map_tells_what_it_is(sample: BpfObject) -> None:
    """Type, sizes and dtypes are those of the source."""
    made = sample.maps["entries"]
    assert (made.name, made.type, made.max_entries, made.flags) == ("entries", 2, 16, 0x400)
    assert made.key_dtype == np.dtype("u4")
    assert made.value_dtype == np.dtype([("addr", ">u4"), ("port", ">u2"), ("mac", "u1", (6,))])
    assert not made.is_percpu
    assert sample.maps["by_cpu"].is_percpu
    assert repr(made) == f"<Map entries id {made.id}>"


@pytest.mark.parametrize("name", [*KINDS, "devices_out", "triples", ".bss", ".rodata"])
def test_map_by_id_or_pin_has_the_same_layout(sample: BpfObject, pins: Path, name: str) -> None:
    """The kernel, or for device maps the object, knows the types."""
    made = sample.maps[name]
    path = pins / "it"
    made.pin(path)
    with Map.from_pin(path, sample.btf) as pinned, Map.from_id(made.id, sample.btf) as by_id:
        for other in (pinned, by_id):
            assert other.id == made.id
            assert other.layout == made.layout
            assert other.value_dtype == made.value_dtype


def test_map_without_types_has_plain_numbers(sample: BpfObject) -> None:
    """Sizes that are numbers' become numbers, the others stay bytes."""
    untyped = sample.maps["untyped"]
    assert (untyped.key_dtype, untyped.value_dtype) == (np.dtype("V3"), np.dtype("u8"))
    with Map.from_id(sample.maps["devices_out"].id) as unknown:
        assert unknown.value_dtype == np.dtype("u8")
    assert sample.maps["devices_out"].value_dtype.names == ("left", "right")


# ---- One element ---------------------------------------------------------------------------------


def test_stored_is_what_is_found(sample: BpfObject) -> None:
    """A record comes back field by field; the kernel's bytes are in network order."""
    entries = sample.maps["entries"]
    entries.update(2, (0xC0000201, 443, [1, 2, 3, 4, 5, 6]))
    found = entries.lookup(2)
    assert (found["addr"], found["port"]) == (0xC0000201, 443)
    assert found.tobytes() == bytes.fromhex("c0000201 01bb 010203040506")
    found["port"] = 80
    entries.update(3, found)
    assert entries.lookup(3)["port"] == 80


def test_scalars_and_arrays_are_values_too(sample: BpfObject) -> None:
    """A value that is a number is one; a value that is an array has its shape."""
    prefixes, triples = sample.maps["prefixes"], sample.maps["triples"]
    prefixes.update((24, [192, 0, 2, 0]), 7)
    assert prefixes.lookup((32, [192, 0, 2, 99])) == 7
    triples.update(1, [1, 2, 3])
    assert triples.lookup(1).tolist() == [1, 2, 3]
    assert triples.snapshot()[1].shape == (4, 3)
    triples.update_batch(np.arange(4, dtype="u4"), np.arange(12, dtype="u8").reshape(4, 3))
    assert triples.lookup(3).tolist() == [9, 10, 11]


def test_what_is_not_there_is_none(sample: BpfObject) -> None:
    """Neither a key that was never stored nor an index beyond the end is an error to look up."""
    assert sample.maps["pairs"].lookup((1, 2)) is None
    assert sample.maps["entries"].lookup(16) is None


def test_flags_say_whether_a_key_must_be_new(sample: BpfObject) -> None:
    """Both refusals say why."""
    pairs = sample.maps["pairs"]
    value = np.zeros((), pairs.value_dtype)
    with pytest.raises(KernelError, match=r"update map pairs: .*ENOENT.*there is no such key"):
        pairs.update((1, 1), value, BPF_EXIST)
    pairs.update((1, 1), value, BPF_NOEXIST)
    with pytest.raises(KernelError, match=r"update map pairs: .*EEXIST.*that key is there already"):
        pairs.update((1, 1), value, BPF_NOEXIST)
    pairs.update((1, 1), value, BPF_EXIST)


def test_full_map_says_how_many_it_holds(sample: BpfObject) -> None:
    """The number is in the message."""
    entries = sample.maps["entries"]
    with pytest.raises(KernelError, match=r"update map entries: .*E2BIG.*holds 16 elements"):
        entries.update(16, bytes(12))


def test_deleting_what_is_not_there(sample: BpfObject) -> None:
    """It is an error unless it is allowed."""
    pairs = sample.maps["pairs"]
    pairs.update((1, 1), bytes(12))
    pairs.delete((1, 1))
    pairs.delete((1, 1), missing_ok=True)
    with pytest.raises(KernelError, match=r"delete from map pairs: .*there is no such key"):
        pairs.delete((1, 1))


def test_each_cpu_has_its_value(sample: BpfObject) -> None:
    """One value goes to all CPUs, an array to each its own; padding is not the caller's care."""
    made, cpus = sample.maps["by_cpu"], possible_cpus()
    made.update(1, (1, 2, [3] * 6))
    assert made.lookup(1)["port"].tolist() == [2] * cpus
    values = np.zeros(cpus, made.value_dtype)
    values["port"] = np.arange(cpus) + 10
    made.update(1, values)
    found = made.lookup(1)
    assert found.shape == (cpus,)
    assert found["port"].tolist() == [10 + cpu for cpu in range(cpus)]
    with pytest.raises(ValueError, match="value of map by_cpu"):
        made.update(1, np.zeros(cpus + 1, made.value_dtype))


def test_closed_map_says_so(sample: BpfObject) -> None:
    """Using a map after closing it is no access to somebody else's file."""
    made = sample.maps["pairs"]
    made.close()
    made.close()
    for attempt in (lambda: made.lookup((1, 1)), lambda: made.update((1, 1), bytes(12))):
        with pytest.raises(KernelError, match=r"map pairs: .*EBADF.*the map is closed"):
            attempt()


def test_missing_capabilities_are_named(sample: BpfObject) -> None:
    """Opening by id is what takes most."""
    number = sample.maps["pairs"].id
    with only(), pytest.raises(KernelError, match=r"EPERM.*needs CAP_SYS_ADMIN$"):
        Map.from_id(number)


# ---- Many elements -------------------------------------------------------------------------------


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize("name", KINDS)
def test_batches_are_many_single_calls(sample: BpfObject, name: str) -> None:
    """Stored together and read together is the same as one by one, for all kinds."""
    made = sample.maps[name]
    keys, values = some(made, min(made.max_entries, 50))
    made.update_batch(keys, values)
    for key, value in zip(keys, values, strict=True):
        assert made.lookup(key).tobytes() == value.tobytes()
    found_keys, found_values = made.snapshot()
    assert (found_keys.dtype, found_values.dtype) == (made.key_dtype, made.value_dtype)
    expected = {k.tobytes(): v.tobytes() for k, v in zip(keys, values, strict=True)}
    assert {k: v for k, v in as_dict(made).items() if k in expected} == expected
    assert [key.tobytes() for key in made.keys()] == [key.tobytes() for key in found_keys]  # noqa: SIM118


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize("name", ["pairs", "counts_by_cpu", "prefixes"])
def test_deleted_together(sample: BpfObject, name: str) -> None:
    """Only what was named goes; deleting while iterating is safe."""
    made = sample.maps[name]
    keys, values = some(made, 50)
    made.update_batch(keys, values)
    made.delete_batch(keys[:20])
    assert set(as_dict(made)) == {key.tobytes() for key in keys[20:]}
    for key in made.keys():  # noqa: SIM118 -- a map is no dict
        made.delete(key)
    assert as_dict(made) == {}


@pytest.mark.usefixtures("batches")
def test_failing_batches_say_why(sample: BpfObject) -> None:
    """The message is that of the single call."""
    pairs = sample.maps["pairs"]
    keys, values = some(pairs, 1025)
    with pytest.raises(KernelError, match=r"update map pairs: .*E2BIG.*holds 1024 elements"):
        pairs.update_batch(keys, values)
    assert len(pairs.snapshot()[0]) == 1024
    with pytest.raises(KernelError, match=r"update map pairs: .*EEXIST"):
        pairs.update_batch(keys[:2], values[:2], BPF_NOEXIST)
    missing = np.full(1, 0xFFFFFFFF, "u4,u4").astype(pairs.key_dtype)
    with pytest.raises(KernelError, match=r"delete from map pairs: .*there is no such key"):
        pairs.delete_batch(missing)


def test_nothing_to_do_is_done(sample: BpfObject) -> None:
    """Empty batches, and reading an empty map."""
    pairs = sample.maps["pairs"]
    keys, values = some(pairs, 0)
    pairs.update_batch(keys, values)
    pairs.delete_batch(keys)
    found_keys, found_values = pairs.snapshot()
    assert (found_keys.shape, found_values.shape) == ((0,), (0,))
    assert sample.maps["counts_by_cpu"].snapshot()[1].shape == (0, possible_cpus())
    assert list(pairs.items()) == []


def test_arrays_of_the_wrong_form_are_refused(sample: BpfObject) -> None:
    """Before anything is stored."""
    pairs = sample.maps["pairs"]
    keys, values = some(pairs, 3)
    wrong = [(keys, values[:2]), (keys["left"], values), (keys, values["port"])]
    for wrong_keys, wrong_values in wrong:
        with pytest.raises((ValueError, TypeError), match=r"(keys|values) of map pairs: of "):
            pairs.update_batch(wrong_keys, wrong_values)
    assert as_dict(pairs) == {}
    with pytest.raises(ValueError, match="values of map by_cpu"):
        sample.maps["by_cpu"].update_batch(np.arange(2), np.zeros(2, values.dtype))


def test_large_map_is_read_whole(opened: BpfObject) -> None:
    """More elements than one batch asks for, in buckets of any length."""
    opened.resize("pairs", 50_000)
    opened.load()
    pairs = opened.maps["pairs"]
    keys = np.zeros(50_000, pairs.key_dtype)
    keys["left"] = np.arange(50_000)
    values = np.zeros(50_000, pairs.value_dtype)
    values["addr"] = keys["left"] * 3
    pairs.update_batch(keys, values)
    found_keys, found_values = pairs.snapshot()
    assert sorted(found_keys["left"].tolist()) == list(range(50_000))
    assert np.array_equal(found_values["addr"], found_keys["left"] * 3)


numbers = st.integers(0, 30)
steps = st.one_of(
    st.tuples(st.just("update"), numbers, st.integers(0, 2**32 - 1)),
    st.tuples(st.just("delete"), numbers, st.just(0)),
    st.tuples(st.just("batch"), numbers, numbers),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(taken=st.lists(steps, max_size=30))
def test_map_is_a_dict(sample: BpfObject, taken: list[tuple[str, int, int]]) -> None:
    """Whatever is done to it, a hash map has what a dict would."""
    made = sample.maps["counts_by_cpu"]
    made.delete_batch(made.snapshot()[0])
    model: dict[int, int] = {}
    for step, key, value in taken:
        if step == "update":
            made.update(key, value)
            model[key] = value
        elif step == "delete":
            made.delete(key, missing_ok=True)
            model.pop(key, None)
        else:
            keys = np.arange(min(key, value), max(key, value), dtype="u4")
            made.update_batch(keys, np.repeat(keys[:, None], possible_cpus(), axis=1))
            model.update({int(each): int(each) for each in keys})
    assert {int(key): set(value.tolist()) for key, value in made.items()} == {
        key: {value} for key, value in model.items()
    }


# ---- Memory --------------------------------------------------------------------------------------


def test_memory_is_the_map(sample: BpfObject) -> None:
    """What is stored in the view is in the map, padding between elements included."""
    entries = sample.maps["entries"]
    with entries.mmap() as mapped:
        assert (mapped.array.shape, mapped.array.strides) == ((16,), (16,))
        mapped.array["port"] = np.arange(16) + 1000
        mapped.array[5]["mac"] = [5] * 6
    assert entries.lookup(15)["port"] == 1015
    assert entries.lookup(5)["mac"].tolist() == [5] * 6


@pytest.mark.parametrize(("start", "count"), [(0, 1), (255, 2), (256, 1), (300, 700), (999, 1)])
def test_window_is_that_part(opened: BpfObject, start: int, count: int) -> None:
    """Wherever page boundaries are, a window has the elements that it says."""
    opened.resize("entries", 1000)
    opened.load()
    entries = opened.maps["entries"]
    with entries.mmap() as whole, entries.mmap(start, count) as window:
        whole.array["addr"] = np.arange(1000)
        assert window.array["addr"].tolist() == list(range(start, start + count))
        window.array["port"] = 9
        assert whole.array["port"].sum() == 9 * count


def test_window_maps_only_its_pages(opened: BpfObject) -> None:
    """A window into a large map doesn't take the map's size of address space."""
    opened.resize("entries", 1 << 20)
    opened.load()
    with opened.maps["entries"].mmap(500_000, 10) as window:
        assert len(window._memory) <= 2 * 4096


def test_window_has_to_be_inside(sample: BpfObject) -> None:
    """The message says where and how large the map is."""
    entries = sample.maps["entries"]
    for start, count in ((0, 17), (16, 1), (-1, 1), (3, 0)):
        message = re.escape(f"map entries: elements {start} to {start + count} of 16")
        with pytest.raises(ValueError, match=message):
            entries.mmap(start, count)
    with pytest.raises(ValueError, match="map entries"):
        entries.mmap(16)


def test_globals_are_memory_too(sample: BpfObject) -> None:
    """The program counts where we look."""
    with sample.maps[".bss"].mmap() as mapped:
        sample.programs["count"].test_run(bytes(64), repeat=5)
        assert mapped.array[0]["runs"] == 5


def test_constants_are_memory_to_read(sample: BpfObject) -> None:
    """The section is frozen: writing is refused, by the kernel and by numpy."""
    rodata = sample.maps[".rodata"]
    with pytest.raises(KernelError, match=r"mmap map .rodata: .*the map is frozen"):
        rodata.mmap()
    with rodata.mmap(writable=False) as mapped:
        assert mapped.array[0]["verdict"] == 2
        with pytest.raises(ValueError, match="read-only"):
            mapped.array["verdict"] = 1
    with pytest.raises(KernelError, match=r"update map .rodata: .*the map is frozen"):
        rodata.update(0, rodata.lookup(0))


@pytest.mark.parametrize("name", ["triples", "pairs", "by_cpu"])
def test_other_maps_are_no_memory(sample: BpfObject, name: str) -> None:
    """The message says what can be mapped."""
    with pytest.raises(KernelError, match=f"mmap map {name}: .*only arrays declared with"):
        sample.maps[name].mmap()


def test_views_stay_valid_after_closing(sample: BpfObject) -> None:
    """The mapping is over, and yet what was taken from it can't fault."""
    entries = sample.maps["entries"]
    mapped = entries.mmap()
    ports = mapped.array["port"]
    mapped.close()
    mapped.close()
    with pytest.raises(ValueError, match="map entries: this mapping is closed"):
        _ = mapped.array
    ports[0] = 5
    assert entries.lookup(0)["port"] == 5


def test_mapping_outlives_the_map(sample: BpfObject) -> None:
    """Memory needs no file descriptor."""
    entries = sample.maps["entries"]
    with entries.mmap() as mapped:
        entries.close()
        mapped.array["addr"] = 1
        assert mapped.array["addr"].sum() == 16
