# SPDX-License-Identifier: Apache-2.0
"""What people may write instead of the whole: a bare word, a protocol behind a port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from towpath.model.health import Health
from towpath.model.quic import Quic
from towpath.model.service import Affinity, Backend, Service
from towpath.model.settings import Device

if TYPE_CHECKING:
    from towpath.model.decode import Findings
    from towpath.model.problems import FieldPath

# What a bare word stands for: `devices: [eth0]`, `backends: [192.0.2.11]`, `affinity: 3h`,
# `health: tcp`, `quic: katran`.
_BARE: dict[type, str] = {
    Device: "name",
    Backend: "address",
    Affinity: "timeout",
    Health: "type",
    Quic: "server_ids",
}


def written_out(cls: type, raw: object, path: FieldPath, found: Findings) -> object:
    """Return plain data for ``cls`` without its abbreviations."""
    if cls in _BARE and not isinstance(raw, cls | Mapping) and raw is not None:
        return {_BARE[cls]: raw}
    if cls is Service and isinstance(raw, Mapping):
        return _protocol_apart(raw, path, found)
    return raw


def _protocol_apart(raw: Mapping[str, Any], path: FieldPath, found: Findings) -> Mapping[str, Any]:
    """``port: 80/tcp`` means ``port: 80`` and ``protocol: tcp``."""
    pairs = [_pair(item) for item in _items(raw.get("port"))]
    protocols = dict.fromkeys(protocol for _, protocol in pairs if protocol)
    if not protocols:
        return raw
    if "protocol" in raw:
        protocols[raw["protocol"]] = None
    first, *others = protocols
    if others:
        named = " and ".join(map(str, protocols))
        found.add((*path, "port"), f"names {named}; allowed: one protocol to a service")
    return {**raw, "port": [port for port, _ in pairs], "protocol": first}


def _items(port: object) -> Sequence[object]:
    if isinstance(port, str):
        return port.split(",")
    return port if isinstance(port, list | tuple) else []


def _pair(item: object) -> tuple[object, str]:
    """Return what is before and behind the slash."""
    if not isinstance(item, str) or "/" not in item:
        return item, ""
    port, _, protocol = item.rpartition("/")
    return ("any" if port.strip() == "any" else port), protocol.strip()
