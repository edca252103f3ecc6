# SPDX-License-Identifier: Apache-2.0
"""Kinds of tunnels in the words that ``bpf/abi/encap.h`` has for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.model.service import Tunnel

if TYPE_CHECKING:
    from collections.abc import Callable

    from towpath.model.service import Encap

_NAMES: dict[Encap, str] = {
    "ipip": "ENCAP_IPIP",
    "gre": "ENCAP_GRE",
    "fou": "ENCAP_FOU",
    "gue": "ENCAP_GUE",
    "gue0": "ENCAP_GUE0",
}


class Encaps:
    """``constant``: what an enumerator of an enum is, by their names."""

    def __init__(self, constant: Callable[[str, str], int]) -> None:
        self._kinds = {each: constant("encap_kind", name) for each, name in _NAMES.items()}
        self._encaps = {number: each for each, number in self._kinds.items()}
        self._mask = constant("encap_kind", "ENCAP_KIND")
        self._shift = constant("encap_kind", "ENCAP_PORT_SHIFT")

    def word(self, tunnel: Tunnel) -> int:
        """Return the word of a kind and port."""
        return self._kinds[tunnel.encap] | (tunnel.port or 0) << self._shift

    def tunnel(self, word: int) -> Tunnel:
        """Return what a word says. A kind that isn't known is none."""
        return Tunnel(self._encaps.get(word & self._mask, "ipip"), word >> self._shift or None)
