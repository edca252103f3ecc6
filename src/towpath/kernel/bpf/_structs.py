# SPDX-License-Identifier: Apache-2.0
"""Structs that go to libbpf and to the kernel, field by field as in their headers."""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_char_p, c_int, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Any

# ---- Option structs, <bpf/libbpf.h> and <bpf/bpf.h> ---------------------------------------------
#
# `sz` says how much of a struct the caller knows; a library that knows more takes the rest as zero
# and one that knows less refuses what isn't zero. So each ends with the last field used here.


class _Sized(ctypes.Structure):
    """A struct whose first field is its own size."""

    def __init__(self, **values: Any) -> None:
        super().__init__(sz=ctypes.sizeof(type(self)), **values)


class ObjectOpenOpts(_Sized):
    """struct bpf_object_open_opts."""

    _fields_ = (("sz", c_size_t), ("object_name", c_char_p))


class MapCreateOpts(_Sized):
    """struct bpf_map_create_opts."""

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
    """struct bpf_map_batch_opts."""

    _fields_ = (("sz", c_size_t), ("elem_flags", c_uint64), ("flags", c_uint64))


class ProgLoadOpts(_Sized):
    """struct bpf_prog_load_opts."""

    _fields_ = (
        ("sz", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_int),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_ifindex", c_uint32),
        ("kern_version", c_uint32),
        ("attach_btf_id", c_uint32),
        ("attach_prog_fd", c_uint32),
        ("attach_btf_obj_fd", c_uint32),
        ("fd_array", c_void_p),
        ("func_info", c_void_p),
        ("func_info_cnt", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("line_info", c_void_p),
        ("line_info_cnt", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_void_p),
    )


class TestRunOpts(_Sized):
    """struct bpf_test_run_opts."""

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
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class LinkCreateOpts(_Sized):
    """struct bpf_link_create_opts."""

    _fields_ = (("sz", c_size_t), ("flags", c_uint32), ("_pad", c_uint32))


class TcxLinkAttr(ctypes.Structure):
    """union bpf_attr for BPF_LINK_CREATE at tc: libbpf before 1.3 doesn't know all of it."""

    _fields_ = (
        ("prog_fd", c_uint32),
        ("target_ifindex", c_uint32),
        ("attach_type", c_uint32),
        ("flags", c_uint32),
        ("relative_id", c_uint32),
        ("_pad", c_uint32),
        ("expected_revision", c_uint64),
    )


class IterLinkInfo(ctypes.Structure):
    """union bpf_iter_link_info, of an iterator over a map's elements."""

    _fields_ = (("map_fd", c_uint32), ("_pad", c_uint32 * 7))


class IterLinkCreateOpts(_Sized):
    """struct bpf_link_create_opts, of an iterator."""

    _fields_ = (
        ("sz", c_size_t),
        ("flags", c_uint32),
        ("_pad", c_uint32),
        ("iter_info", c_void_p),
        ("iter_info_len", c_uint32),
        ("_pad2", c_uint32),
    )


class ExtensionLinkCreateOpts(_Sized):
    """struct bpf_link_create_opts, of a program that takes the place of a function."""

    _fields_ = (
        ("sz", c_size_t),
        ("flags", c_uint32),
        ("_pad", c_uint32),
        ("iter_info", c_void_p),
        ("iter_info_len", c_uint32),
        ("target_btf_id", c_uint32),
    )


class XdpAttachOpts(_Sized):
    """struct bpf_xdp_attach_opts."""

    _fields_ = (("sz", c_size_t), ("old_prog_fd", c_int), ("_pad", c_uint32))


class XdpQueryOpts(_Sized):
    """struct bpf_xdp_query_opts."""

    _fields_ = (
        ("sz", c_size_t),
        ("prog_id", c_uint32),
        ("drv_prog_id", c_uint32),
        ("hw_prog_id", c_uint32),
        ("skb_prog_id", c_uint32),
        ("attach_mode", c_uint8),
    )


class TcHook(_Sized):
    """struct bpf_tc_hook."""

    _fields_ = (("sz", c_size_t), ("ifindex", c_int), ("attach_point", c_int), ("parent", c_uint32))


class TcOpts(_Sized):
    """struct bpf_tc_opts."""

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
    """struct bpf_map_info."""

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
    """struct bpf_prog_info."""

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
    """struct bpf_btf_info."""

    _fields_ = (
        ("btf", c_uint64),
        ("btf_size", c_uint32),
        ("id", c_uint32),
        ("name", c_uint64),
        ("name_len", c_uint32),
        ("kernel_btf", c_uint32),
    )


class _OfDevice(ctypes.Structure):
    """Of XDP links, which have no attach type, and of TCX links."""

    _fields_ = (("ifindex", c_uint32), ("attach_type", c_uint32))


class _OfCgroup(ctypes.Structure):
    _fields_ = (("cgroup_id", c_uint64), ("attach_type", c_uint32))


class _OfTracepoint(ctypes.Structure):
    """``name`` is the address of a buffer, and ``name_len`` its size."""

    _fields_ = (("name", c_uint64), ("name_len", c_uint32))


class _OfTracing(ctypes.Structure):
    """5.10 tells no target. It is a program if this link's is an extension of it."""

    _fields_ = (("attach_type", c_uint32), ("target_obj_id", c_uint32), ("target_btf_id", c_uint32))


class _LinkTarget(ctypes.Union):
    _fields_ = (
        ("device", _OfDevice),
        ("cgroup", _OfCgroup),
        ("tracepoint", _OfTracepoint),
        ("tracing", _OfTracing),
        ("_room", c_uint64 * 5),
    )


class LinkInfo(ctypes.Structure):
    """struct bpf_link_info; which part of ``target`` counts is a matter of ``type``."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("_pad", c_uint32),
        ("target", _LinkTarget),
    )


# ---- What the kernel is asked by bpf(2) itself, <linux/bpf.h> ------------------------------------


class QueryAttr(ctypes.Structure):
    """union bpf_attr of BPF_PROG_QUERY.

    Kernels before 6.6 take what follows ``prog_attach_flags`` as zero only.
    """

    _fields_ = (
        ("target", c_uint32),
        ("attach_type", c_uint32),
        ("query_flags", c_uint32),
        ("attach_flags", c_uint32),
        ("prog_ids", c_uint64),
        ("count", c_uint32),
        ("_pad", c_uint32),
        ("prog_attach_flags", c_uint64),
        ("link_ids", c_uint64),
        ("link_attach_flags", c_uint64),
        ("revision", c_uint64),
    )
