# SPDX-License-Identifier: Apache-2.0
"""The system's libbpf, by ctypes: prototypes, option structs and what the library prints.

Nothing here interprets. Functions keep their C names and conventions: those that return an int
return a negative error number, those that return a pointer return NULL and set errno. `check` and
`check_pointer` turn both into `KernelError`.

The library is opened at the first call, so that importing this module is free and works where
libbpf isn't installed.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_char, c_char_p, c_int, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any, TypeVar

from towpath.kernel.errors import KernelError

SONAME = "libbpf.so.1"
OLDEST = (1, 1)  # Debian 12's

# ---- Option structs, <bpf/libbpf.h> and <bpf/bpf.h> ---------------------------------------------
#
# `sz` says how much of a struct the caller knows; a library that knows more takes the rest as zero
# and one that knows less refuses what isn't zero. So each ends with the last field used here.


class _Sized(ctypes.Structure):
    """A struct whose first field is its own size."""

    def __init__(self, **values: Any) -> None:
        super().__init__(sz=ctypes.sizeof(type(self)), **values)


class ObjectOpenOpts(_Sized):
    _fields_ = (("sz", c_size_t), ("object_name", c_char_p))


class MapCreateOpts(_Sized):
    _fields_ = (
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
    )


class MapBatchOpts(_Sized):
    _fields_ = (("sz", c_size_t), ("elem_flags", c_uint64), ("flags", c_uint64))


class TestRunOpts(_Sized):
    __test__ = False  # pytest: this is not a test case

    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
    )


class LinkCreateOpts(_Sized):
    _fields_ = (("sz", c_size_t), ("flags", c_uint32), ("_pad", c_uint32))


class XdpQueryOpts(_Sized):
    _fields_ = (
        ("sz", c_size_t),
        ("prog_id", c_uint32),
        ("drv_prog_id", c_uint32),
        ("hw_prog_id", c_uint32),
        ("skb_prog_id", c_uint32),
        ("attach_mode", c_uint8),
    )


class TcHook(_Sized):
    _fields_ = (("sz", c_size_t), ("ifindex", c_int), ("attach_point", c_int), ("parent", c_uint32))


class TcOpts(_Sized):
    _fields_ = (
        ("sz", c_size_t),
        ("prog_fd", c_int),
        ("flags", c_uint32),
        ("prog_id", c_uint32),
        ("handle", c_uint32),
        ("priority", c_uint32),
    )


# ---- What the kernel tells of an object, <linux/bpf.h> -------------------------------------------
#
# Also growing structs: a kernel that knows less leaves the tail zero.


class MapInfo(ctypes.Structure):
    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", c_char * 16),
        ("ifindex", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("btf_id", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("_pad", c_uint32),
    )


class ProgInfo(ctypes.Structure):
    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", c_char * 16),
        ("ifindex", c_uint32),
        ("gpl_compatible", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("nr_jited_ksyms", c_uint32),
        ("nr_jited_func_lens", c_uint32),
        ("jited_ksyms", c_uint64),
        ("jited_func_lens", c_uint64),
        ("btf_id", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("func_info", c_uint64),
        ("nr_func_info", c_uint32),
        ("nr_line_info", c_uint32),
        ("line_info", c_uint64),
        ("jited_line_info", c_uint64),
        ("nr_jited_line_info", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("jited_line_info_rec_size", c_uint32),
        ("nr_prog_tags", c_uint32),
        ("prog_tags", c_uint64),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
        ("recursion_misses", c_uint64),
        ("verified_insns", c_uint32),
        ("attach_btf_obj_id", c_uint32),
        ("attach_btf_id", c_uint32),
        ("_pad", c_uint32),
    )


class BtfInfo(ctypes.Structure):
    _fields_ = (
        ("btf", c_uint64),
        ("btf_size", c_uint32),
        ("id", c_uint32),
        ("name", c_uint64),
        ("name_len", c_uint32),
        ("kernel_btf", c_uint32),
    )


class LinkInfo(ctypes.Structure):
    """`ifindex` and `attach_type` are those of XDP and TCX links; other kinds use them otherwise."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("_pad", c_uint32),
        ("ifindex", c_uint32),
        ("attach_type", c_uint32),
        ("_rest", c_uint64 * 4),
    )


