# SPDX-License-Identifier: Apache-2.0
"""Hooks and links by the kernel's numbers, <linux/bpf.h>, and what messages call them."""

from __future__ import annotations

from enum import IntEnum


class LinkType(IntEnum):
    """BPF_LINK_TYPE_*, those that are used here."""

    RAW_TRACEPOINT = 1
    TRACING = 2
    CGROUP = 3
    XDP = 6
    TCX = 11


class AttachType(IntEnum):
    """BPF_* of enum bpf_attach_type: those of devices, of tracepoints and of cgroups."""

    CGROUP_INET_INGRESS = 0
    CGROUP_INET_EGRESS = 1
    CGROUP_INET_SOCK_CREATE = 2
    CGROUP_SOCK_OPS = 3
    CGROUP_DEVICE = 6
    CGROUP_INET4_BIND = 8
    CGROUP_INET6_BIND = 9
    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_INET4_POST_BIND = 12
    CGROUP_INET6_POST_BIND = 13
    CGROUP_UDP4_SENDMSG = 14
    CGROUP_UDP6_SENDMSG = 15
    CGROUP_SYSCTL = 18
    CGROUP_UDP4_RECVMSG = 19
    CGROUP_UDP6_RECVMSG = 20
    CGROUP_GETSOCKOPT = 21
    CGROUP_SETSOCKOPT = 22
    TRACE_RAW_TP = 23
    TRACE_ITER = 28
    CGROUP_INET4_GETPEERNAME = 29
    CGROUP_INET6_GETPEERNAME = 30
    CGROUP_INET4_GETSOCKNAME = 31
    CGROUP_INET6_GETSOCKNAME = 32
    CGROUP_INET_SOCK_RELEASE = 34
    XDP = 37
    TCX_INGRESS = 46
    TCX_EGRESS = 47


CGROUP_HOOKS: dict[int, str] = {
    AttachType.CGROUP_INET_INGRESS: "ingress",
    AttachType.CGROUP_INET_EGRESS: "egress",
    AttachType.CGROUP_INET_SOCK_CREATE: "sock_create",
    AttachType.CGROUP_INET_SOCK_RELEASE: "sock_release",
    AttachType.CGROUP_SOCK_OPS: "sockops",
    AttachType.CGROUP_INET4_BIND: "bind4",
    AttachType.CGROUP_INET6_BIND: "bind6",
    AttachType.CGROUP_INET4_POST_BIND: "post_bind4",
    AttachType.CGROUP_INET6_POST_BIND: "post_bind6",
    AttachType.CGROUP_INET4_CONNECT: "connect4",
    AttachType.CGROUP_INET6_CONNECT: "connect6",
    AttachType.CGROUP_UDP4_SENDMSG: "sendmsg4",
    AttachType.CGROUP_UDP6_SENDMSG: "sendmsg6",
    AttachType.CGROUP_UDP4_RECVMSG: "recvmsg4",
    AttachType.CGROUP_UDP6_RECVMSG: "recvmsg6",
    AttachType.CGROUP_INET4_GETPEERNAME: "getpeername4",
    AttachType.CGROUP_INET6_GETPEERNAME: "getpeername6",
    AttachType.CGROUP_INET4_GETSOCKNAME: "getsockname4",
    AttachType.CGROUP_INET6_GETSOCKNAME: "getsockname6",
    AttachType.CGROUP_GETSOCKOPT: "getsockopt",
    AttachType.CGROUP_SETSOCKOPT: "setsockopt",
    AttachType.CGROUP_DEVICE: "device",
    AttachType.CGROUP_SYSCTL: "sysctl",
}
"""The hooks of a cgroup, by libbpf's names of sections (``SEC("cgroup/connect4")``)."""


_NAMES: dict[int, str] = CGROUP_HOOKS | {
    AttachType.TRACE_RAW_TP: "tracepoint",
    AttachType.XDP: "xdp",
    AttachType.TCX_INGRESS: "tc ingress",
    AttachType.TCX_EGRESS: "tc egress",
}


def hook_name(number: int) -> str:
    """What messages call a hook: "connect4"; digits for one that isn't used here."""
    return _NAMES.get(number, str(number))
