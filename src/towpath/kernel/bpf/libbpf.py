# SPDX-License-Identifier: Apache-2.0
"""The system's libbpf, by ctypes: prototypes, and what the library prints.

Nothing here interprets. Functions keep their C names and conventions: those that return an int
return a negative error number, those that return a pointer return NULL and set errno. `check` and
`check_pointer` turn both into `KernelError`.

The library is opened at the first call, so that importing this module is free and works where
libbpf isn't installed.
"""

from __future__ import annotations

import ctypes
import threading
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from towpath.kernel.bpf._structs import (
    MapBatchOpts,
    MapCreateOpts,
    ObjectOpenOpts,
    ProgLoadOpts,
    TcHook,
    TcOpts,
    TestRunOpts,
    XdpAttachOpts,
    XdpQueryOpts,
)
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SONAME = "libbpf.so.1"
OLDEST = (1, 1)  # Debian 12's

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
    # objects
    "bpf_object__open_file": (c_void_p, (c_char_p, POINTER(ObjectOpenOpts))),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__btf": (c_void_p, (c_void_p,)),
    "bpf_object__next_map": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__find_map_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__find_program_by_name": (c_void_p, (c_void_p, c_char_p)),
    "btf__load_vmlinux_btf": (c_void_p, ()),
    "btf__find_by_name_kind": (c_int, (c_void_p, c_char_p, c_uint32)),
    "btf__free": (None, (c_void_p,)),
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
    "bpf_program__expected_attach_type": (c_int, (c_void_p,)),
    "bpf_program__set_expected_attach_type": (c_int, (c_void_p, c_int)),
    "bpf_program__autoload": (ctypes.c_bool, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, ctypes.c_bool)),
    "bpf_program__type": (c_int, (c_void_p,)),
    "bpf_program__flags": (c_uint32, (c_void_p,)),
    "bpf_program__set_flags": (c_int, (c_void_p, c_uint32)),
    "bpf_program__set_attach_target": (c_int, (c_void_p, c_int, c_char_p)),
    "bpf_program__set_log_level": (c_int, (c_void_p, c_uint32)),
    "bpf_program__set_log_buf": (c_int, (c_void_p, c_char_p, ctypes.c_size_t)),
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
    "bpf_prog_load": (
        c_int,
        (c_int, c_char_p, c_char_p, c_void_p, c_size_t, POINTER(ProgLoadOpts)),
    ),
    "bpf_prog_test_run_opts": (c_int, (c_int, POINTER(TestRunOpts))),
    "bpf_link_create": (c_int, (c_int, c_int, c_int, c_void_p)),
    "bpf_iter_create": (c_int, (c_int,)),
    "bpf_enable_stats": (c_int, (c_int,)),
    "bpf_link_update": (c_int, (c_int, c_int, c_void_p)),
    "bpf_link_detach": (c_int, (c_int,)),
    "bpf_raw_tracepoint_open": (c_int, (c_char_p, c_int)),
    "bpf_xdp_query": (c_int, (c_int, c_int, POINTER(XdpQueryOpts))),
    "bpf_xdp_attach": (c_int, (c_int, c_int, c_uint32, POINTER(XdpAttachOpts))),
    "bpf_xdp_detach": (c_int, (c_int, c_uint32, POINTER(XdpAttachOpts))),
    "bpf_tc_hook_create": (c_int, (POINTER(TcHook),)),
    "bpf_tc_hook_destroy": (c_int, (POINTER(TcHook),)),
    "bpf_tc_attach": (c_int, (POINTER(TcHook), POINTER(TcOpts))),
    "bpf_tc_detach": (c_int, (POINTER(TcHook), POINTER(TcOpts))),
    "bpf_tc_query": (c_int, (POINTER(TcHook), POINTER(TcOpts))),
    "bpf_obj_pin": (c_int, (c_int, c_char_p)),
    "bpf_obj_get": (c_int, (c_char_p,)),
    "bpf_obj_get_info_by_fd": (c_int, (c_int, c_void_p, _COUNT)),
    "bpf_map_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_prog_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_link_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_link_get_next_id": (c_int, (c_uint32, _COUNT)),
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


def _keep_warning(level: int, template: bytes, arguments: int) -> int:
    """Print for libbpf: keep warnings for `captured`, drop the rest.

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


_print = _PRINT(_keep_warning)  # kept: the library calls it for as long as the process lives


@contextmanager
def captured() -> Iterator[list[str]]:
    """Collect the warnings that libbpf prints in this thread inside the block."""
    outer: list[str] | None = getattr(_captured, "lines", None)
    lines: list[str] = []
    _captured.lines = lines
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
