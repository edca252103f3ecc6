# SPDX-License-Identifier: Apache-2.0
"""What this kernel's network can do, by trying it where nobody else is.

KernelError: no network namespace can be made. OSError: no veth device.
"""

from __future__ import annotations

import ctypes
import errno as errnos
import socket
import struct
from functools import cache
from pathlib import Path

from towpath.kernel.bpf import probe
from towpath.kernel.bpf._structs import TcHook, TcOpts
from towpath.kernel.bpf.libbpf import captured, lib
from towpath.kernel.bpf.programs import ProgramType
from towpath.kernel.bpf.sandbox import sandbox
from towpath.kernel.net.messages import CREATE, ROUTE, Netlink, attribute

_RTM_NEWNEIGH, _RTM_NEWRULE = 28, 32
_FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FR_ACT_TO_TBL = 6, 10, 15, 1
_NDMSG = struct.Struct("=BxxxiHBB")
_NDA_DST, _NDA_FLAGS_EXT = 1, 15
_NTF_EXT_ODD = 1 << 31
"""No flag that there is."""
_NO_DEVICE = 0x7FFFFFFF
_NO_RULES = (errnos.EAFNOSUPPORT, errnos.EOPNOTSUPP)
_IPV6_ADDRESSES = Path("/proc/thread-self/net/if_inet6")  # not there: IPv6 is switched off
_PEER = socket.inet_aton("192.0.2.2")


@cache
def clsact() -> bool:
    """Classic BPF filters at tc's ingress (clsact qdisc and cls_bpf)."""
    with sandbox() as network, probe.tiny(ProgramType.SCHED_CLS) as fd, captured():
        hook = TcHook(ifindex=network.near, attach_point=1)
        if lib.bpf_tc_hook_create(hook) < 0:
            return False
        return bool(lib.bpf_tc_attach(hook, ctypes.byref(TcOpts(prog_fd=fd))) == 0)


@cache
def managed_neighbours() -> bool:
    """Neighbours that the kernel keeps resolved: NTF_EXT_MANAGED (5.16).

    Kernels before ignore the attribute with the flag, whatever is in it; those that know it refuse
    what they don't know in it before they look for the device, and there is none. So nothing is
    made, and CAP_NET_ADMIN is enough.
    """
    entry = _NDMSG.pack(socket.AF_INET, _NO_DEVICE, 0, 0, 0) + attribute(_NDA_DST, _PEER)
    with Netlink(ROUTE) as netlink:
        try:
            netlink.ask(_RTM_NEWNEIGH, entry + attribute(_NDA_FLAGS_EXT, _NTF_EXT_ODD), CREATE)
        except OSError as error:
            if error.errno == errnos.ENODEV:
                return False
            if error.errno != errnos.EINVAL:
                raise
    return True


@cache
def rules_by_mark() -> bool:
    """What routes a packet goes by may depend on its socket's mark (CONFIG_IP_MULTIPLE_TABLES).

    Of IPv4, and of IPv6 (CONFIG_IPV6_MULTIPLE_TABLES) where that isn't switched off.
    """
    with sandbox() as network:
        families = [socket.AF_INET]
        if _IPV6_ADDRESSES.exists():
            families.append(socket.AF_INET6)
        for family in families:
            # Struct fib_rule_hdr: family, six bytes of 0, the action, flags.
            message = struct.pack("=B6xBI", family, _FR_ACT_TO_TBL, 0)
            for kind in (_FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE):
                message += attribute(kind, 1)
            try:
                network.netlink.ask(_RTM_NEWRULE, message, CREATE)
            except OSError as error:
                if error.errno not in _NO_RULES:
                    raise
                return False
        return True
