# SPDX-License-Identifier: Apache-2.0
"""kube-proxy's tables, as nft listed those of 1.37.2."""

from __future__ import annotations

from typing import Any

from towpath.core.kube_proxy import nft


def verdict_map(name: str, *elements: Any) -> dict[str, Any]:
    """A map of its table."""
    of = {"family": "ip", "name": name, "table": "kube-proxy", "map": "verdict"}
    return {"map": of | ({"elem": list(elements)} if elements else {})}


LISTED: list[dict[str, Any]] = [
    {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
    {"table": {"family": "ip", "name": "kube-proxy", "handle": 1}},
    {"set": {"name": "cluster-ips", "elem": ["10.96.0.1", "10.96.137.166"]}},
    {"set": {"name": "nodeport-ips", "elem": ["192.168.88.11"]}},
    verdict_map(
        "service-ips",
        [
            {"concat": ["10.96.137.166", "tcp", 80]},
            {"goto": {"target": "service-PFISGYVC-default/web/tcp/"}},
        ],
        [
            {"concat": ["10.96.0.1", "tcp", 443]},
            {"goto": {"target": "service-2QRHZV4L-default/kubernetes/tcp/https"}},
        ],
    ),
    verdict_map(
        "service-nodeports",
        [
            {"concat": ["tcp", 30168]},
            {"goto": {"target": "external-PFISGYVC-default/web/tcp/"}},
        ],
    ),
    verdict_map(
        "no-endpoint-services",
        [{"concat": ["10.96.7.7", "udp", 53]}, {"goto": {"target": "reject-chain"}}],
    ),
    verdict_map("no-endpoint-nodeports"),
]


def test_what_is_served_is_read() -> None:
    """ClusterIPs, node ports at each of the node's addresses, what has no endpoints."""
    found = nft.read("ip", LISTED, dormant=False)
    assert [str(each) for each in found.served] == [
        "10.96.0.1:443 tcp (default/kubernetes:https)",
        "10.96.137.166:80 tcp (default/web)",
        "10.96.7.7:53 udp (reject-chain)",
        "192.168.88.11:30168 tcp (default/web)",
    ]
    assert [each.node_port for each in found.served] == [False, False, False, True]


def test_tables_sleep_wake_and_go() -> None:
    """All of them in one batch, which is carried out as a whole."""
    tables = [nft.Table(family, dormant=False, served=()) for family in nft.FAMILIES]
    assert nft.put_to_sleep(tables).splitlines() == [
        "add table ip kube-proxy { flags dormant; }",
        "add table ip6 kube-proxy { flags dormant; }",
    ]
    assert nft.wake(tables).splitlines() == ["add table ip kube-proxy", "add table ip6 kube-proxy"]
    assert nft.delete(tables[:1]) == "delete table ip kube-proxy\n"
