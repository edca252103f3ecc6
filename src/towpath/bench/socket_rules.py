# SPDX-License-Identifier: Apache-2.0
"""kube-proxy's rules for many services of TCP, as its mode nftables has them for a node's pods."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from towpath.bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from towpath.datapath.address import Address

# Tables, chains and their order are kube-proxy's for ClusterIP services whose clients are pods.
_TABLE = """
table {family} kube-proxy {{
  chain mark-for-masquerade {{
    mark set mark or 0x4000
  }}
  chain masquerading {{
    mark and 0x4000 == 0 return
    mark set mark xor 0x4000
    masquerade fully-random
  }}
{chains}
  map service-ips {{
    type {address} . inet_proto . inet_service : verdict
    elements = {{ {elements} }}
  }}
  map no-endpoint-services {{
    type {address} . inet_proto . inet_service : verdict
  }}
  chain services {{
    {word} daddr . meta l4proto . th dport vmap @service-ips
  }}
  chain service-endpoints-check {{
    {word} daddr . meta l4proto . th dport vmap @no-endpoint-services
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
_SECONDS = 600


def kube_proxy(vips: Sequence[Address], port: int, backends: Sequence[Address]) -> str:
    """Return the rules of services of TCP at these addresses, all with the same backends."""
    v6 = vips[0].version == 6  # noqa: PLR2004 - IPv6
    return _TABLE.format(
        family="ip6" if v6 else "ip",
        word="ip6" if v6 else "ip",
        address="ipv6_addr" if v6 else "ipv4_addr",
        chains="\n".join(_chains(vips, port, backends, "ip6" if v6 else "ip")),
        elements=", ".join(
            f"{vip} . tcp . {port} : goto service-{number}" for number, vip in enumerate(vips)
        ),
    )


def _chains(
    vips: Sequence[Address], port: int, backends: Sequence[Address], word: str
) -> Iterator[str]:
    for number in range(len(vips)):
        chosen = []
        for at, backend in enumerate(backends):
            name = f"endpoint-{number}-{at}"
            to = f"[{backend}]:{port}" if backend.version == 6 else f"{backend}:{port}"  # noqa: PLR2004
            yield f"  chain {name} {{"
            yield f"    {word} saddr {backend} jump mark-for-masquerade"
            yield f"    meta l4proto tcp dnat to {to}\n  }}"
            chosen.append(f"{at} : goto {name}")
        yield f"  chain service-{number} {{"
        yield f"    numgen random mod {len(backends)} vmap {{ {', '.join(chosen)} }}\n  }}"


def load(rules: str) -> None:
    """Put rules into the calling thread's network namespace. BenchError: nft refuses them."""
    try:
        subprocess.run(
            ["nft", "-f", "-"],
            input=rules,
            text=True,
            check=True,
            capture_output=True,
            timeout=_SECONDS,
        )
    except FileNotFoundError as error:
        raise BenchError("the program nft is missing; install the package nftables") from error
    except subprocess.CalledProcessError as error:
        raise BenchError(f"nft refuses the rules: {error.stderr[:300]}") from error