# ---- Prototypes ----------------------------------------------------------------------------------

_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_COUNT = POINTER(c_uint32)

_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "libbpf_major_version": (c_uint32, ()),
    "libbpf_minor_version": (c_uint32, ()),
    "libbpf_set_print": (c_void_p, (_PRINT,)),
    "libbpf_num_possible_cpus": (c_int, ()),
    "libbpf_probe_bpf_prog_type": (c_int, (c_int, c_void_p)),
    "libbpf_probe_bpf_map_type": (c_int, (c_int, c_void_p)),
    "libbpf_probe_bpf_helper": (c_int, (c_int, c_int, c_void_p)),
    # objects
    "bpf_object__open_file": (c_void_p, (c_char_p, POINTER(ObjectOpenOpts))),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__btf": (c_void_p, (c_void_p,)),
    "bpf_object__next_map": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__find_map_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__find_program_by_name": (c_void_p, (c_void_p, c_char_p)),
    "btf__raw_data": (c_void_p, (c_void_p, _COUNT)),
    "bpf_map__name": (c_char_p, (c_void_p,)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__type": (c_int, (c_void_p,)),
    "bpf_map__key_size": (c_uint32, (c_void_p,)),
    "bpf_map__value_size": (c_uint32, (c_void_p,)),
    "bpf_map__max_entries": (c_uint32, (c_void_p,)),
    "bpf_map__map_flags": (c_uint32, (c_void_p,)),
    "bpf_map__btf_key_type_id": (c_uint32, (c_void_p,)),
    "bpf_map__btf_value_type_id": (c_uint32, (c_void_p,)),
    "bpf_map__set_max_entries": (c_int, (c_void_p, c_uint32)),
    "bpf_map__reuse_fd": (c_int, (c_void_p, c_int)),
    "bpf_map__initial_value": (c_void_p, (c_void_p, POINTER(c_size_t))),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__autoload": (ctypes.c_bool, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, ctypes.c_bool)),
    # maps
    "bpf_map_create": (
        c_int,
        (c_int, c_char_p, c_uint32, c_uint32, c_uint32, POINTER(MapCreateOpts)),
    ),
    "bpf_map_lookup_elem": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_map_update_elem": (c_int, (c_int, c_void_p, c_void_p, c_uint64)),
    "bpf_map_delete_elem": (c_int, (c_int, c_void_p)),
    "bpf_map_get_next_key": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_map_lookup_batch": (
        c_int,
        (c_int, c_void_p, c_void_p, c_void_p, c_void_p, _COUNT, POINTER(MapBatchOpts)),
    ),
    "bpf_map_update_batch": (c_int, (c_int, c_void_p, c_void_p, _COUNT, POINTER(MapBatchOpts))),
    "bpf_map_delete_batch": (c_int, (c_int, c_void_p, _COUNT, POINTER(MapBatchOpts))),
    # programs, links, pins, ids
    "bpf_prog_load": (c_int, (c_int, c_char_p, c_char_p, c_void_p, c_size_t, c_void_p)),
    "bpf_prog_test_run_opts": (c_int, (c_int, POINTER(TestRunOpts))),
    "bpf_link_create": (c_int, (c_int, c_int, c_int, POINTER(LinkCreateOpts))),
    "bpf_link_update": (c_int, (c_int, c_int, c_void_p)),
    "bpf_link_detach": (c_int, (c_int,)),
    "bpf_xdp_query": (c_int, (c_int, c_int, POINTER(XdpQueryOpts))),
    "bpf_tc_hook_create": (c_int, (POINTER(TcHook),)),
    "bpf_tc_attach": (c_int, (POINTER(TcHook), POINTER(TcOpts))),
    "bpf_tc_detach": (c_int, (POINTER(TcHook), POINTER(TcOpts))),
    "bpf_tc_query": (c_int, (POINTER(TcHook), POINTER(TcOpts))),
    "bpf_obj_pin": (c_int, (c_int, c_char_p)),
    "bpf_obj_get": (c_int, (c_char_p,)),
    "bpf_obj_get_info_by_fd": (c_int, (c_int, c_void_p, _COUNT)),
    "bpf_map_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_prog_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_link_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_btf_get_fd_by_id": (c_int, (c_uint32,)),
}


