# SPDX-License-Identifier: Apache-2.0
"""Maps: one element at a time, many at a time, and array maps as memory."""

from __future__ import annotations

import ctypes
import errno as errnos
import os
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from towpath.closeable import Closeable
from towpath.kernel.bpf import _batch, bpffs
from towpath.kernel.bpf._records import Array, Record, encode, encode_all, round_up, view
from towpath.kernel.bpf._structs import BtfInfo, MapInfo
from towpath.kernel.bpf.btf import Btf, Dtype
from towpath.kernel.bpf.layout import Layout, opaque
from towpath.kernel.bpf.libbpf import check, get_info, lib
from towpath.kernel.bpf.map_types import BPF_ANY, MapType
from towpath.kernel.bpf.mmap import MappedArray
from towpath.kernel.errors import (
    CAP_BPF,
    KernelError,
    permission_hint,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


_PER_CPU = frozenset(
    {
        MapType.PERCPU_HASH,
        MapType.PERCPU_ARRAY,
        MapType.LRU_PERCPU_HASH,
        MapType.PERCPU_CGROUP_STORAGE,
    }
)


@cache
def possible_cpus() -> int:
    """How many values a per-CPU map has for each key."""
    return check(lib.libbpf_num_possible_cpus(), "count possible CPUs")


class Map(Closeable):
    """One map in the kernel, through a file descriptor of its own.

    Keys and values have the dtypes of the BTF they were declared with; a map without BTF has plain
    unsigned numbers of 1, 2, 4 or 8 bytes, else opaque bytes. Whatever takes a key or a value takes
    a number, a tuple for a struct, a numpy object of that dtype, or bytes of the right size.

    A context manager, which closes the file descriptor. The map lives on while a program uses it
    or a pin names it.
    """

    def __init__(
        self, fd: int, *, name: str = "", key: Dtype | None = None, value: Dtype | None = None
    ) -> None:
        self.fd = fd
        info = get_info(fd, MapInfo(), f"ask for the map behind file descriptor {fd}")
        self.name: str = name or info.name.decode()
        self.id: int = info.id
        self.type: int = info.type
        self.max_entries: int = info.max_entries
        self.flags: int = info.map_flags
        self.is_percpu = self.type in _PER_CPU
        self.key_dtype = key or plain_dtype(info.key_size)
        self.value_dtype = value or plain_dtype(info.value_size)
        self._layout = Layout(
            self.type,
            key or opaque(info.key_size),
            value or opaque(info.value_size),
            self.max_entries,
            self.flags,
        )
        # What values take in an exchange with the kernel: those of a per-CPU map are padded.
        self._stride = round_up(info.value_size) if self.is_percpu else info.value_size
        cpus = possible_cpus() if self.is_percpu else 1
        self._sizes = _batch.Sizes(info.key_size, self._stride * cpus)

    @classmethod
    def from_pin(cls, path: Path | str, btf: Btf | None = None) -> Self:
        """The map pinned at ``path``, with the types that the kernel keeps for it.

        It keeps none for some kinds (device maps, maps of maps), and tells them only to those who
        have CAP_SYS_ADMIN: then ``btf`` is asked for a map of that name. KernelError: no map is
        pinned there, or its types are neither told nor given.
        """
        return cls._from_fd(bpffs.open_pin(path, "map"), btf)

    @classmethod
    def from_id(cls, number: int, btf: Btf | None = None) -> Self:
        """The map with that id, types as by `from_pin`. KernelError: there is none."""
        fd = bpffs.check_id(lib.bpf_map_get_fd_by_id(number), "map", number)
        return cls._from_fd(fd, btf)

    @classmethod
    def _from_fd(cls, fd: int, btf: Btf | None) -> Self:
        with ExitStack() as undo:
            undo.callback(os.close, fd)
            key, value = _types_of(get_info(fd, MapInfo(), "ask for a map"), btf)
            made = cls(fd, key=key, value=value)
            undo.pop_all()
            return made

    @property
    def layout(self) -> Layout:
        """Type, dtypes, size and flags together, to compare with another map's."""
        return self._layout

    # ---- One element -----------------------------------------------------------------------------

    def lookup(self, key: Record) -> Any:
        """The value of ``key``, None when it isn't there.

        A numpy scalar or record; of a per-CPU map an array with one for each possible CPU.
        """
        key_bytes = encode(key, self.key_dtype, f"key of map {self.name}")
        with self._errors("look up in"):
            value = _batch.lookup(self.fd, key_bytes, self._sizes.value)
        return None if value is None else self._values(bytearray(value), 1)[0]

    def update(self, key: Record, value: Record, flags: int = BPF_ANY) -> None:
        """Store a value: BPF_NOEXIST only as a new key, BPF_EXIST only for a key that is there.

        A per-CPU map takes one value for all CPUs or an array of one for each. KernelError: EEXIST
        or ENOENT by ``flags``, E2BIG when the map is full or the index is beyond its end.
        """
        key_bytes = encode(key, self.key_dtype, f"key of map {self.name}")
        value_bytes = self._encode_value(value)
        self._check(lib.bpf_map_update_elem(self.fd, key_bytes, value_bytes, flags), "update")

    def _encode_value(self, value: Record) -> bytes:
        what = f"value of map {self.name}"
        if not self.is_percpu:
            return encode(value, self.value_dtype, what)
        cpus, shape = possible_cpus(), self.value_dtype.shape
        if isinstance(value, np.ndarray) and value.shape == (cpus, *shape):
            return self._packed(value[np.newaxis], 1)
        one = encode(value, self.value_dtype, what)
        return one.ljust(self._stride, b"\0") * cpus

    def delete(self, key: Record, *, missing_ok: bool = False) -> None:
        """Remove a key. KernelError: ENOENT when it isn't there, unless ``missing_ok``."""
        key_bytes = encode(key, self.key_dtype, f"key of map {self.name}")
        result = lib.bpf_map_delete_elem(self.fd, key_bytes)
        if not (missing_ok and result == -errnos.ENOENT):
            self._check(result, "delete from")

    # ---- All elements ----------------------------------------------------------------------------

    def keys(self) -> Iterator[Any]:
        """The keys that were there at the call: deleting while iterating is safe."""
        return iter(self.snapshot()[0])

    def items(self) -> Iterator[tuple[Any, Any]]:
        """The pairs of key and value that were there at the call."""
        return zip(*self.snapshot(), strict=True)

    def snapshot(self) -> tuple[Array, Array]:
        """All keys, shape ``(n,)``, and their values, shape ``(n,)`` or ``(n, cpus)``.

        Not one moment's state: what is written meanwhile may be in it or not.
        """
        keys, values = bytearray(), bytearray()
        with self._errors("read"):
            for some_keys, some_values in _batch.read(self.fd, self._sizes, self.max_entries):
                keys += some_keys
                values += some_values
        count = len(keys) // self._sizes.key
        return self._keys(keys, count), self._values(values, count)

    # ---- Many elements ---------------------------------------------------------------------------

    def update_batch(self, keys: Array, values: Array, flags: int = BPF_ANY) -> None:
        """Store many values, in order: one call where the kernel can, else one after the other.

        ``keys`` has shape ``(n,)``, ``values`` ``(n,)`` or ``(n, cpus)``, each followed by the
        shape of its dtype if that is an array. KernelError as for `update`: what is before the
        failing key has been stored.
        """
        count = len(keys)
        packed_keys = self._packed_keys(keys)
        packed = self._packed(np.asarray(values), count)
        if count:
            with self._errors("update"):
                _batch.update(self.fd, self._sizes, packed_keys, packed, flags)

    def delete_batch(self, keys: Array) -> None:
        """Remove many keys, in order. KernelError: ENOENT at the first that isn't there."""
        packed_keys = self._packed_keys(keys)
        if packed_keys:
            with self._errors("delete from"):
                _batch.delete(self.fd, self._sizes, packed_keys)

    # ---- Memory ----------------------------------------------------------------------------------

    def mmap(
        self, start: int = 0, count: int | None = None, *, writable: bool = True
    ) -> MappedArray:
        """Elements ``start`` to ``start + count`` (by default the rest) as memory.

        Only what these elements need is mapped. ValueError: outside the map. KernelError: the map
        isn't an array with BPF_F_MMAPABLE, or is frozen.
        """
        if count is None:
            count = self.max_entries - start
        if start < 0 or count < 1 or start + count > self.max_entries:
            raise ValueError(
                f"map {self.name}: elements {start} to {start + count} of {self.max_entries}"
            )
        return MappedArray(self.fd, self.name, self.value_dtype, start, count, writable=writable)

    # ---- Life ------------------------------------------------------------------------------------

    def pin(self, path: Path | str) -> None:
        """Name the map in a BPF file system, which keeps it. KernelError."""
        bpffs.pin(self.fd, path, f"map {self.name}")

    def close(self) -> None:
        """Close the file descriptor. Twice is once."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __repr__(self) -> str:
        return f"<Map {self.name} id {self.id}>"

    # ---- Bytes -----------------------------------------------------------------------------------

    def _packed_keys(self, keys: Array) -> bytes:
        what = f"keys of map {self.name}"
        return encode_all(keys, self.key_dtype, len(keys), what).tobytes()

    def _keys(self, buffer: Any, count: int) -> Array:
        return view(buffer, self.key_dtype, (count,), (self.key_dtype.itemsize,))

    def _values(self, buffer: Any, count: int) -> Array:
        if self.is_percpu:
            shape, strides = (count, possible_cpus()), (self._sizes.value, self._stride)
            return view(buffer, self.value_dtype, shape, strides)
        return view(buffer, self.value_dtype, (count,), (self._sizes.value,))

    def _packed(self, values: Array, count: int) -> bytes:
        what = f"values of map {self.name}"
        if not self.is_percpu:
            return encode_all(values, self.value_dtype, count, what).tobytes()
        each = np.dtype((self.value_dtype.base, (possible_cpus(), *self.value_dtype.shape)))
        buffer = bytearray(count * self._sizes.value)
        self._values(buffer, count)[...] = encode_all(values, each, count, what)
        return bytes(buffer)

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except _batch.BatchError as error:
            self._check(-error.number, verb)

    def _check(self, result: int, verb: str) -> None:
        if result < 0:
            hint = _HINTS.get(-result, "").format(n=self.max_entries)
            if result == -errnos.EPERM and not self._frozen():
                hint = permission_hint(CAP_BPF)
            raise KernelError(f"{verb} map {self.name}", -result, hint)

    def _frozen(self) -> bool:
        return "frozen:\t1" in Path(f"/proc/self/fdinfo/{self.fd}").read_text()


_HINTS = {
    errnos.E2BIG: "it holds {n} elements at most",
    errnos.ENOSPC: "it holds {n} elements at most",
    errnos.ENOENT: "there is no such key",
    errnos.EEXIST: "that key is there already",
    errnos.EPERM: "the map is frozen",
    errnos.EBADF: "the map is closed",
}


def plain_dtype(size: int) -> Dtype:
    """What a key or value of so many bytes has that was declared without a type."""
    return np.dtype(f"u{size}") if size in (1, 2, 4, 8) else opaque(size)


def _types_of(info: MapInfo, btf: Btf | None) -> tuple[Dtype | None, Dtype | None]:
    """The dtypes of a map's key and value, None for what is not known."""
    kept = _kernel_btf(info.btf_id, needed=btf is None) if info.btf_id else None
    if kept is not None:
        btf, numbers = kept, (info.btf_key_type_id, info.btf_value_type_id)
    elif btf is not None:
        numbers = btf.map_types(info.name.decode()) or (0, 0)
    else:
        return None, None
    key, value = (btf.dtype_of(number) if number else None for number in numbers)
    return _if_of_size(key, info.key_size), _if_of_size(value, info.value_size)


def _if_of_size(dtype: Dtype | None, size: int) -> Dtype | None:
    return dtype if dtype is not None and dtype.itemsize == size else None


def _kernel_btf(number: int, *, needed: bool) -> Btf | None:
    """The BTF with that id, as the kernel keeps it; None if it isn't told and not needed."""
    fd = lib.bpf_btf_get_fd_by_id(number)
    if fd == -errnos.EPERM and not needed:
        return None
    bpffs.check_id(fd, "BTF", number)
    try:
        what = f"read BTF with id {number}"
        size = get_info(fd, BtfInfo(), what).btf_size
        buffer = ctypes.create_string_buffer(size)
        get_info(fd, BtfInfo(btf=ctypes.addressof(buffer), btf_size=size), what)
        return Btf.from_bytes(buffer.raw)
    finally:
        os.close(fd)
