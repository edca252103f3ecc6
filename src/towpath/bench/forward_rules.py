# SPDX-License-Identifier: Apache-2.0
"""Load balancing by nftables: kube-proxy's rules for a service, and the fewest that do it."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from towpath.bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address

# Tables, chains and their order are those of kube-proxy's mode nftables for a ClusterIP service all
# of whose clients are to be masqueraded. What is for other kinds of services is left out: it would
# only cost more.
_KUBE_PROXY = """
table ip kube-proxy {{
  chain mark-for-masquerade {{
    mark set mark or 0x4000
  }}
  chain masquerading {{
    mark and 0x4000 == 0 return
    mark set mark xor 0x4000
    masquerade fully-random
  }}
{endpoints}
  chain service {{
    ip daddr {vip} udp dport {port} jump mark-for-masquerade
    numgen random mod {number} vmap {{ {chosen} }}
  }}
  map service-ips {{
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = {{ {vip} . udp . {port} : goto service }}
  }}
  map no-endpoint-services {{
    type ipv4_addr . inet_proto . inet_service : verdict
  }}
  chain services {{
    ip daddr . meta l4proto . th dport vmap @service-ips
  }}
  chain service-endpoints-check {{
    ip daddr . meta l4proto . th dport vmap @no-endpoint-services
  }}
  chain filter-prerouting {{
    type filter hook prerouting priority -110
    ct state new jump service-endpoints-check
  }}
  chain filter-forward {{
    type filter hook forward priority -110
    ct state new jump service-endpoints-check
  }}
  chain nat-prerouting {{
    type nat hook prerouting priority dstnat
    jump services
  }}
  chain nat-postrouting {{
    type nat hook postrouting priority srcnat
    jump masquerading
  }}
}}
"""
_ENDPOINT = """
  chain endpoint-{number} {{
    ip saddr {address} jump mark-for-masquerade
    meta l4proto udp dnat to {address}:{port}
  }}"""

_SHORT = """
table ip short {{
  chain prerouting {{
    type nat hook prerouting priority dstnat
    ip daddr {vip} udp dport {port} dnat to numgen random mod {number} map {{ {chosen} }}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat
    masquerade
  }}
}}
"""

_MASQUERADE = """
table ip pods {
  chain postrouting {
    type nat hook postrouting priority srcnat
    oifname "%s" masquerade
  }
}
"""

# What the kernel needs, and the least that shows whether it has it.
_NEEDED = {
    "NF_TABLES_IPV4": "type filter hook prerouting priority 0",
    "NFT_CT (NF_CONNTRACK)": "type filter hook prerouting priority 0; ct state new accept",
    "NFT_NAT": "type nat hook prerouting priority dstnat; dnat to 192.0.2.1",
    "NFT_MASQ": "type nat hook postrouting priority srcnat; masquerade",
    "NFT_NUMGEN": "type filter hook prerouting priority 0; numgen random mod 2 == 1 accept",
}


def kube_proxy(vip: IPv4Address, port: int, backends: Sequence[IPv4Address]) -> str:
    """Return a UDP service's rules as kube-proxy's mode nftables has them."""
    return _KUBE_PROXY.format(
        vip=vip,
        port=port,
        number=len(backends),
        endpoints="".join(
            _ENDPOINT.format(number=number, address=address, port=port)
            for number, address in enumerate(backends)
        ),
        chosen=", ".join(f"{number} : goto endpoint-{number}" for number in range(len(backends))),
    )


def short(vip: IPv4Address, port: int, backends: Sequence[IPv4Address]) -> str:
    """Return two rules that do the same."""
    return _SHORT.format(
        vip=vip,
        port=port,
        number=len(backends),
        chosen=", ".join(f"{number} : {address}" for number, address in enumerate(backends)),
    )


def masquerade(device: str) -> str:
    """Return the one rule that masquerades what leaves by a device."""
    return _MASQUERADE % device


def load(rules: str) -> None:
    """Put rules in the calling thread's network namespace.

    BenchError: nft isn't installed, or the kernel can't; the message says what it lacks.
    """
    refused = _nft(rules, "-f")
    if not refused:
        return
    lacks = [name for name, rule in _NEEDED.items() if _nft(_table(rule), "-c", "-f")]
    if lacks:
        raise BenchError(f"this kernel has no {', '.join(lacks)}, which nftables' ways need")
    raise BenchError(f"nft refuses the rules: {refused}")


def _table(rule: str) -> str:
    return f"table ip probe {{ chain probe {{ {rule}; }}; }}"


def _nft(rules: str, *options: str) -> str:
    """Run nft; returns what it complains of."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    found = shutil.which("nft", path=path)
    if found is None:
        raise BenchError(
            "nft is not installed: install the package nftables, or choose other ways by --way"
        )
    done = subprocess.run(
        [found, *options, "-"], input=rules, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return ""
    return done.stderr.strip().partition("\n")[0] or f"exit code {done.returncode}"