@cache
def _shared_object() -> ctypes.CDLL:
    """Open the library once, and take over what it prints."""
    try:
        shared = ctypes.CDLL(SONAME, use_errno=True)
        found = (shared.libbpf_major_version(), shared.libbpf_minor_version())
    except (OSError, AttributeError) as error:
        raise KernelError(
            f"open {SONAME} ({error})", hint="install the package libbpf1, version 1.1 or newer"
        ) from error
    if found < OLDEST:
        raise KernelError(f"libbpf {found[0]}.{found[1]} is too old", hint="1.1 or newer is needed")
    shared.libbpf_set_print(_print)
    return shared


class _Library:
    """The functions of `_PROTOTYPES`, each bound when first used."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        restype, argtypes = _PROTOTYPES[name]
        function = getattr(_shared_object(), name)
        function.restype = restype
        function.argtypes = argtypes
        setattr(self, name, function)
        return function  # type: ignore[no-any-return]


lib = _Library()


def version() -> str:
    """The library's version, as "1.1"."""
    return f"{lib.libbpf_major_version()}.{lib.libbpf_minor_version()}"


# ---- What the library prints ---------------------------------------------------------------------

_captured = threading.local()
_libc = ctypes.CDLL(None)
_libc.free.argtypes = (c_void_p,)
_WARNING = 0


@_PRINT
def _print(level: int, template: bytes, arguments: int) -> int:
    """libbpf's print function: keeps warnings for `captured`, and drops the rest.

    `arguments` is a va_list. Both x86-64 (an array) and AArch64 (a struct of 32 bytes) pass that as
    a pointer, which is all that vasprintf needs to get it passed on.
    """
    lines: list[str] | None = getattr(_captured, "lines", None)
    if level == _WARNING and lines is not None:
        text = c_char_p()
        if _libc.vasprintf(ctypes.byref(text), c_char_p(template), c_void_p(arguments)) >= 0:
            lines.append((text.value or b"").decode(errors="replace"))
            _libc.free(text)
    return 0


@contextmanager
def captured() -> Iterator[list[str]]:
    """Collect the warnings that libbpf prints in this thread inside the block."""
    outer: list[str] | None = getattr(_captured, "lines", None)
    _captured.lines = lines = []
    try:
        yield lines
    finally:
        _captured.lines = outer


InfoT = TypeVar("InfoT", bound=ctypes.Structure)

# ---- Results -------------------------------------------------------------------------------------


def check(result: int, what: str, hint: str = "") -> int:
    """`result`, unless it is a negative error number: then KernelError."""
    if result < 0:
        raise KernelError(what, -result, hint)
    return result


def check_pointer(result: int | None, what: str, hint: str = "") -> int:
    """`result`, unless it is NULL: then KernelError with the thread's errno."""
    if not result:
        raise KernelError(what, ctypes.get_errno(), hint)
    return result


def get_info(fd: int, info: InfoT, what: str) -> InfoT:
    """Fill `info` with what the kernel tells of the object behind `fd`, and return it."""
    length = c_uint32(ctypes.sizeof(info))
    check(lib.bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(length)), what)
    return info
